"""What benchmarks/fuzz.py reads: real pictures in every format, and mutations that know the formats."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

Bytes = bytes | bytearray
Mutation = Callable[[bytes, np.random.Generator], bytes]

FORMATS = ("jpeg", "png", "webp", "tiff", "gif", "bmp", "ppm", "npy", "npz", "parquet", "tar")
INTERESTING = (0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 511, 1000, 4096, 32767, 32768, 65535)
INTERESTING += (65536, 100_000, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
INTERESTING += ((1 << 64) - 1,)


@cache
def pictures() -> dict[str, np.ndarray]:
    """Real digits: gray, in colour (three of them, one a channel), with alpha, and of 16 bits."""
    from byol.data.arrays import digits

    images = digits()[0][::521, :, :, 0]
    gray = np.concatenate([np.concatenate(list(images[:4]), 1), np.concatenate(list(images[4:8]), 1)])[:53, :97]
    colour = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=2)
    return {
        "gray": gray,
        "colour": colour,
        "alpha": np.concatenate([colour, 255 - gray[..., None]], axis=2),
        "deep": gray.astype(np.uint16) * 257,
        "float": (gray / 255).astype(np.float32),
    }


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _parquet(**options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [encoded(np.roll(pictures()["colour"], i, axis=1), "PNG") for i in range(6)]
    labels = pa.array([0, 1, 2, 0, None, 2], pa.int64())
    struct_of = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    table = pa.table({"image": images if options.pop("flat", False) else struct_of, "label": labels})
    features = {"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=3, **options)
    return stream.getvalue()


def _tar(form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for i in range(4):
            folder = "a folder with a long name " * 5 if i == 3 else "set"
            for ending, data in (("cls", str(i % 2).encode()), ("png", encoded(pictures()["gray"], "PNG"))):
                member = tarfile.TarInfo(f"{folder}/{i:05}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@cache
def originals(kind: str) -> list[bytes]:
    p = pictures()
    gray, colour, alpha = p["gray"], p["colour"], p["alpha"]
    if kind == "jpeg":
        turned = Image.Exif()
        turned[0x0112] = 6
        return [
            encoded(gray, "JPEG"),
            *(encoded(colour, "JPEG", subsampling=s, quality=90) for s in (0, 1, 2)),
            encoded(colour, "JPEG", progressive=True),
            encoded(gray, "JPEG", progressive=True, optimize=True),
            encoded(colour, "JPEG", restart_marker_blocks=2),
            encoded(colour, "JPEG", exif=turned),
            encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"),
        ]
    if kind == "png":
        palette = Image.fromarray(colour).quantize(16)
        return [
            *(encoded(p[name], "PNG") for name in ("gray", "colour", "alpha", "deep")),
            encoded(palette, "PNG", transparency=3),
            encoded(Image.fromarray(gray > 99), "PNG"),
            encoded(colour, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        ]
    if kind == "webp":
        return [
            encoded(colour, "WEBP"),
            encoded(alpha, "WEBP"),
            encoded(colour, "WEBP", lossless=True),
            encoded(alpha, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
            encoded(Image.fromarray(colour), "WEBP", save_all=True, append_images=[Image.fromarray(colour[::-1])]),
        ]
    if kind == "tiff":
        by_pillow = [
            encoded(colour, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ]
        return [
            *by_pillow,
            encoded(alpha, "TIFF"),
            encoded(Image.fromarray(gray > 99), "TIFF", compression="group4"),
            encoded(Image.fromarray(colour).quantize(16), "TIFF"),
            _tiff(p["deep"], byteorder=">"),
            _tiff(p["float"], compression="zlib", predictor=True),
            _tiff(colour, tile=(32, 32), compression="lzw"),
            _tiff(np.stack([p["deep"]] * 5), photometric="minisblack", compression="zstd"),
            _tiff(p["deep"], bigtiff=True, compression="lzma"),
            _tiff(np.stack([gray] * 4), imagej=True),
            _tiff(colour, ome=True, compression="packbits"),
            _tiff(colour, tile=(64, 64), compression="jpeg"),
            _tiff(colour, compression="webp"),
            _tiff(colour, compression="jpeg2000"),
        ]
    if kind == "gif":
        frames = [Image.fromarray(np.roll(colour, i, 0)).quantize(32) for i in (1, 2)]
        return [
            encoded(colour, "GIF"),
            encoded(gray, "GIF", interlace=0),
            encoded(Image.fromarray(colour).quantize(8), "GIF", transparency=2),
            encoded(Image.fromarray(colour).quantize(32), "GIF", save_all=True, append_images=frames),
        ]
    if kind == "bmp":
        found = [encoded(p[name], "BMP") for name in ("gray", "colour", "alpha")]
        found.append(encoded(Image.fromarray(gray > 99), "BMP"))
        found.append(encoded(colour, "DIB"))
        rle = bytearray(found[0])  # rows of 97: absolute runs
        rows = b"".join(b"\0\x60" + bytes(row[:96]) + b"\x01" + bytes(row[96:]) + b"\0\0" for row in gray) + b"\0\1"
        begin = int.from_bytes(rle[10:14], "little")
        rle[begin:] = rows
        rle[30:34] = (1).to_bytes(4, "little")
        return [*found, bytes(rle)]
    if kind == "ppm":
        header = f"{gray.shape[1]} {gray.shape[0]}"
        plain = f"P2\n# made here\n{header}\n255\n" + " ".join(map(str, gray.ravel().tolist()))
        bits = f"P1 {header} " + " ".join(map(str, (gray > 99).astype(int).ravel().tolist()))
        pam = b"P7\nWIDTH 97\nHEIGHT 53\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + colour.tobytes()
        return [
            *(encoded(p[name], "PPM") for name in ("gray", "colour", "deep", "float")),
            plain.encode(),
            bits.encode(),
            pam,
        ]
    if kind == "npy":
        cube = np.stack([gray] * 7, axis=2)
        return [_npy(each) for each in (gray, colour, cube, p["deep"], p["float"], np.asfortranarray(colour))]
    if kind == "npz":
        stack, labels = np.stack([colour] * 4), np.arange(4)
        return [
            _npz(images=stack, labels=labels),
            _npz(x=stack[..., 0], y=labels, test_x=stack[..., 0], test_y=labels),
            _npy(stack),
            _npy(np.stack([p["float"]] * 3)),
        ]
    if kind == "parquet":
        return [
            _parquet(),
            _parquet(flat=True, compression="none"),
            _parquet(compression="zstd", use_dictionary=False, data_page_version="2.0"),
            _parquet(compression="gzip", write_page_checksum=True),
            _parquet(compression="lz4", use_byte_stream_split=False, version="1.0", store_schema=False),
            _parquet(flat=True, compression="brotli", column_encoding={"image": "DELTA_BYTE_ARRAY"}, use_dictionary=[]),
        ]
    return [_tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _number(rng: np.random.Generator, num_bytes: int) -> int:
    if rng.random() < 0.6:
        return INTERESTING[rng.integers(len(INTERESTING))] % (1 << 8 * num_bytes)
    return int.from_bytes(rng.bytes(num_bytes), "big")


def _put(data: Bytes, at: int, num_bytes: int, rng: np.random.Generator, order: str | None = None) -> bytes:
    """A number in place of what lies there."""
    chosen: Any = order or ("big", "little")[rng.integers(2)]
    number = _number(rng, num_bytes).to_bytes(num_bytes, chosen)
    return bytes(data[:at]) + number[: max(0, len(data) - at)] + bytes(data[at + num_bytes :])


def _nudge(data: Bytes, at: int, num_bytes: int, rng: np.random.Generator, order: Any) -> bytes:
    """A number near the one that lies there."""
    old = int.from_bytes(data[at : at + num_bytes], order)
    new = (old + int(rng.integers(-3, 4))) % (1 << 8 * num_bytes)
    return bytes(data[:at]) + new.to_bytes(num_bytes, order) + bytes(data[at + num_bytes :])


def plain(data: bytes, rng: np.random.Generator) -> bytes:
    """What needs no knowledge of a format."""
    if not data:
        return rng.bytes(8)
    at = int(rng.integers(len(data)))
    changed = bytearray(data)
    match rng.integers(8):
        case 0:
            for each in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
                changed[each] ^= 1 << int(rng.integers(8))
        case 1:
            for each in rng.integers(0, len(data), rng.integers(1, 5)).tolist():
                changed[each] = int(rng.integers(256))
        case 2:
            return _put(data, at, int(rng.choice([1, 2, 4, 8])), rng)
        case 3:
            return data[:at]
        case 4:
            length = int(rng.integers(1, 65))
            return data[:at] + data[at + length :]
        case 5:
            return data[:at] + rng.bytes(int(rng.integers(1, 33))) + data[at:]
        case 6:
            other, length = int(rng.integers(len(data))), int(rng.integers(1, 257))
            part = data[other : other + length]
            return data[:at] + part + data[at + len(part) :]
        case _:
            length = int(rng.integers(1, 129))
            changed[at : at + length] = bytes([rng.choice([0, 255])]) * min(length, len(data) - at)
    return bytes(changed)


def _some(parts: list[Any], rng: np.random.Generator) -> int:
    return int(rng.integers(len(parts)))


def _moved(parts: list[Any], rng: np.random.Generator) -> list[Any]:
    """One part left out, doubled, or exchanged with another."""
    if not parts:
        return parts
    i, j = _some(parts, rng), _some(parts, rng)
    match rng.integers(3):
        case 0:
            return parts[:i] + parts[i + 1 :]
        case 1:
            return parts[:i] + [parts[i]] * int(rng.choice([2, 3, 50])) + parts[i + 1 :]
        case _:
            parts = list(parts)
            parts[i], parts[j] = parts[j], parts[i]
            return parts


def jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    segments, position = list[tuple[int, bytes]](), 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append((marker, data[position + 4 : position + 2 + length]))
        position += 2 + length
        if marker == 0xDA:
            break
    scan = data[position:]
    wrong_length = -1
    if not segments:
        return plain(data, rng)
    i = _some(segments, rng)
    marker, payload = segments[i]
    match rng.integers(9):
        case 0:
            wrong_length = i
        case 1:  # tables, the frame, the scan's header
            segments[i] = marker, plain(payload, rng)
        case 2:  # dimensions, components and sampling
            frames = [n for n, (m, _) in enumerate(segments) if 0xC0 <= m <= 0xC2]
            for n in frames:
                m, body = segments[n]
                at, size = [(0, 1), (1, 2), (3, 2), (5, 1), (7, 1), (10, 1), (13, 1)][rng.integers(7)]
                segments[n] = m, _put(body, at, size, rng, "big")[: len(body)]
        case 3:
            segments = _moved(segments, rng)
        case 4:
            segments[i] = int(rng.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCC, 0xDD, 0xE1, 0xEE, 0xFF, 0x01])), payload
        case 5:  # restarts: an interval, or markers where none belong
            segments.insert(max(0, len(segments) - 1), (0xDD, _number(rng, 2).to_bytes(2, "big")))
        case 6:
            at = int(rng.integers(len(scan) or 1))
            scan = scan[:at] + bytes([0xFF, int(rng.choice([0xD0, 0xD3, 0xD9, 0xDA, 0xC4, 0xC0, 0xFF]))]) + scan[at:]
        case 7:
            scan = scan[: int(rng.integers(len(scan) or 1))] + (b"\xff\xd9" if rng.random() < 0.5 else b"")
        case _:
            scan = plain(scan, rng)
    out = bytearray(b"\xff\xd8")
    for n, (m, body) in enumerate(segments):
        length = _number(rng, 2) if n == wrong_length else len(body) + 2
        out += bytes([0xFF, m]) + (length % 65536).to_bytes(2, "big") + body
    return bytes(out) + scan


def png(data: bytes, rng: np.random.Generator) -> bytes:
    chunks, position = list[tuple[bytes, bytes]](), 8
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    if not chunks:
        return plain(data, rng)
    i, wrong_length = _some(chunks, rng), -1
    kind, body = chunks[i]
    match rng.integers(9):
        case 0:
            wrong_length = i
        case 1:
            names = [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"cHRM"]
            chunks[i] = names[rng.integers(len(names))], body
        case 2:
            at, size = [(0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)][rng.integers(7)]
            chunks[0] = chunks[0][0], _put(chunks[0][1], at, size, rng, "big")[:13]
        case 3:  # the pixels under the compression: filters, too few, too many
            pixels = [n for n, (k, _) in enumerate(chunks) if k == b"IDAT"]
            if pixels:
                n = pixels[0]
                with contextlib.suppress(zlib.error):
                    raw = plain(zlib.decompress(chunks[n][1]), rng) * int(rng.choice([1, 1, 2, 100]))
                    chunks[n] = b"IDAT", zlib.compress(raw)
        case 4:
            chunks[i] = kind, plain(body, rng)
        case 5:
            chunks = _moved(chunks, rng)
        case 6:  # compressed text, of which much comes
            text = b"a\0\0" + zlib.compress(b"\0" * int(rng.choice([10, 100_000, 5_000_000])))
            chunks.insert(i, ((b"zTXt", b"iCCP")[rng.integers(2)], text))
        case 7:
            extra = [(b"tRNS", 6), (b"PLTE", 9), (b"gAMA", 4), (b"acTL", 8), (b"fcTL", 26), (b"eXIf", 20), (b"pHYs", 9)]
            name, size = extra[rng.integers(len(extra))]
            chunks.insert(i, (name, rng.bytes(int(rng.choice([0, size - 1, size, size * 3])))))
        case _:
            n = int(rng.integers(1, 5))
            if kind == b"IDAT":  # cut into pieces
                cuts = sorted(rng.integers(0, len(body) + 1, n).tolist())
                chunks[i : i + 1] = [(b"IDAT", body[a:b]) for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    out = bytearray(data[:8])
    for n, (k, b) in enumerate(chunks):
        length = _number(rng, 4) if n == wrong_length else len(b)
        crc = zlib.crc32(k + b) if rng.random() < 0.97 else _number(rng, 4)
        out += length.to_bytes(4, "big") + k + b + crc.to_bytes(4, "big")
    return bytes(out)


def webp(data: bytes, rng: np.random.Generator) -> bytes:
    chunks, position = list[tuple[bytes, bytes]](), 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        chunks.append((data[position : position + 4], data[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    if not chunks:
        return plain(data, rng)
    i, wrong_length, riff = _some(chunks, rng), -1, None
    kind, body = chunks[i]
    match rng.integers(7):
        case 0:
            wrong_length = i
        case 1:
            riff = _number(rng, 4)
        case 2:
            names = [b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP"]
            chunks[i] = names[rng.integers(len(names))], body
        case 3:  # the header of the frame or the canvas: dimensions, flags, partitions
            at = int(rng.integers(min(len(body), 12) or 1))
            chunks[i] = kind, _put(body, at, int(rng.choice([1, 2, 3])), rng, "little")
        case 4:
            chunks[i] = kind, plain(body, rng)
        case 5:
            chunks = _moved(chunks, rng)
        case _:
            canvas = bytes([int(rng.integers(256)), 0, 0, 0]) + rng.bytes(6)
            chunks.insert(0, (b"VP8X", canvas))
    inside = b"".join(
        k + (_number(rng, 4) if n == wrong_length else len(b)).to_bytes(4, "little") + b + b"\0" * (len(b) % 2)
        for n, (k, b) in enumerate(chunks)
    )
    size = len(inside) + 4 if riff is None else riff
    return b"RIFF" + size.to_bytes(4, "little") + b"WEBP" + inside


def tiff(data: bytes, rng: np.random.Generator) -> bytes:
    order: Any = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    big = number(2, 2) == 43
    start = number(8, 8) if big else number(4, 4)
    count_bytes, entry_bytes, word = (8, 20, 8) if big else (2, 12, 4)
    num = min(number(start, count_bytes), 200)
    if not num or start + count_bytes + num * entry_bytes > len(data):
        return plain(data, rng)
    entries = [start + count_bytes + n * entry_bytes for n in range(num)]
    at = entries[rng.integers(num)]
    match rng.integers(9):
        case 0:
            tags = [254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338]
            tags += [339, 347, 32997, 34665, 700, 270, 50838, 50839]
            changed = bytearray(data)
            changed[at : at + 2] = int(tags[rng.integers(len(tags))]).to_bytes(2, order)
            return bytes(changed)
        case 1:
            changed = bytearray(data)
            changed[at + 2 : at + 4] = int(rng.integers(0, 20)).to_bytes(2, order)
            return bytes(changed)
        case 2:
            return _put(data, at + 4, word, rng, order)
        case 3 | 4:
            return _put(data, at + 4 + word, int(rng.choice([2, 4, word])), rng, order)
        case 5:
            return _nudge(data, at + 4 + word, 2 if order == "big" else word, rng, order)
        case 6:  # strip and tile offsets and sizes, where they lie apart
            lists = [e for e in entries if number(e, 2) in (273, 279, 324, 325) and number(e + 4, word) * 4 > word]
            if lists:
                place = number(lists[rng.integers(len(lists))] + 4 + word, word)
                return _put(data, place + 4 * int(rng.integers(4)), 4, rng, order)
            return _put(data, start, count_bytes, rng, order)
        case 7:  # another compression than the data's
            kinds = [
                1,
                2,
                3,
                4,
                5,
                6,
                7,
                8,
                32773,
                32946,
                34712,
                34887,
                34925,
                50000,
                50001,
                65000,
                34676,
                34892,
                52546,
            ]
            for e in entries:
                if number(e, 2) == 259:
                    changed = bytearray(data)
                    changed[e + 4 + word : e + 6 + word] = int(kinds[rng.integers(len(kinds))]).to_bytes(2, order)
                    return bytes(changed)
            return plain(data, rng)
        case _:
            return _put(data, start + count_bytes + num * entry_bytes, word, rng, order)  # the next directory


def gif(data: bytes, rng: np.random.Generator) -> bytes:
    colours = 3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    first = 13 + colours
    descriptor = data.find(b",", first)
    match rng.integers(6):
        case 0:
            return _put(data, 6 + 2 * int(rng.integers(2)), 2, rng, "little")
        case 1:
            return _put(data, 10, 1, rng)
        case 2 if descriptor > 0:
            return _put(data, descriptor + 1 + 2 * int(rng.integers(4)), 2, rng, "little")
        case 3 if descriptor > 0:
            return _put(data, descriptor + 9 + int(rng.integers(3)), 1, rng)
        case 4 if descriptor > 0:
            return data[: descriptor + 11] + plain(data[descriptor + 11 :], rng)
        case _:
            return data[:first] + plain(data[first:], rng)


def bmp(data: bytes, rng: np.random.Generator) -> bytes:
    base = 14 if data[:2] == b"BM" else 0
    match rng.integers(5):
        case 0 if base:
            return _put(data, int(rng.choice([2, 10])), 4, rng, "little")
        case 1:
            at, size = [(0, 4), (12, 2), (14, 2), (16, 4), (20, 4), (32, 4), (36, 4)][rng.integers(7)]
            return _put(data, base + at, size, rng, "little")
        case 2:
            return _put(data, base + int(rng.choice([4, 8])), 4, rng, "little")
        case 3:
            changed = bytearray(data)
            changed[base + 14 : base + 16] = int(rng.choice([1, 4, 8, 16, 24, 32])).to_bytes(2, "little")
            changed[base + 16 : base + 20] = int(rng.integers(0, 7)).to_bytes(4, "little")
            return bytes(changed)
        case _:
            return data[: base + 40] + plain(data[base + 40 :], rng)


def ppm(data: bytes, rng: np.random.Generator) -> bytes:
    head, rest = data[:60], data[60:]
    words = head.split(b" ") if rng.random() < 0.3 else head.split(b"\n")
    i = _some(words, rng)
    match rng.integers(6):
        case 0:
            magics = [b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF", b"Py", b"P0"]
            return magics[rng.integers(len(magics))] + data[2:]
        case 1:
            words[i] = str(_number(rng, int(rng.choice([1, 2, 4, 8])))).encode()
        case 2:
            words[i] = b"-" + words[i]
        case 3:
            words[i] = b"#" * int(rng.choice([1, 1000])) + words[i]
        case 4:
            words[i] = [b"nan", b"1e9", b"0x10", b"", b"+5", b"\xff", b"9" * 5000][rng.integers(7)]
        case _:
            return plain(data, rng)
    return (b" " if b" " in words[0] else b"\n").join(words) + rest


def npy(data: bytes, rng: np.random.Generator) -> bytes:
    if data[:6] != b"\x93NUMPY":
        return plain(data, rng)
    length = int.from_bytes(data[8:10], "little")
    text, rest = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    fields = {
        "descr": ["'|O'", "'<U9999'", "'<f8'", "'>i8'", "'|b1'", "'<c16'", "[('a', '|O')]", "'<M8[s]'", "'|V7'", "()"],
        "fortran_order": ["True", "1", "None", "'x'"],
        "shape": ["()", "(0,)", "(-1, 5)", "(1e9,)", "(10**9, 10**9)", "(53, 97)", "(4294967296, 4294967296)"],
    }
    fields["shape"] += [
        "(100000, 100000)",
        "(100000, 100000, 3)",
        "(53, 97, 1000000)",
        "(" * 900,
        "(2, 2)",
        "(5, 1, 1)",
    ]
    match rng.integers(7):
        case 0 | 1 | 2:
            name = list(fields)[rng.integers(3)]
            value = fields[name][rng.integers(len(fields[name]))]
            text = re.sub(rf"'{name}': ('[^']*'|\([^)]*\)|\w+)", lambda _: f"'{name}': {value}", text, count=1)
        case 3:
            return _put(data, 6 + int(rng.integers(2)), 1, rng)
        case 4:
            return _put(data, 8, 2, rng, "little")
        case 5:
            text = plain(text.encode("latin-1"), rng).decode("latin-1")
        case _:
            return plain(data, rng)
    encoded_text = text.encode("latin-1")
    return data[:8] + (len(encoded_text) % 65536).to_bytes(2, "little") + encoded_text + rest


def npz(data: bytes, rng: np.random.Generator) -> bytes:
    if data[:2] != b"PK":
        return npy(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
            infos = archive.infolist()
    except Exception:
        return plain(data, rng)
    match rng.integers(5):
        case 0:
            name = list(members)[rng.integers(len(members))]
            members[name] = npy(members[name], rng)
        case 1:
            name = list(members)[rng.integers(len(members))]
            names = ["images.npy", "x.npy", "../images.npy", "/etc/x.npy", "images", "labels.npy", "é.npy", "a b.npy"]
            members[names[rng.integers(len(names))]] = members.pop(name)
        case 2:  # the directory's fields: method, CRC, sizes, offsets
            central = data.find(b"PK\x01\x02")
            at, size = [(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)][rng.integers(8)]
            return _put(data, central + at, size, rng, "little")
        case 3:  # a member's own header
            begin = infos[_some(infos, rng)].header_offset
            at, size = [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)][rng.integers(7)]
            return _put(data, begin + at, size, rng, "little")
        case _:
            return plain(data, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return stream.getvalue()


def parquet(data: bytes, rng: np.random.Generator) -> bytes:
    length = int.from_bytes(data[-8:-4], "little")
    begin = len(data) - 8 - length
    if begin <= 4 or rng.random() < 0.1:
        return plain(data, rng)
    body, footer = data[:begin], data[begin:-8]
    match rng.integers(6):
        case 0:
            return _put(data, len(data) - 8, 4, rng, "little")
        case 1 | 2:
            footer = plain(footer, rng)
        case 3:  # the schema as Arrow wrote it, in the footer as base64 of a flatbuffer
            at = footer.find(b"ARROW:schema")
            if at > 0:
                text_at = footer.find(b"/////", at)
                text = footer[text_at : text_at + 4 * (len(footer[text_at:]) // 8)]
                with contextlib.suppress(ValueError):
                    raw = bytearray(base64.b64decode(text))
                    for each in rng.integers(8, len(raw), 4).tolist():
                        raw[each] = int(rng.choice([0, 1, 255, raw[each] ^ 1, raw[each] ^ 4]))
                    footer = footer.replace(text, base64.b64encode(bytes(raw))[: len(text)])
        case 4:  # headers of pages
            import pyarrow.parquet as pq

            with contextlib.suppress(Exception):
                found = pq.ParquetFile(io.BytesIO(data)).metadata
                column = found.row_group(int(rng.integers(found.num_row_groups))).column(
                    int(rng.integers(found.num_columns))
                )
                at = column.dictionary_page_offset or column.data_page_offset
                at += int(rng.integers(30))
                body = _put(body, at, int(rng.choice([1, 2, 5])), rng)
        case _:
            body = plain(body, rng)
    return body + footer + len(footer).to_bytes(4, "little") + data[-4:]


def tar(data: bytes, rng: np.random.Generator) -> bytes:
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers or rng.random() < 0.1:
        return plain(data, rng)
    at = headers[_some(headers, rng)]
    changed = bytearray(data)
    match rng.integers(8):
        case 0:
            changed[at + 156] = b"01234567xgLKSVDMN\0"[rng.integers(18)]
        case 1:
            size = _number(rng, int(rng.choice([1, 2, 4]))) % 8**11
            changed[at + 124 : at + 136] = f"{size:011o}\0".encode()
        case 2:  # base 256, also below zero
            sign = b"\x80" if rng.random() < 0.5 else b"\xff"
            changed[at + 124 : at + 136] = sign + int(-_number(rng, 4) % (1 << 88)).to_bytes(11, "big")
        case 3:
            names = [
                b"../../x.png",
                b"/etc/x.png",
                b"\xff\xfe.png",
                b"a\nb.png",
                b"\x1b[31m.png",
                b"x" * 99,
                b".png",
                b"",
            ]
            changed[at : at + 100] = names[rng.integers(len(names))].ljust(100, b"\0")
        case 4:
            field_at, size = [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (157, 100), (345, 155)][
                rng.integers(7)
            ]
            changed[at + field_at : at + field_at + size] = rng.bytes(size)
        case 5:  # what a pax header or a long name says
            changed[at + 512 : at + 1024] = plain(bytes(changed[at + 512 : at + 1024]), rng)[:512].ljust(512, b"\0")
        case 6:
            keys = [b"size", b"path", b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size", b"hdrcharset", b"uid"]
            values = [b"-1", b"99999999999999", b"nan", b"1,2,3", b"../x.png", b"\xff", b"BINARY", b"", b"1" * 400]
            record = b" " + keys[rng.integers(len(keys))] + b"=" + values[rng.integers(len(values))] + b"\n"
            length = len(record) + len(str(len(record) + 3))
            record = str(length if rng.random() < 0.8 else _number(rng, 4)).encode() + record
            record = record[:512]
            header = bytearray(changed[at : at + 512])
            header[156] = ord("x") if rng.random() < 0.8 else ord("g")
            header[124:136] = f"{len(record):011o}\0".encode()
            changed[at:at] = _summed(header) + record.ljust(512, b"\0")
            return bytes(changed)
        case _:
            return plain(data, rng)
    changed[at : at + 512] = _summed(changed[at : at + 512])
    return bytes(changed)


def _summed(header: bytearray) -> bytearray:
    """A header whose checksum is right."""
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return header


STRUCTURED: dict[str, Mutation] = {
    each.__name__: each for each in (jpeg, png, webp, tiff, gif, bmp, ppm, npy, npz, parquet, tar)
}


def made(kind: str, number: int, seed: int) -> bytes:
    """Input `number` of a format."""
    rng = np.random.default_rng([seed, FORMATS.index(kind), number])
    whole = originals(kind)
    data = whole[rng.integers(len(whole))]
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        data = (STRUCTURED[kind] if rng.random() < 0.8 else plain)(data, rng)
    return data
