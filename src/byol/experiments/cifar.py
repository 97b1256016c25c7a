"""Published recipes for CIFAR-10 and CIFAR-100: ResNet-18 with a 3x3 stem, each with the number it should reach.

Those of solo-learn's table were measured with its own LARS, which clips its trust ratio (eta 0.02) where this one, the
authors', does not: the learning rate of the weights does not carry over, and is the Imagenette preset's here. Biases
and norms, which LARS leaves as they are, have the table's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from byol.experiments.imagenet import PLAIN_BLOCKS
from byol.options import Options
from byol.views.view import MOCO_V1, MOCO_V2, SIMCLR, View

NO_BLUR_T = View(blur=0.0)
NO_BLUR_T_PRIME = View(blur=0.0, solarize=0.2)
_WEIGHTS_LR = 2.0
_SOLO_T = replace(NO_BLUR_T, style="torchvision")
_SOLO_T_PRIME = replace(NO_BLUR_T_PRIME, style="torchvision")
_SOLO_WEAK = replace(MOCO_V2, crop_area=(0.08, 1.0))
_SOLO_SGD: dict[str, Any] = {"warmup_epochs": 10, "warmup_steps": None, "lr_by_epoch": False}
_SOLO_VICREG = replace(_SOLO_T, crop_area=(0.2, 1.0), solarize=0.1)
_MOCO_NO_BLUR = replace(MOCO_V2, blur=0.0)
_SIMCLR_HALF = replace(SIMCLR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)
_LIGHTLY = replace(_MOCO_NO_BLUR, crop_area=(0.08, 1.0))


def byol_cifar10() -> Options:
    """BYOL, CIFAR-10, 1000 epochs at batch 256: 92.6 % top-1 of the online classifier in solo-learn's table."""
    return _solo("byol", {"hidden": 4096, "out": 256, "tau": 0.99}, lr=1.0, weight_decay=1e-5)


def byol_cifar100() -> Options:
    """BYOL, CIFAR-100, 1000 epochs at batch 256: 70.5 % top-1 of the online classifier in solo-learn's table."""
    return _solo("byol", {"hidden": 4096, "out": 256, "tau": 0.99}, lr=1.0, weight_decay=1e-5)


def simsiam_cifar10() -> Options:
    """SimSiam, CIFAR-10, 800 epochs at batch 512: linear 91.8 % (Chen & He 2021, Appendix D)."""
    args = {"hidden": 2048, "out": 2048, "bottleneck": 512, "layers": 2}
    return _sgd("simsiam", 800, 512, 0.03, args, views=(_MOCO_NO_BLUR,) * 2, constant_lr=("predictor",))


def simsiam_cifar100() -> Options:
    """SimSiam, CIFAR-100, 1000 epochs at batch 256: 66.0 % top-1 of the online classifier in solo-learn's table."""
    args = {"hidden": 2048, "out": 2048, "bottleneck": 512, "layers": 3}
    changes = {"weight_decay": 1e-5, "constant_lr": ("predictor",)} | _SOLO_SGD
    return _sgd("simsiam", 1000, 256, 0.5, args, views=(_SOLO_WEAK,) * 2, **changes)


def barlow_twins_cifar10() -> Options:
    """Barlow Twins, CIFAR-10, 200 epochs at batch 128: kNN 84.2 % (k=200) in lightly's table."""
    return _sgd("barlow_twins", 200, 128, 0.12, {"width": 2048}, views=(_LIGHTLY,) * 2)


def barlow_twins_cifar100() -> Options:
    """Barlow Twins, CIFAR-100, 1000 epochs at batch 256: 70.9 % top-1 of the online classifier in solo-learn's table,
    which multiplies the loss by 0.1 (here the rate that this leaves to biases and norms)."""
    return _solo("barlow_twins", {"width": 2048}, lr=0.03, weight_decay=1e-4)


def vicreg_cifar10() -> Options:
    """VICReg, CIFAR-10, 1000 epochs at batch 256: 92.1 % top-1 of the online classifier in solo-learn's table, which
    does not halve the variance."""
    return _solo("vicreg", {"width": 2048, "std": 50.0}, lr=0.3, weight_decay=1e-4, views=(_SOLO_VICREG,) * 2)


def vicreg_cifar100() -> Options:
    """VICReg, CIFAR-100, 1000 epochs at batch 256: 68.5 % top-1 of the online classifier in solo-learn's table, which
    does not halve the variance."""
    return _solo("vicreg", {"width": 2048, "std": 50.0}, lr=0.3, weight_decay=1e-4, views=(_SOLO_VICREG,) * 2)


