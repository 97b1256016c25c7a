"""Published recipes, as functions that return what they decide; `--recipe NAME` takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from byol.options import Options
from byol.views.view import BYOL_T, BYOL_T_PRIME, View

_NO_BLUR_T = View(blur=0.0)
_NO_BLUR_T_PRIME = View(blur=0.0, solarize=0.2)


def byol_imagenet_40() -> Options:
    """BYOL, ImageNet, ResNet-50, 40 epochs at batch 4096: the shortest preset of the authors' code."""
    return _imagenet(epochs=40, base_lr=0.45, weight_decay=1e-6, tau=0.97)


def byol_imagenet_100() -> Options:
    """BYOL, ImageNet, ResNet-50, 100 epochs at batch 4096: the preset of the authors' code.

    Others measured 68.4 to 69.3 % linear top-1 with it (solo-learn's and VICReg's tables).
    """
    return _imagenet(epochs=100, base_lr=0.45, weight_decay=1e-6, tau=0.99)


def byol_imagenet_300() -> Options:
    """BYOL, ImageNet, ResNet-50, 300 epochs at batch 4096: 72.5 % linear top-1 (Grill et al. 2020, Table 5)."""
    return _imagenet(epochs=300, base_lr=0.3, weight_decay=1e-6, tau=0.99)


def byol_imagenet_1000() -> Options:
    """BYOL, ImageNet, ResNet-50, 1000 epochs at batch 4096: 74.3 % linear top-1 (Grill et al. 2020, Table 1)."""
    return _imagenet(epochs=1000, base_lr=0.2, weight_decay=1.5e-6, tau=0.996)


def _imagenet(*, epochs: int, base_lr: float, weight_decay: float, tau: float) -> Options:
    return Options(
        backbone="resnet50",
        image_size=224,
        batch_size=4096,
        epochs=epochs,
        optimizer="lars",
        base_lr=base_lr,
        weight_decay=weight_decay,
        warmup_epochs=10,
        views=(BYOL_T, BYOL_T_PRIME),
        method_args={"hidden": 4096, "out": 256, "tau": tau},
        hold_out=0.0,
    )


def byol_imagenette() -> Options:
    """BYOL, Imagenette (160 px), ResNet-18 at 128 px, 1000 epochs: 92.3 % top-1 of the online classifier (the README
    of the authors' code; about 4 hours on one V100)."""
    return Options(
        backbone="resnet18",
        stem="original",
        image_size=128,
        batch_size=256,
        epochs=1000,
        optimizer="lars",
        base_lr=2.0,
        weight_decay=1e-6,
        warmup_epochs=10,
        views=(BYOL_T, BYOL_T_PRIME),
        method_args={"hidden": 4096, "out": 256, "tau": 0.996},
        hold_out=0.0,
    )


def byol_cifar10() -> Options:
    """BYOL, CIFAR-10, ResNet-18 with a 3x3 stem, 1000 epochs at batch 256: 92.6 % top-1 of the online classifier in
    solo-learn's table, whose LARS clips its trust ratio (eta 0.02) where this one, the authors', does not; the learning
    rate is therefore not theirs but the Imagenette preset's. No blur, as usual at 32 px."""
    return Options(
        backbone="resnet18",
        stem="3x3",
        image_size=32,
        batch_size=256,
        epochs=1000,
        optimizer="lars",
        base_lr=2.0,
        weight_decay=1e-6,
        warmup_epochs=10,
        views=(_NO_BLUR_T, _NO_BLUR_T_PRIME),
        method_args={"hidden": 4096, "out": 256, "tau": 0.99},
        hold_out=0.0,
    )


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
        views=(replace(_NO_BLUR_T, crop_area=(0.2, 1.0)), replace(_NO_BLUR_T_PRIME, crop_area=(0.2, 1.0))),
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


RECIPES: dict[str, Callable[[], Options]] = {
    "byol_imagenet_40": byol_imagenet_40,
    "byol_imagenet_100": byol_imagenet_100,
    "byol_imagenet_300": byol_imagenet_300,
    "byol_imagenet_1000": byol_imagenet_1000,
    "byol_imagenette": byol_imagenette,
    "byol_cifar10": byol_cifar10,
    "cifar10_two_cores": cifar10_two_cores,
    "digits_demo": digits_demo,
}
