"""A view of an image as a value: which random changes make it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """How one view of an image is made, in the order in which the operations are applied.

    The defaults are T of BYOL (Grill et al. 2020, Table 6), with the arithmetic of the authors' code.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area, uniform."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height, log-uniform."""
    rotate_degrees: float = 0.0
    """Rotation uniform in +- this."""
    shear: float = 0.0
    """Horizontal shear factor uniform in +- this."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter: the four changes below, in a random order."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    """Probability of grayscale."""
    channelwise: bool = False
    """Brightness and contrast are drawn for each channel, which is no colour, in place of changes of colour."""
    blur: float = 1.0
    """Probability of Gaussian blur."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, px, uniform."""
    solarize: float = 0.0
    """Probability of solarization."""
    style: Literal["authors", "torchvision"] = "authors"
    """"authors": crops clipped to the image, bicubic without antialiasing, additive brightness, contrast about each
    channel's mean, HSV saturation, blur with zeros outside. "torchvision": crops by rejection (ten tries, then the
    centre), antialiased bicubic, multiplicative brightness, blends with gray, blur with reflection."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"view.{name}={getattr(self, name)} is a probability: from 0 to 1")
        for name in ("rotate_degrees", "shear", "brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"view.{name}={getattr(self, name)} must not be negative")
        for name, largest in (("crop_area", 1.0), ("crop_aspect", float("inf")), ("sigma", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= largest:
                raise ValueError(f"view.{name}={low, high} is a range: two numbers, 0 < low <= high <= {largest:g}")


BYOL_T = View()
"""View 1 of BYOL (Grill et al. 2020, Table 6)."""
BYOL_T_PRIME = View(blur=0.1, solarize=0.2)
"""View 2 of BYOL (Grill et al. 2020, Table 6)."""
BYOL_TORCHVISION = replace(BYOL_T, style="torchvision")
"""View 1 of Barlow Twins and VICReg: BYOL's, made with torchvision and PIL (the authors' code of each)."""
BYOL_TORCHVISION_PRIME = replace(BYOL_T_PRIME, style="torchvision")
"""View 2 of Barlow Twins and VICReg."""
SIMCLR = View(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
"""Both views of SimCLR (Chen et al. 2020, arXiv:2002.05709, Appendix A) at colour strength 1."""
MOCO_V1 = View(crop_area=(0.2, 1.0), jitter=1.0, saturation=0.4, hue=0.4, blur=0.0, style="torchvision")
"""Both views of MoCo v1, and the one of instance discrimination (the authors' code of each)."""
MOCO_V2 = View(crop_area=(0.2, 1.0), saturation=0.4, blur=0.5, style="torchvision")
"""Both views of MoCo v2 and SimSiam (the authors' code of each)."""
MOCO_V3 = replace(BYOL_TORCHVISION, crop_area=(0.2, 1.0))
"""View 1 of MoCo v3: BYOL's with larger crops (the authors' code)."""
MOCO_V3_PRIME = replace(BYOL_TORCHVISION_PRIME, crop_area=(0.2, 1.0))
"""View 2 of MoCo v3."""


def describe(view: View) -> str:
    """What the view does, for people."""
    parts = [f"crops of {view.crop_area[0]:.0%} to {view.crop_area[1]:.0%} of the image"]
    parts += [f"rotation up to {view.rotate_degrees:g} degrees"] if view.rotate_degrees else []
    parts += [f"shear up to {view.shear:g}"] if view.shear else []
    changes = {
        "flip": view.flip,
        f"{'channel' if view.channelwise else 'colour'} jitter": view.jitter,
        "grayscale": view.gray,
        "blur": view.blur,
    }
    changes["solarize"] = view.solarize
    parts += [f"{name} {share:.0%}" for name, share in changes.items() if share]
    return ", ".join(parts) + ("" if view.style == "authors" else f", {view.style}'s arithmetic")


def without_color(view: View) -> View:
    """The view for images that are not RGB: no hue, saturation or grayscale."""
    return replace(view, saturation=0.0, hue=0.0, gray=0.0)
