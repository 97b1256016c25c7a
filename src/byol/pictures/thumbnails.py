"""Small pictures, as the bytes of a file."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from byol.pictures.sheets import _shown

SIDE_PX = 64
QUALITY = 85


def thumbnail(image: np.ndarray, side: int = SIDE_PX) -> bytes:
    """A JPEG of an image whose longer side is at most `side` px; smaller ones keep their size.

    image: [H, W, C] uint8; of more than three channels the first three are red, green and blue.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(_shown(image)))
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
