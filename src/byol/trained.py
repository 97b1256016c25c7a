"""The encoder of a run, which knows the images that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from byol.data.given import given
from byol.data.loader import Normalization
from byol.data.source import Range
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate.features import extract
from byol.evaluate.images import evaluation_images

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = Iterable[str | PathLike[str] | np.ndarray[Any, Any] | Image] | np.ndarray[Any, Any]


class TrainedEncoder(Encoder):
    """An encoder that takes images as they are.

    normalization: what its input is normalised with. value_range: the values that are black and white in each channel,
    of a backbone whose images were not 8-bit gray or RGB; else None.
    """

    def __init__(
        self, spec: EncoderSpec, normalization: Normalization | None, value_range: Range | None = None
    ) -> None:
        with torch.random.fork_rng(devices=[]):  # its weights come from elsewhere: no random number is used up
            super().__init__(spec)
        self.normalization = normalization
        self.value_range = value_range

    def embed(self, images: Images, *, batch_size: int = 256) -> np.ndarray:
        """The features of images, [N, dim] float32, in their order: those that `byol embed` and evaluation compute.

        images: paths, arrays and images of Pillow, of any sizes and mixed; or one array [N, H, W], [N, H, W, C] or
            [N, C, H, W]. Arrays are uint8, or of the values that the backbone was trained on. Files and images of
            Pillow are decoded as those of a folder: upright, without alpha, gray and colour each as the other where the
            backbone needs it. Of each the centre is taken, see `evaluation_view`.
        batch_size: images in one forward pass, on the device where the encoder is: `encoder.to("cuda")` moves it.

        ValueError, in one line, names an image that cannot be used. The training mode stays as it is.
        """
        if self.normalization is None:
            raise ValueError("backbone.json does not say how its images are normalised; give tensors to the encoder")
        source = given(images, self.spec.channels, self.value_range)
        if not len(source):
            return np.empty((0, self.dim), np.float32)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not allowed; use 1 or more")
        parts = torch.arange(len(source)).split(batch_size)
        features = extract(
            self,
            (evaluation_images(source, None, rows, self.spec.image_size) for rows in parts),
            mean=self.normalization.mean,
            std=self.normalization.std,
            size=None,
            batch_size=batch_size,
            device=next(self.parameters()).device,
        )
        return features.numpy()
