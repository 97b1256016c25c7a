"""Recipes for a machine without a GPU, with numbers measured here (docs/benchmarks.md), and the random target."""

from __future__ import annotations

from dataclasses import replace

from byol.experiments.cifar import NO_BLUR_T, NO_BLUR_T_PRIME
from byol.options import Options
from byol.views.view import BYOL_T, BYOL_T_PRIME, View

_TWO_CORES = {"layers": [1, 1, 1, 0], "channels": [32, 64, 256, 256], "stem_type": "deep", "stem_width": 16}
"""A ResNet of three blocks (the fourth stage is empty), the first on a quarter of the image's side: 28 to 32 px at 600
images/s and more on two cores."""


def cifar10_two_cores() -> Options:
    """BYOL, CIFAR-10, a small ResNet that two CPU cores train in half an hour: kNN 57.5 %, linear 61.2 %, few-shot (5
    labels a class) 40.4 % top-1; docs/benchmarks.md."""
    return Options(
        backbone="resnet18",
        backbone_args=_TWO_CORES,
        stem="original",
        image_size=32,
        batch_size=128,
        steps=9_000,
        optimizer="adamw",
        base_lr=2.8e-3,
        weight_decay=1e-4,
        warmup_steps=500,
        views=(replace(NO_BLUR_T, crop_area=(0.2, 1.0)), replace(NO_BLUR_T_PRIME, crop_area=(0.2, 1.0))),
        method_args={"hidden": 1024, "out": 128, "tau": 0.96},
    )


def digits_demo() -> Options:
    """What `byol demo` runs: 4,000 unlabelled MNIST digits on two cores. See docs/benchmarks.md for its numbers."""
    strong = View(crop_area=(0.5, 1.0), rotate_degrees=20.0, shear=0.2, flip=0.0, blur=0.5, sigma=(0.1, 1.0))
    # One view close to the image itself taught more than two strong ones.
    gentle = replace(strong, crop_area=(0.8, 1.0), rotate_degrees=10.0, shear=0.1, jitter=0.0, blur=0.0)
    return Options(
        backbone="resnet18",
        backbone_args=_TWO_CORES,
        stem="original",
        image_size=28,
        batch_size=128,
        steps=1100,
        optimizer="adamw",
        base_lr=2.8e-3,
        weight_decay=1e-4,
        warmup_steps=200,
        views=(strong, gentle),
        method_args={"hidden": 1024, "out": 128, "tau": 0.9},
    )


def random_target() -> Options:
    """The experiment that BYOL grew from, on your own data: the target is a random network that never moves. What it
    teaches is more than an untrained network knows (Grill et al. 2020, section 3; random_target_imagenet is theirs)."""
    return Options(method_args={"tau": 1.0, "target_init": "independent"})


_HALF_CORE = {"layers": [1, 1, 1, 0], "channels": [16, 32, 128, 128], "stem_type": "deep", "stem_width": 8}
"""Half as wide: 28 to 32 px at 1,500 images/s on one core."""


def digits_minute() -> Options:
    """BYOL on the digits in less than a minute of one core: what `byol ablate` takes apart. docs/experiments.md."""
    return replace(
        digits_demo(),
        backbone_args=_HALF_CORE,
        steps=400,
        warmup_steps=40,
        method_args={"hidden": 256, "out": 128, "tau": 0.8},
    )


def cifar10_minutes() -> Options:
    """BYOL on CIFAR-10 at 24 px in two minutes of one core, for lists of many runs: docs/experiments.md."""
    return replace(
        cifar10_two_cores(),
        backbone_args=_HALF_CORE,
        image_size=24,
        steps=1000,
        warmup_steps=100,
        views=(replace(BYOL_T, crop_area=(0.4, 1.0)), replace(BYOL_T_PRIME, crop_area=(0.4, 1.0))),
        method_args={"hidden": 1024, "out": 256, "tau": 0.9},
    )
