"""Encoded images, wherever they lie, to uint8 pixels, or one short reason why not."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

# Named, not all of Pillow's: its EPS reader starts Ghostscript on a file that only calls itself .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_ALPHA_MODES = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_KEYED_MODES = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}  # may name a transparent value in `info`
BEGINNING_BYTES = 4096
"""That are read of a file to find its size quickly."""
MOST_ENCODED_BYTES = 1 << 29
"""Of a format that is read whole, JPEG and WebP: three bytes of each pixel of the largest image, which none needs."""
MOST_SCANS = 100
"""Of a progressive JPEG. Encoders write ten or so; each costs the time of the whole image, however few its bytes."""
MOST_CHUNKS = 1 << 18
"""Of a PNG: each takes Pillow microseconds, even an empty one. Of 8 KiB each, as is usual, they make 2 GiB."""
MOST_RUN_LENGTH_PIXELS = 1 << 24
"""Of a BMP by run lengths, which Pillow decodes in Python; its rows are no longer than MOST_ROW_PX."""
MOST_ROW_PX = 1 << 16
MOST_SIDE_PX = 1 << 20
"""Pillow keeps an address for each row: of 179 million rows, 1.4 GB."""
MOST_TIFF_NUMBERS = 1 << 22
"""That one entry of a TIFF's directory may list, such as where its tiles lie."""
MACHINE_TROUBLE = tuple(
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ETIMEDOUT", "ENODEV", "ENOTCONN", "ECONNRESET"),
        *("ECONNABORTED", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)
"""No image's fault: storage that does not answer, or no more file handles. Images taken for broken because of it would
be replaced by others, each of which may be good the next time."""
_STRIP_PIXELS = 1 << 22
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PILLOW_MODULES = re.compile(r"PIL\.")


class Unusable(ValueError):
    """This image cannot be used; the message is the reason in a few words, on one line."""


def decode(data: bytes | Path, channels: int | None = None, reduce: int = 1) -> np.ndarray:
    """The pixels of one encoded image, or `Unusable`.

    data: the file's bytes, or its path. Formats: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM/PGM, whatever the name
        says; of an animation or a stack, the first frame.
    channels: 3 copies gray into R, G and B; 1 takes the luma of colour (ITU-R 601, Pillow's "L"); None leaves
        what there is.
    reduce: 2, 4 or 8 decode a JPEG to sides of ceil(1/reduce), which libjpeg makes of the low frequencies of each
        block, in a fraction of the time. Other formats are not reduced.
    Returns [H, W, C] uint8, 0-255, C in {1, 3}, writable and contiguous, upright by the EXIF orientation:
    - gray stays gray (C=1), 1-bit becomes 0 or 255, a palette becomes RGB even if all its colours are gray;
    - alpha, a transparent palette entry or colour: composited on white (in 16-bit gray it is ignored);
    - 16-bit gray, and 32-bit integers that lie in 0-65535: round(v / 257), the full range: 65535 is 255, and
      data that use only low values are dark; other integers are unusable. Of 16-bit colour Pillow keeps the
      high byte;
    - float: finite values in [0, 1] become round(255 v); anything else is unusable, for its range is unknown;
    - CMYK, YCbCr, HSV: to RGB by Pillow's formulas, without colour profiles; Lab is unusable.
    Truncated files are unusable, and so are files above twice `Image.MAX_IMAGE_PIXELS`; at that limit an image takes
    1.3 GB, a WebP 2.8 GB. Pillow's own settings are never changed.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1, 3 or None")
    if (pixels := _jpeg(data, reduce)) is not None:
        return to_channels(pixels, channels)
    with opened(data) as (image, _):
        _check(image)
        if reduce > 1:  # of no effect but for JPEG
            image.draft(image.mode, (image.width // reduce, image.height // reduce))
        return to_channels(_decoded(image), channels)


def from_pillow(image: Image.Image) -> np.ndarray:
    """[H, W, 1 or 3] uint8 of an image that Pillow opened or made, by the rules of `decode`; or `Unusable`."""
    try:
        return _decoded(image)
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(reason(error)) from error


def _decoded(image: Image.Image) -> np.ndarray:
    image.load()
    pixels = _pixels(image)
    # After load(): Pillow turns a TIFF upright while loading it, and then forgets its orientation.
    return _upright(pixels, _orientation(image))


def _jpeg(data: bytes | Path, reduce: int) -> np.ndarray | None:
    """[H, W, 1 or 3] uint8 of a whole JPEG in gray or colour; None of anything else.

    The same pixels as Pillow's, by the same libjpeg-turbo, in two thirds of its time.
    """
    import simplejpeg

    with contextlib.suppress(OSError, ValueError):  # Pillow forgives some damage, and says better what is wrong
        encoded = data if isinstance(data, bytes) else _whole_jpeg(data)
        if (found := jpeg_header(encoded)) is None:
            return None
        _check_scans(encoded)
        height, width, channels, is_plain = found
        pixels = simplejpeg.decode_jpeg(
            encoded,
            colorspace="RGB" if channels == 3 else "GRAY",
            # It takes the smallest scale that keeps these sides: exactly 1/reduce.
            min_height=-(-height // reduce) if reduce > 1 else 0,
            min_width=-(-width // reduce) if reduce > 1 else 0,
        )
        if is_plain:
            return pixels
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            return _upright(pixels, _orientation(image))
    return None


def _whole_jpeg(path: Path) -> bytes:
    """Nothing of what is no JPEG, or is too large for one."""
    with path.open("rb") as stream:
        beginning = stream.read(2)
        if beginning != b"\xff\xd8" or os.fstat(stream.fileno()).st_size > MOST_ENCODED_BYTES:
            return b""
        return beginning + stream.read()


def _check_scans(data: bytes) -> None:
    # Of the bytes of pixels none follows 0xFF as this one does.
    if data.count(b"\xff\xda") > MOST_SCANS:
        raise Unusable(f"more than {MOST_SCANS} scans")


def jpeg_header(data: bytes) -> tuple[int, int, int, bool] | None:
    """(height, width, channels, whether nothing says that it is turned) of a JPEG in gray or colour, as it is stored.

    data: the file, or a beginning of it. None where Pillow has to look.
    """
    position, is_plain = 2, True
    while position + 10 <= len(data) and data.startswith(b"\xff\xd8") and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            known = bits == 8 and channels in (1, 3) and 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0)
            return (height, width, channels, is_plain) if known else None
        if marker < 0xC4 or 0xD0 <= marker <= 0xDA or marker == 0xFF:  # these do not stand here, or have no length
            return None
        is_plain = is_plain and marker != 0xE1  # EXIF, XMP
        position += 2 + length
    return None


def header(data: bytes | Path | str) -> tuple[int, int, int]:
    """(height, width, channels) that `decode(data)` has, from the file's header alone, or `Unusable`. See `look`."""
    return look(data)[:3]


def look(data: bytes | Path | str) -> tuple[int, int, int, int]:
    """(height, width, channels, depth) of an image, from the file's header alone, or `Unusable`.

    The first three are those of `decode(data)`; depth is 0, or of gray images that have more than the 8 bits it keeps,
    16 or 32.

    data: the file's bytes, or its path: as text, for a pathlib.Path takes longer to make than a header to read.

    A file that is cut short passes here; only decoding finds that out.
    """
    if (found := _quick_header(data)) is not None:
        return found
    with opened(Path(data) if isinstance(data, str) else data) as (image, stream):
        channels = _check(image)
        depth = depth_of(image.mode)
        width, height = image.size
        if image.format == "TIFF":  # Pillow reports the upright size
            return height, width, channels, depth
        if image.format == "PNG" and _exif_follows_pixels(stream):
            image.load()
        return (width, height, channels, depth) if _orientation(image) >= 5 else (height, width, channels, depth)


def _quick_header(data: bytes | Path | str) -> tuple[int, int, int, int] | None:
    """The same of what is plainly a JPEG or PNG by its first bytes, in a tenth of Pillow's time; else None."""
    if isinstance(data, bytes):
        beginning = data
    else:
        try:
            file = os.open(data, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError:
            return None
        try:
            beginning = os.read(file, BEGINNING_BYTES)
        except OSError:
            return None
        finally:
            os.close(file)
    if beginning.startswith(b"\xff\xd8"):
        found = jpeg_header(beginning)
        return (*found[:3], 0) if found is not None and found[3] else None
    return _png_header(beginning)


def _png_header(data: bytes) -> tuple[int, int, int, int] | None:
    """(height, width, channels, depth) of a PNG that is all there and says nothing of being turned."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") or len(data) < 33:
        return None
    width, height, bits, kind, *_, crc = struct.unpack_from(">IIBBBBBI", data, 16)
    if crc != zlib.crc32(data[12:29]) or bits not in (1, 2, 4, 8, 16) or kind not in (0, 2, 3, 4, 6):
        return None
    if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0) or max(width, height) > MOST_SIDE_PX:
        return None
    position, has_pixels = 33, False
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IEND":
            # Of colour, and of gray with alpha, Pillow keeps the high bytes.
            shape = height, width, 1 if kind in (0, 4) else 3, 16 if (bits, kind) == (16, 0) else 0
            return shape if has_pixels else None
        if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return None
        has_pixels = has_pixels or name == b"IDAT"
        position += 12 + length
    return None


def to_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """[H, W, 1 or 3] uint8 to [H, W, channels] uint8: gray is copied, colour becomes luma; None keeps all."""
    if channels is None or pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]


@contextmanager
def opened(data: bytes | Path) -> Iterator[tuple[ImageFile.ImageFile, IO[bytes]]]:
    """Open an image; whatever goes wrong inside the `with` becomes `Unusable`."""
    _mute_pillow()
    try:
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
            _check_file(stream)
            with Image.open(stream, formats=FORMATS) as image:
                yield image, stream
    except Unusable:
        raise
    except Exception as error:  # decoders raise nearly anything on bytes made to break them
        check_machine(error, data)
        raise Unusable(reason(error)) from error


def check_machine(error: Exception, data: bytes | Path | str) -> None:
    """Raise it, with the name of the file, where it is the machine's trouble."""
    if isinstance(error, OSError) and error.errno is not None and error.errno in MACHINE_TROUBLE:
        name = None if isinstance(data, bytes) else str(data)
        raise OSError(error.errno, os.strerror(error.errno), name) from error


def _check_file(stream: IO[bytes]) -> None:
    """`Unusable` where opening it would take memory or time without measure. The stream stays at its beginning."""
    beginning = stream.read(12)
    if not beginning:
        raise Unusable("empty file")
    if beginning.startswith((b"RIFF", b"\xff\xd8")) and stream.seek(0, os.SEEK_END) > MOST_ENCODED_BYTES:
        raise Unusable("too large for an image")
    if beginning.startswith(b"\xff\xd8"):
        stream.seek(0)
        _check_scans(stream.read())
    if beginning.startswith(b"\x89PNG"):
        _check_chunks(stream)
    if beginning.startswith(_TIFF_SIGNATURES):
        check_tiff(stream, pages=1)
    stream.seek(0)


def _check_chunks(stream: IO[bytes]) -> None:
    stream.seek(8)
    for _ in range(MOST_CHUNKS):
        beginning = stream.read(8)
        if len(beginning) < 8 or beginning[4:] == b"IEND":
            return
        stream.seek(int.from_bytes(beginning[:4], "big") + 4, os.SEEK_CUR)
    raise Unusable(f"more than {MOST_CHUNKS:,} chunks")


def check_tiff(stream: IO[bytes], pages: int | None = None) -> None:
    """`Unusable` where the directories of a TIFF lead in a circle, or list more numbers than any image has parts.

    pages: how many are looked at; None for all, which a reader would follow without end.
    """
    stream.seek(0)
    start = stream.read(16)
    order = ">" if start.startswith(b"MM") else "<"
    is_big = start[2:4] in (b"+\0", b"\0+")
    count, entry, offset = (f"{order}{form}" for form in (("Q", "HHQ8x", "Q") if is_big else ("H", "HHI4x", "I")))
    seen = set[int]()
    try:
        (position,) = struct.unpack_from(offset, start, 8 if is_big else 4)
        while position and (pages is None or len(seen) < pages):
            if position in seen:
                raise Unusable("its pages lead in a circle")
            seen.add(position)
            stream.seek(position)
            (num,) = struct.unpack(count, stream.read(struct.calcsize(count)))
            entries = stream.read(min(num, 4096) * struct.calcsize(entry))
            for _, kind, numbers in struct.iter_unpack(entry, entries):
                if kind not in (1, 2, 7) and numbers > MOST_TIFF_NUMBERS:  # those are bytes and text
                    raise Unusable("a directory without measure")
            (position,) = struct.unpack(offset, stream.read(struct.calcsize(offset)))
    except (struct.error, OverflowError):
        return  # cut short or damaged: for its reader to say


def _check(image: ImageFile.ImageFile) -> int:
    """The channels of an image by its header, or `Unusable`."""
    width, height = image.size
    if max(width, height) > MOST_SIDE_PX:
        raise Unusable(f"a side of more than {MOST_SIDE_PX:,} px")
    if (
        image.tile
        and image.tile[0][0] == "bmp_rle"
        and (width > MOST_ROW_PX or width * height > MOST_RUN_LENGTH_PIXELS)
    ):
        raise Unusable("too many pixels for run lengths")
    return num_channels(image.mode)


def depth_of(mode: str) -> int:
    """Of a pixel mode of Pillow's: 16 or 32 bits of gray images that have more than the 8 that `decode` keeps, else
    0."""
    return 32 if mode == "F" else 16 if mode.startswith("I") else 0


def _mute_pillow() -> None:
    """Silence the warnings that Pillow's own modules issue, from the first image on.

    They tell of damaged metadata and large images, which is decided here. `warnings.catch_warnings` would be
    tidier, but it restores a process-wide list: in threads, it can undo another thread's filters for good.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[3] != _PILLOW_MODULES:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)


def reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, MemoryError):
        return "too large for memory"
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())[:120]
    text = text if text.isprintable() else ascii(text)
    return f"broken image: {text}" if text else f"broken image: {type(error).__name__}"


def num_channels(mode: str) -> int:
    """That `decode` gives for a pixel mode of Pillow's, or `Unusable`."""
    if mode in _GRAY_MODES:
        return 1
    if mode in _COLOUR_MODES:
        return 3
    raise Unusable(f"pixel mode {mode} is not supported")


def _pixels(image: Image.Image) -> np.ndarray:
    """A loaded image to [H, W, 1 or 3] uint8, before it is turned upright.

    Of a large one a strip at a time: conversions take up to 32 bytes a pixel.
    """
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _strip(image)
    found = np.empty((image.height, image.width, num_channels(image.mode)), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        found[top:bottom] = _strip(image.crop((0, top, image.width, bottom)))
    return found


def _strip(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("integer pixels outside 0-65535")
        return ((values.astype(np.int32) + 128) // 257).astype(np.uint8)[..., None]
    if mode == "F":
        values = np.asarray(image)
        if not ((values >= 0) & (values <= 1)).all():
            raise Unusable("float pixels outside 0-1")
        return np.rint(values * 255).astype(np.uint8)[..., None]
    alpha_mode = _ALPHA_MODES.get(mode) or (_KEYED_MODES.get(mode) if "transparency" in image.info else None)
    if alpha_mode:
        values = np.asarray(image.convert(alpha_mode)).astype(np.uint16)
        colour, alpha = values[..., :-1], values[..., -1:]
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # at most 65152
    if num_channels(mode) == 1:
        return np.array(image.convert("L"))[..., None]
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1-8. Damaged metadata mean 1: the pixels may still be good."""
    try:
        # Not image.getexif(): for a PNG that would decode all pixels to see whether EXIF follows them.
        value = Image.Image.getexif(image).get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation of [H, W, C] pixels (tag 0x0112); 5 to 8 exchange height and width."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif_follows_pixels(stream: IO[bytes]) -> bool:
    """Whether a PNG holds EXIF or XMP after its pixels, found by stepping over its chunks."""
    back = stream.tell()
    position, pixels_seen, found = 8, False, False
    while not found:
        stream.seek(position)
        start = stream.read(29)
        if len(start) < 8:
            break
        length, kind = struct.unpack_from(">I4s", start)
        named = start[8:].startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))
        found = pixels_seen and (kind == b"eXIf" or (named and kind in (b"iTXt", b"tEXt", b"zTXt")))
        pixels_seen = pixels_seen or kind == b"IDAT"
        position += 12 + length
    stream.seek(back)
    return found


def is_image_name(file: str) -> bool:
    return file.lower().endswith(EXTENSIONS)