def simclr_cifar10() -> Options:
    """SimCLR, CIFAR-10, 1000 epochs at batch 512: linear about 91 % (the authors' repository)."""
    args = {"hidden": 512, "out": 128, "layers": 3, "temperature": 0.5, "scale": 2.0}
    changes = {"weight_decay": 1e-4, "lr_in_momentum": True, "normalize": False, "encoder_init": "timm"}
    return _cifar(
        "simclr", 1000, 512, args, optimizer="lars", base_lr=1.0, warmup_epochs=10, views=(_SIMCLR_HALF,) * 2, **changes
    )


def simclr_cifar100() -> Options:
    """SimCLR, CIFAR-100, 1000 epochs at batch 256: 65.8 % top-1 of the online classifier in solo-learn's table, whose
    head has no batch norm."""
    args = {"hidden": 2048, "out": 256, "layers": 2, "temperature": 0.2, "scale": 1.0}
    views = (replace(SIMCLR, style="torchvision"),) * 2
    return _solo("simclr", args, lr=0.4, weight_decay=1e-4, views=views)


def moco_cifar10() -> Options:
    """MoCo v1 with batch norm in eight groups, CIFAR-10, 200 epochs at batch 512: kNN 82.6 % (k=200; the authors'
    CIFAR-10 demo; 85.3 % with symmetric=True)."""
    args = {"hidden": None, "out": 128, "queue": 4096, "tau": 0.99, "temperature": 0.1, "groups": 8}
    return _sgd("moco", 200, 512, 0.03, args, views=(_LIGHTLY,) * 2, backbone_args=PLAIN_BLOCKS)


def moco_cifar100() -> Options:
    """MoCo v2 with the symmetric loss, CIFAR-100, 1000 epochs at batch 256: 69.9 % top-1 of the online classifier in
    solo-learn's table, whose momentum rises to 0.999."""
    args = {"hidden": 2048, "out": 256, "queue": 32768, "tau": 0.99, "temperature": 0.2, "symmetric": True, "groups": 1}
    changes = {"weight_decay": 1e-4, "backbone_args": PLAIN_BLOCKS} | _SOLO_SGD
    return _sgd("moco", 1000, 256, 0.3, args, views=(_SOLO_WEAK,) * 2, **changes)


def moco_v3_cifar10() -> Options:
    """MoCo v3, CIFAR-10, 1000 epochs at batch 256: 93.1 % top-1 of the online classifier in solo-learn's table."""
    return _solo("moco_v3", {"hidden": 4096, "out": 256, "temperature": 0.2, "tau": 0.99}, lr=0.3, weight_decay=1e-6)


def moco_v3_cifar100() -> Options:
    """MoCo v3, CIFAR-100, 1000 epochs at batch 256: 68.8 % top-1 of the online classifier in solo-learn's table."""
    return _solo("moco_v3", {"hidden": 4096, "out": 256, "temperature": 0.2, "tau": 0.99}, lr=0.3, weight_decay=1e-6)


def instdisc_cifar10() -> Options:
    """Instance discrimination by the softmax over all images, CIFAR-10, 200 epochs at batch 128: kNN 80.8 % (k=200; Wu
    et al. 2018, Table 1)."""
    args = {"out": 128, "negatives": 0, "temperature": 0.1, "momentum": 0.5}
    changes = {"lr_drops": (0.6, 0.8), "backbone_args": PLAIN_BLOCKS}
    return _sgd("instdisc", 200, 128, 0.06, args, views=(replace(MOCO_V1, flip=0.0),), **changes)


def _solo(method: str, args: dict[str, Any], *, lr: float, weight_decay: float, **changes: Any) -> Options:
    """lr: solo-learn's for 256 images, times the factor by which its loss is smaller."""
    common = {"optimizer": "lars", "base_lr": _WEIGHTS_LR, "bias_lr": lr / _WEIGHTS_LR, "warmup_epochs": 10}
    changes = common | {"views": (_SOLO_T, _SOLO_T_PRIME)} | changes
    return _cifar(method, 1000, 256, args, weight_decay=weight_decay, **changes)


def _sgd(method: str, epochs: int, batch: int, base_lr: float, args: dict[str, Any], **changes: Any) -> Options:
    common = {"optimizer": "sgd", "base_lr": base_lr, "weight_decay": 5e-4, "decay_all": True, "warmup_steps": 0}
    return _cifar(method, epochs, batch, args, **(common | {"lr_by_epoch": True, "encoder_init": "timm"} | changes))


def _cifar(method: str, epochs: int, batch: int, args: dict[str, Any], **changes: Any) -> Options:
    return Options(
        method=method,
        method_args=args,
        backbone="resnet18",
        stem="3x3",
        image_size=32,
        batch_size=batch,
        epochs=epochs,
        hold_out=0.0,
        **changes,
    )
