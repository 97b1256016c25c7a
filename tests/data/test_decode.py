"""Every decision of `decode`, on files that Pillow wrote, against values worked out here."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from byol.data.decode import FORMATS, Unusable, decode, header, jpeg_header, to_channels

GRAY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
COLOUR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=2)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_gray_and_colour_keep_their_values_and_channels(kind: str) -> None:
    for pixels, channels in ((GRAY, 1), (COLOUR, 3)):
        data = encoded(pixels, kind)
        found = decode(data)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(found, pixels.reshape(2, 3, channels))
        assert header(data) == (2, 3, channels)


def test_lossless_webp_and_gif_become_rgb() -> None:
    np.testing.assert_array_equal(decode(encoded(COLOUR, "WEBP", lossless=True)), COLOUR)
    np.testing.assert_array_equal(decode(encoded(COLOUR, "GIF")), COLOUR)


def test_a_path_reads_like_its_bytes_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(COLOUR))
    np.testing.assert_array_equal(decode(path), COLOUR)
    assert header(path) == (2, 3, 3)


def test_one_bit_becomes_0_and_255() -> None:
    data = encoded(Image.fromarray(GRAY > 120))
    assert Image.open(io.BytesIO(data)).mode == "1"
    np.testing.assert_array_equal(decode(data)[..., 0], np.where(GRAY > 120, 255, 0))
    assert header(data) == (2, 3, 1)


def test_a_palette_becomes_its_colours_not_its_indices() -> None:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 70, 70])
    data = encoded(image)
    assert Image.open(io.BytesIO(data)).mode == "P"
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 70, 70]])
    np.testing.assert_array_equal(decode(data), colours[[[0, 1, 2], [2, 1, 0]]])
    assert header(data) == (2, 3, 3)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_transparent_palette_entry_becomes_white(transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 70, 70])
    data = encoded(image, transparency=transparency)
    np.testing.assert_array_equal(decode(data), [[[10, 20, 30], [255, 255, 255], [70, 70, 70]]])


def test_transparent_colours_become_white() -> None:
    np.testing.assert_array_equal(decode(encoded(GRAY, transparency=50))[0, :, 0], [0, 255, 100])
    keyed = encoded(COLOUR, transparency=tuple(int(v) for v in COLOUR[0, 0]))
    np.testing.assert_array_equal(decode(keyed)[0], [[255, 255, 255], *COLOUR[0, 1:]])
    assert header(keyed) == (2, 3, 3)


def test_alpha_is_composited_on_white_and_rounded() -> None:
    alpha = np.array([[0, 51, 128], [254, 255, 1]], np.uint8)
    weight = alpha[..., None] / 255
    for pixels, mode in ((GRAY[..., None], "LA"), (COLOUR, "RGBA")):
        data = encoded(Image.fromarray(np.concatenate([pixels, alpha[..., None]], axis=2)))
        assert Image.open(io.BytesIO(data)).mode == mode
        expected = np.floor(pixels * weight + 255 * (1 - weight) + 0.5)
        np.testing.assert_array_equal(decode(data), expected)
        assert header(data) == (2, 3, pixels.shape[2])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_divided_by_257_and_rounded(kind: str) -> None:
    values = np.array([[0, 128, 129, 257], [385, 386, 32768, 65535]], np.uint16)
    data = encoded(values, kind)
    assert Image.open(io.BytesIO(data)).mode in ("I;16", "I")
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 385 / 257 = 1.498, 386 / 257 = 1.502, 32768 / 257 = 127.502
    np.testing.assert_array_equal(decode(data)[..., 0], [[0, 0, 1, 1], [1, 2, 128, 255]])
    assert header(data) == (2, 4, 1)


def test_big_endian_16_bit_reads_the_same() -> None:
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 386, 65535], ">u2").tobytes())
    data = encoded(image, "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "I;16B"
    np.testing.assert_array_equal(decode(data)[0, :, 0], [0, 2, 255])


def test_32_bit_integers_are_usable_only_in_the_16_bit_range() -> None:
    good = encoded(np.array([[0, 257, 65535]], np.int32), "TIFF")
    assert Image.open(io.BytesIO(good)).mode == "I"
    np.testing.assert_array_equal(decode(good)[0, :, 0], [0, 1, 255])
    for value in (-1, 65536):
        with pytest.raises(Unusable, match="outside 0-65535"):
            decode(encoded(np.array([[0, value]], np.int32), "TIFF"))


def test_float_is_usable_only_in_0_to_1() -> None:
    data = encoded(np.array([[0.0, 0.25, 0.75, 1.0]], np.float32), "TIFF")
    np.testing.assert_array_equal(decode(data)[0, :, 0], [0, 64, 191, 255])  # 63.75, 191.25
    assert header(data) == (1, 4, 1)
    for value in (-0.01, 1.01, 200.0, np.nan, np.inf):
        with pytest.raises(Unusable, match="outside 0-1"):
            decode(encoded(np.array([[0.5, value]], np.float32), "TIFF"))


def test_cmyk_becomes_rgb() -> None:
    ink = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    ink.putpixel((1, 0), (255, 0, 0, 0))
    data = encoded(ink, "TIFF")
    np.testing.assert_array_equal(decode(data), [[[255, 255, 255], [0, 255, 255]]])
    assert header(data) == (1, 2, 3)
    jpeg = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    assert np.abs(decode(jpeg).astype(int) - [0, 255, 255]).max() <= 3


def test_lab_is_unusable_already_by_its_header() -> None:
    data = encoded(Image.new("LAB", (2, 2)), "TIFF")
    for reader in (decode, header):
        with pytest.raises(Unusable, match="LAB"):
            reader(data)


def test_channels_copy_gray_and_take_the_luma_of_colour() -> None:
    np.testing.assert_array_equal(decode(encoded(GRAY), 3), np.stack([GRAY] * 3, axis=2))
    red, green, blue = (COLOUR[..., i].astype(float) for i in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    found = decode(encoded(COLOUR), 1)
    assert found.shape == (2, 3, 1)
    assert np.abs(found[..., 0] - luma).max() <= 0.51
    assert np.abs(luma - COLOUR.mean(axis=2)).max() > 5  # a mean of channels would not pass
    np.testing.assert_array_equal(decode(encoded(COLOUR), 3), COLOUR)
    np.testing.assert_array_equal(decode(encoded(GRAY), 1)[..., 0], GRAY)
    np.testing.assert_array_equal(to_channels(COLOUR[:, ::-1], 1), found[:, ::-1])
    with pytest.raises(ValueError, match="channels=4") as caught:
        decode(encoded(GRAY), 4)
    assert not isinstance(caught.value, Unusable)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's table, by its words: where row 0 and column 0 belong in the upright picture."""
    row_0, column_0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    height, width = stored.shape[:2]
    swapped = row_0 in ("left", "right")
    out = np.zeros((width, height, 3) if swapped else (height, width, 3), np.uint8)
    for r in range(height):
        for c in range(width):
            vertical, horizontal = (column_0, row_0) if swapped else (row_0, column_0)
            y, x = (c, r) if swapped else (r, c)
            y = out.shape[0] - 1 - y if vertical == "bottom" else y
            x = out.shape[1] - 1 - x if horizontal == "right" else x
            out[y, x] = stored[r, c]
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_puts_each_pixel_where_it_belongs(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(COLOUR, kind, exif=exif(orientation), **options)
    expected = upright(COLOUR, orientation)
    np.testing.assert_array_equal(decode(data), expected)
    assert header(data) == expected.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg(orientation: int) -> None:
    blocks = np.kron(COLOUR, np.ones((16, 16, 1), np.uint8))
    data = encoded(blocks, "JPEG", exif=exif(orientation), quality=95, subsampling=0)
    expected = np.kron(upright(COLOUR, orientation), np.ones((16, 16, 1), np.uint8))
    assert header(data) == expected.shape
    assert np.abs(decode(data).astype(int) - expected).mean() < 3


def test_exif_after_the_pixels_of_a_png_counts_too() -> None:
    data = encoded(COLOUR)
    late = data[:-12] + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    np.testing.assert_array_equal(decode(late), upright(COLOUR, 6))
    assert header(late) == (3, 2, 3)


def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
    for block in (b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01", b"Exif\0\0garbage", exif(99).tobytes()):
        data = encoded(COLOUR, exif=block)
        np.testing.assert_array_equal(decode(data), COLOUR)
        assert header(data) == (2, 3, 3)


def test_header_decodes_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(noise(), kind) for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")]

    def refuse(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert {header(data) for data in files} == {(64, 48, 3)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_a_truncated_file_is_unusable(kind: str) -> None:
    data = encoded(noise(), kind)
    assert decode(data).shape == (64, 48, 3)
    for length in (len(data) // 2, 60, 3):
        with pytest.raises(Unusable):
            decode(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncation_passes_the_header_and_says_so_when_decoding(kind: str) -> None:
    data = encoded(noise(256, 256), kind)
    data = data[: len(data) * 3 // 4]
    assert header(data) == (256, 256, 3)
    with pytest.raises(Unusable, match="truncated"):
        decode(data)


@pytest.mark.parametrize("reader", [decode, header])
def test_what_is_no_image_has_a_reason(reader: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image\n")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    cases: list[tuple[bytes | Path, str]] = [
        (b"", "empty file"),
        (text, "not an image"),
        (script, "not an image"),  # Pillow would start Ghostscript on it
        (tmp_path / "absent.png", "missing"),
        (tmp_path, "is a directory"),
    ]
    for data, reason in cases:
        with pytest.raises(Unusable, match=reason) as caught:
            reader(data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [decode, header])
def test_a_decompression_bomb_is_unusable(reader: Any) -> None:
    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(Unusable, match="too many pixels"):
        reader(bomb)


def test_a_large_image_below_the_bomb_limit_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # 6 pixels: Pillow warns above 4 and refuses above 8
    data = encoded(COLOUR)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data)).close()
    np.testing.assert_array_equal(decode(data), COLOUR)
    assert header(data) == (2, 3, 3)


def test_only_pillows_warnings_are_silenced() -> None:
    decode(encoded(GRAY))
    with pytest.raises(UserWarning, match="mine"):  # an error by our pytest configuration; pytest.warns would reset it
        warnings.warn("mine", stacklevel=1)


@pytest.mark.parametrize("error", [OSError("x"), SyntaxError("x"), struct.error("x"), MemoryError(), KeyError(1)])
def test_any_error_of_a_decoder_is_unusable(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise error

    data = encoded(GRAY)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert str(caught.value)


def test_running_out_of_file_handles_does_not_blame_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        decode(Path("any.png"))


def test_pillows_settings_stay_as_they_are() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    decode(encoded(noise()))
    with pytest.raises(Unusable):
        decode(encoded(noise())[:500])
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == before == (False, 89478485)


def test_damaged_bytes_give_pixels_or_unusable_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for kind in FORMATS:
        data = np.frombuffer(encoded(noise(24, 20), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            where = rng.integers(0, len(data), 4)
            damaged[where] = rng.integers(0, 256, 4)
            for reader in (header, decode):
                try:
                    reader(damaged.tobytes())
                except Unusable as error:
                    assert str(error).isprintable()


def test_threads_agree_with_one_thread() -> None:
    files = [encoded(noise(), kind) for kind in ("WEBP", "TIFF", "PNG", "GIF")] * 4
    expected = [decode(data) for data in files]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: decode(files[i])})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pixels in enumerate(expected):
        np.testing.assert_array_equal(found[i], pixels)


def smooth(height: int, width: int) -> np.ndarray:
    """Slow waves: what is left of them at a reduced size is known."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(2 * np.pi * (x * a / width + y * b / height)) for a, b in ((2, 1), (1, 3), (3, 2))]
    return (128 + 100 * np.stack(waves, axis=2)).round().astype(np.uint8)


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "profile": {"icc_profile": b"p" * 70_000},
    "comment": {"comment": b"c" * 60_000},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_finds(kind: str) -> None:
    for pixels in (smooth(61, 83), noise(61, 83), noise(61, 83)[..., 0]):
        data = encoded(pixels, "JPEG", quality=85, **JPEGS[kind])
        expected = np.asarray(Image.open(io.BytesIO(data))).reshape(61, 83, -1)
        found = decode(data)
        assert found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(found, expected)
        assert jpeg_header(data) == (61, 83, expected.shape[2], True) == (*header(data), True)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 65), (8, 300)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 20}], ids=str)
def test_jpegs_of_all_sizes_and_subsamplings_match_pillow(size: tuple[int, int], options: dict[str, Any]) -> None:
    colour = Image.fromarray(smooth(*size))
    for image in (colour, colour.convert("L"), colour.convert("CMYK")):
        for subsampling in (0, 1, 2) if image.mode == "RGB" else (0,):
            data = encoded(image, "JPEG", subsampling=subsampling, **options)
            opened = Image.open(io.BytesIO(data))
            expected = np.asarray(opened if image.mode != "CMYK" else opened.convert("RGB")).reshape(*size, -1)
            assert np.abs(decode(data).astype(int) - expected).max() <= 2
            assert header(data) == expected.shape


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 65)])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_lossless_files_of_all_modes_and_sizes_match_pillow(kind: str, size: tuple[int, int]) -> None:
    colour = Image.fromarray(smooth(*size))
    modes = {"PNG": "1 L P RGB", "BMP": "1 L P RGB", "GIF": "L P RGB", "TIFF": "1 L P RGB", "PPM": "1 L RGB"}
    for mode in modes.get(kind, "RGB").split():
        data = encoded(colour.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB")).reshape(*size, -1)
        np.testing.assert_array_equal(decode(data), expected)
        assert header(data) == expected.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_a_large_image_is_converted_in_strips_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = Image.fromarray(smooth(61, 47))
    if mode in ("I;16", "I", "F"):
        values = np.asarray(colour.convert("L"))
        image = Image.fromarray({"I;16": np.uint16(257), "I": np.int32(257), "F": np.float32(1 / 255)}[mode] * values)
    else:
        image = colour.convert(mode)
    options = {"transparency": 3} if mode in ("P", "L") else {}
    data = encoded(image, "PNG" if mode in ("1", "L", "LA", "P", "RGBA") else "TIFF", **options)
    whole = decode(data)
    for pixels in (1, 47, 47 * 7, 47 * 60):
        monkeypatch.setattr("byol.data.decode._STRIP_PIXELS", pixels)
        np.testing.assert_array_equal(decode(data), whole)


def test_what_is_not_a_plain_jpeg_is_left_to_pillow() -> None:
    assert jpeg_header(encoded(noise(), "JPEG", exif=exif(6))) == (64, 48, 3, False)
    cmyk = encoded(Image.fromarray(noise()).convert("CMYK"), "JPEG")
    assert jpeg_header(cmyk) is None
    assert decode(cmyk).shape == (64, 48, 3)
    whole = encoded(noise(), "JPEG")
    assert jpeg_header(encoded(noise())) is None
    assert all(jpeg_header(whole[:cut]) is None for cut in (0, 2, 3, 20))


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("size", [(240, 320), (243, 317)])
def test_a_jpeg_at_reduced_size_is_the_mean_of_its_pixels(reduce: int, size: tuple[int, int]) -> None:
    data = encoded(smooth(*size), "JPEG", quality=95, subsampling=0)
    small, full = decode(data, reduce=reduce), decode(data).astype(float)
    assert small.shape[:2] == tuple(-(-side // reduce) for side in size)
    h, w = (side // reduce for side in size)
    means = full[: h * reduce, : w * reduce].reshape(h, reduce, w, reduce, 3).mean((1, 3))
    assert np.abs(small[:h, :w] - means).max() < 2.5


def test_a_reduced_jpeg_is_upright_and_other_formats_keep_their_size() -> None:
    data = encoded(smooth(240, 320), "JPEG", exif=exif(6), quality=95)
    assert header(data)[:2] == (320, 240)
    assert decode(data, reduce=4).shape == (80, 60, 3)
    assert np.abs(decode(data, reduce=4).astype(float) - decode(data)[2::4, 2::4]).mean() < 6
    np.testing.assert_array_equal(decode(encoded(noise()), reduce=4), noise())


def test_a_damaged_jpeg_that_pillow_forgives_is_not_lost() -> None:
    data = encoded(smooth(64, 80), "JPEG")
    middle = data.index(b"\xff\xda") + 200
    damaged = data[:middle] + b"\xff\xd0" + data[middle:]  # a marker where none belongs
    assert decode(damaged).shape == (64, 80, 3)
