"""Files made to do harm: each is refused or skipped in one short line, in little memory, and what lies beside it stays.

They are read in one process of their own, whose peak of memory is known, and which may be ended.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from byol.data.open import open_source
from byol.data.source import DataError

SIDE = 100_000
MOST_BYTES = 900 << 20
"""Beyond what the imports take; the smallest of the bombs would take twice as much."""

READER = """
import faulthandler, json, os, resource, sys
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)
import pyarrow.parquet, tifffile
from byol.data.labels import with_groups, with_labels
from byol.data.open import open_source
from byol.machine import process_memory
before = process_memory()
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # the machine's, where a bomb goes off
for line in sys.stdin:
    path, options, labels = json.loads(line)
    answer = {"said": None, "read": 0, "skipped": {}, "images": 0}
    groups = options.pop("groups", None)
    try:
        source = open_source(os.fsdecode(bytes.fromhex(path)), **options)
        if labels:
            source = with_labels(source, labels)
        if groups:
            source = with_groups(source, groups)
        answer["skipped"] = {name: why for _, name, why in source.skipped}
        answer["images"] = len(source)
        for i in source.ids.tolist():
            try:
                source.values(i) if source.deep else source.read(i)
                answer["read"] += 1
            except ValueError as error:
                answer["skipped"][source.name_of(i)] = str(error)
    except Exception as error:
        answer["said"] = str(error)
        answer["kind"] = type(error).__name__
    answer["bytes"] = process_memory() - before
    print(json.dumps(answer), flush=True)
"""


def asked(
    tmp_path: Path, *cases: Path, options: dict[str, Any] | None = None, labels: tuple[Path, ...] = ()
) -> list[Any]:
    """What a process says of each path, or of one path with each of some labels files."""
    both = [(path, None) for path in cases] if not labels else [(cases[0], str(each)) for each in labels]
    lines = "".join(json.dumps([os.fsencode(path).hex(), options or {}, each]) + "\n" for path, each in both)
    environment = {**os.environ, "BYOL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", READER], input=lines, capture_output=True, text=True, env=environment, timeout=100
    )
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(answers) == len(both), found.stderr
    for answer in answers:
        for text in (answer["said"] or "", *answer["skipped"], *answer["skipped"].values()):
            assert text.isprintable() and len(text) < 600, text
        assert answer["said"] is None or answer["kind"] == "DataError", answer
        assert answer["bytes"] < MOST_BYTES, answer
    return answers


def encoded(side: int = 8, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 77, np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def put(folder: Path, **files: bytes) -> Path:
    """Files, and two images that can be used; `_` in a name stands for its dot."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, data in {"good_png": encoded(), "good_jpg": encoded(8, "JPEG"), **files}.items():
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(data)
    return folder


def sparse(path: Path, beginning: bytes, size: int = 64 << 30) -> None:
    with path.open("wb") as stream:
        stream.write(beginning)
        stream.truncate(size)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(*entries: tuple[int, int, int, int], next_at: int = 0) -> bytes:
    """A classic TIFF of one directory. entries: (tag, type, count, value)."""
    lines = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + lines + struct.pack("<I", next_at) + bytes(200)


def tiff_of(width: int, height: int, bits: int = 8, samples: int = 1, **more: Any) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1)]
    return tiff(*entries, (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, 100), **more)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(16, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def npy_of(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def scans(num: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(64, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num + b"\xff\xd9"


def hidden_frame() -> bytes:
    """A JPEG in a segment that readers without fill bytes (0xFF before a marker) step over, in front of a small one."""
    small, large = encoded(16, "JPEG"), jpeg_of(20_000, 20_000)
    tables = large[large.index(b"\xff\xdb") :]
    return small[:2] + (b"\xff" + tables).ljust(2 + 0xDB00, b"\0") + small[2:]


def run_length_bitmap(width: int, height: int) -> bytes:
    pixels = b"\0\2\xff\xff" * 100 + b"\0\1"  # each moves 255 rows down
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + header + bytes(1024) + pixels


def test_images_that_say_absurd_sizes_are_skipped_before_their_pixels_are_made(tmp_path: Path) -> None:
    ihdr = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + (SIDE - 1).to_bytes(3, "little") * 2
    tall = struct.pack(">IIBBBBB", 1, 100_000_000, 8, 0, 0, 0, 0)
    start, rest = b"\x89PNG\r\n\x1a\n", chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    folder = put(
        tmp_path / "images",
        a_png=start + chunk(b"IHDR", ihdr) + rest,
        a_gif=b"GIF89a"
        + struct.pack("<HH", 65_535, 65_535)
        + b"\x80\0\0"
        + bytes(6)
        + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        a_bmp=b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, *[0] * 6),
        a_ppm=f"P6 {SIDE} {SIDE} 255\n".encode() + bytes(100),
        a_pgm=f"P5 {SIDE} {SIDE} 65535\n".encode() + bytes(100),
        a_webp=b"RIFF" + struct.pack("<I", 22) + b"WEBP" + canvas,
        a_jpg=jpeg_of(65_500, 65_500),
        b_jpg=hidden_frame(),
        a_tif=tiff_of(SIDE, SIDE),
        b_tif=tiff_of(SIDE, SIDE, 16),
        c_tif=tiff_of(200, 200, 16, 60_000),
        tall_png=start + chunk(b"IHDR", tall) + rest,
        a_npy=npy_of((SIDE, SIDE)) + bytes(100),
        b_npy=npy_of((8, 8), "|O") + bytes(64),
        # numpy's reader fails at these in ways of its own
        c_npy=npy_of((8, 8)).replace(b"(8, 8)", b"(8, 8 ") + bytes(64),
        d_npy=npy_of((8, 8)).replace(b"'|u1'", b"()".ljust(5)) + bytes(64),
    )
    sparse(folder / "e.npy", npy_of((SIDE, SIDE)))
    (found,) = asked(tmp_path, folder)
    assert (found["read"], found["said"]) == (2, None)
    assert len(found["skipped"]) == len(list(folder.iterdir())) - 2
    too_many = {name for name, why in found["skipped"].items() if "too many pixels" in why}
    assert too_many >= {f"a.{ending}" for ending in ("png", "gif", "bmp", "ppm", "pgm", "jpg", "tif")}
    assert too_many >= {"b.jpg", "b.tif", "c.tif", "e.npy"}
    assert "side" in found["skipped"]["tall.png"]
    assert "too large for memory" not in str(found["skipped"])


def test_images_that_cost_time_or_memory_beyond_their_size_are_skipped(tmp_path: Path) -> None:
    listed = tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 1 << 31, 8), (279, 4, 1 << 31, 8))
    folder = put(
        tmp_path / "images",
        scans_jpg=scans(1000),
        chunks_png=encoded()[:-12] + chunk(b"teSt", b"") * 300_000 + chunk(b"IEND", b""),
        moves_bmp=run_length_bitmap(1_000_000, 60),
        rows_bmp=run_length_bitmap(1, 60_000_000),
        circle_tif=tiff_of(8, 8, 16, next_at=8),
        listed_tif=listed,
    )
    for name, beginning in {"jpg": b"\xff\xd8\xff\xe0", "webp": b"RIFF\xff\xff\xff\x7fWEBP", "tif": listed}.items():
        sparse(folder / f"sparse.{name}", beginning)
    sparse(folder / "nothing.png", b"")
    (found,) = asked(tmp_path, folder)
    # Of the circle, Pillow reads the first page.
    assert (found["read"], found["said"]) == (2 + 1, None)
    reasons = {
        "scans.jpg": "scans",
        "chunks.png": "chunks",
        "moves.bmp": "run lengths",
        "rows.bmp": "side",
        "listed.tif": "without measure",
        "sparse.jpg": "too large",
        "sparse.webp": "too large",
        "sparse.tif": "without measure",
        "nothing.png": "not an image",
    }
    assert found["skipped"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found["skipped"][name], (name, found["skipped"][name])


def test_an_ordinary_progressive_jpeg_and_run_length_bitmap_are_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "images", some_jpg=scans(20), few_bmp=run_length_bitmap(8, 8))
    (found,) = asked(tmp_path, folder)
    assert (found["read"], found["skipped"]) == (4, {})


def test_a_tiff_names_no_other_file(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for i in range(2):
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels + i)
    os.mkfifo(tmp_path / "pipe.tif")
    plane = f'<TiffData FirstC="0" IFD="0"><UUID FileName="{tmp_path}/pipe.tif">urn:uuid:other</UUID></TiffData>'
    about = f"""<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:own">
        <Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="8" SizeC="1"
        SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{plane}</Pixels></Image></OME>"""
    tifffile.imwrite(tmp_path / "names.tif", pixels, description=about, metadata=None)
    (found,) = asked(tmp_path, tmp_path)  # the pipe would never answer
    assert (found["read"], found["said"]) == (3, None)


def test_what_is_no_file_and_names_of_any_kind_leave_the_rest_of_a_folder_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path / "images")
    outside = put(tmp_path / "outside")
    os.mkfifo(folder / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(folder)  # the address of a socket is short
    server.bind("socket.png")
    monkeypatch.undo()
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "again").symlink_to(".")
    (folder / "linked.png").symlink_to(outside / "good.png")
    (folder / "linked").symlink_to(outside)
    for name in (
        b"new\nline.png",
        b"\xff\xfe.png",
        b"\x1b[31mred\x07.png",
        b"x" * 251 + b".png",
        "\u202egnp.exe".encode(),
    ):
        (folder / os.fsdecode(name)).write_bytes(encoded() if name.endswith(b".png") else b"no image")
    (folder / os.fsdecode(b"\xff\x1b]0;title\x07.jpg")).write_bytes(b"no image")
    (found,) = asked(tmp_path, folder)
    server.close()
    # Links are followed, also out of the folder; what is neither file nor folder is passed over.
    assert (found["read"], found["said"]) == (2 + 1 + 2 + 4, None)
    assert found["skipped"].pop("one.png") == found["skipped"].pop("two.png") == "too many levels of symbolic links"
    assert found["skipped"].pop("gone.png") == "the file is missing"
    assert sorted(found["skipped"].values()) == ["not an image file name", "not an image in a known format"]


@pytest.mark.parametrize("depth", [2500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_folders_deeper_than_any_path_are_skipped(tmp_path: Path, depth: int) -> None:
    folder = put(tmp_path / "images")
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        at, above = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(above)
    os.close(at)
    with_table = put(tmp_path / "table")
    (with_table / "deep").symlink_to(folder)
    (with_table / "a.tar").write_bytes(b"")
    try:
        found, refused = asked(tmp_path, folder, with_table)
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)
    assert (found["read"], found["said"]) == (2, None)
    ((name, reason),) = found["skipped"].items()
    assert name.startswith("d/d/d") and reason == "file name too long"
    assert "holds images and .tar archives" in refused["said"]


def test_data_that_are_no_file_do_not_block(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for ending in ("tar", "npy", "parquet"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
    os.mkfifo(folder / "pipe.tar")
    put(folder / "images")
    answers = asked(tmp_path, *tmp_path.glob("pipe.*"), folder, options={"streams": True})
    assert len(answers) == 4
    for answer in answers:
        assert "not a file" in answer["said"] or "neither a file" in answer["said"]


def test_a_process_that_dies_over_a_header_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "images", bad_png=encoded())
    monkeypatch.setattr("byol.data.folder.KEEP_FROM_FILES", 1)
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("byol.data.folder.look", lambda path: os._exit(1) if "bad" in path else (8, 8, 3, 0))
    with pytest.raises(DataError, match="a process died") as caught:
        open_source(folder)
    assert str(caught.value).isprintable()


def archive(path: Path, *more: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as out:
        for i in range(4):
            more = (*more, (tarfile.TarInfo(f"{i}.png"), encoded()))
        for member, data in more:
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def with_size(path: Path, field: bytes) -> Path:
    """An archive whose second member says another size."""
    data = bytearray(archive(path).read_bytes())
    at = next(i for i in range(512, len(data), 512) if data[i + 257 : i + 262] == b"ustar")
    data[at + 124 : at + 136] = field
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    path.write_bytes(data)
    return path


def test_members_of_archives_go_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded())
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    path = archive(
        place / "names.tar",
        (member("../../../escaped.png"), encoded()),
        (member("/absolute.png"), encoded()),
        (member("link.png", tarfile.SYMTYPE, "../../secret.png"), b""),
        (member("hard.png", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (member("device.png", tarfile.CHRTYPE), b""),
        (member("pipe.png", tarfile.FIFOTYPE), b""),
        (member("folder.png", tarfile.DIRTYPE), b""),
        (member("new\nline\x1b[31m.png"), encoded()),
        (member("label.cls"), b"9" * 30),
        (member("label.png"), encoded()),
    )
    before = sorted(tmp_path.rglob("*"))
    (found,) = asked(tmp_path, path)
    assert (found["read"], found["said"], found["skipped"]) == (8, None, {})
    after = [file for file in sorted(tmp_path.rglob("*")) if tmp_path / "cache" not in (file, *file.parents)]
    assert after == before and not Path("/absolute.png").exists()


def test_archives_that_lead_back_or_ask_for_memory_are_refused(tmp_path: Path) -> None:
    back = with_size(tmp_path / "back.tar", b"\xff" * 10 + b"\xfe\x00")  # -512: the same header again
    pax = tmp_path / "pax.tar"
    ahead = member("ahead.png")
    ahead.pax_headers = {"size": "-1024"}
    archive(pax, (ahead, encoded()), form=tarfile.PAX_FORMAT)
    chained = tmp_path / "chained.tar"
    header = bytearray(with_size(tmp_path / "other.tar", b"00000000000\0").read_bytes()[:512])
    header[156] = ord("L")
    header[124:136] = b"00000000000\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    chained.write_bytes(bytes(header) * 5000)
    long = tmp_path / "long.tar"
    header[124:136] = f"{6 << 30:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    sparse(long, bytes(header), 7 << 30)
    answers = asked(tmp_path, back, pax, chained, long)
    assert all(answer["said"] for answer in answers), answers


def test_a_member_larger_than_any_image_is_skipped_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    large = member("large.png")
    large.size = 5 << 30
    with path.open("wb") as stream:
        stream.write(large.tobuf(tarfile.GNU_FORMAT))
        stream.seek(5 << 30, os.SEEK_CUR)
        stream.write(archive(tmp_path / "rest.tar").read_bytes())
    (found,) = asked(tmp_path, path)
    assert (found["read"], found["images"], found["said"]) == (4, 5, None)
    assert "too many" in found["skipped"]["large.tar row 0"]


def zip_of_zeros(path: Path, name: str, beginning: bytes, gib: int) -> Path:
    """A .npz member of so many GiB of zeros after its beginning, deflated a thousand to one."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    data, size = first + block * (64 * gib) + packer.flush(zlib.Z_FINISH), len(beginning) + (gib << 30)
    sizes = struct.pack("<HHQQ", 1, 16, size, len(data))
    encoded_name, most = name.encode(), 0xFFFFFFFF
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, 0, 8, 0, 33, 0, most, most, len(encoded_name), len(sizes))
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, 0, 8, 0, 33, 0, most, most, len(encoded_name), len(sizes), *[0] * 5
    )
    begin = len(local) + len(encoded_name) + len(sizes) + len(data)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central) + len(encoded_name) + len(sizes), begin, 0)
    path.write_bytes(local + encoded_name + sizes + data + central + encoded_name + sizes + end)
    return path


def test_arrays_are_refused_by_what_they_say_before_they_take_memory(tmp_path: Path) -> None:
    shape = (11 << 30, 1, 1)
    zeros = zip_of_zeros(tmp_path / "zeros.npz", "images.npy", npy_of(shape), 11)
    said = tmp_path / "said.npz"
    np.savez(said, images=np.zeros((2, 4, 4), np.uint8))
    data = said.read_bytes().replace(b"(2, 4, 4)}", b"(" + b"9" * 9 + b",4,4)}")
    said.write_bytes(data.replace(b" " * 8 + b"\n", b"\n", 1))
    absurd, objects, mapped = (tmp_path / f"{name}.npy" for name in ("absurd", "objects", "mapped"))
    absurd.write_bytes(npy_of((1 << 40, 100, 100)) + bytes(100))
    np.save(objects, np.array([[[{}]]] * 2, object))
    sparse(mapped, npy_of((2, 60_000, 60_000)))
    beside = zip_of_zeros(tmp_path / "beside.npz", "unused.npy", npy_of(shape), 11)
    answers = asked(tmp_path, zeros, said, absurd, objects, mapped, beside)
    for answer, words in zip(
        answers,
        ("bytes in", "not a readable", "not a readable", "not a readable", "too many pixels", "only unused"),
        strict=True,
    ):
        assert words in answer["said"]


@pytest.mark.parametrize("streams", [False, True])
def test_parquet_files_that_grow_beyond_measure_are_refused(tmp_path: Path, streams: bool) -> None:
    value = np.random.default_rng(0).bytes(1 << 20)
    indices = pa.array(np.zeros(3000, np.int32))
    table = pa.table({"image": pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.binary()))})
    pq.write_table(table, tmp_path / "dictionary.parquet", store_schema=False)
    pq.write_table(table, tmp_path / "typed.parquet")
    empty = pa.table({"image": pa.nulls(2_000_000, pa.binary())})
    pq.write_table(empty, tmp_path / "rows.parquet", row_group_size=2_000_000)
    schema = pa.schema([("image", pa.binary()), ("label", pa.struct([("a\n\x1b[31m", pa.int8())]))])
    pq.write_table(schema.empty_table(), tmp_path / "name.parquet")
    paths = [tmp_path / f"{name}.parquet" for name in ("dictionary", "typed", "rows", "name")]
    assert all(path.stat().st_size < 4 << 20 for path in paths)
    grows, typed, rows, name = asked(tmp_path, *paths, options={"streams": streams})
    assert "grows beyond" in grows["said"]
    assert "must hold encoded images" in typed["said"]
    assert "2,000,000 rows" in rows["said"]
    assert "`label` is" in name["said"]


@pytest.mark.parametrize("typed", [False, True])
def test_a_column_of_groups_takes_no_memory_beyond_measure(tmp_path: Path, typed: bool) -> None:
    sites = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array(["x" * (1 << 20)]))
    table = pa.table({"image": [encoded()] * 3000, "site": sites})
    pq.write_table(table, tmp_path / "sites.parquet", store_schema=typed)
    (found,) = asked(tmp_path, tmp_path / "sites.parquet", options={"groups": "site"})
    if typed:  # it stays one value
        assert (found["said"], found["read"]) == (None, 3000)
    else:
        assert "grows beyond" in found["said"]


def test_labels_files_without_lines_or_with_huge_fields_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "images")
    zeros, field, line, other = (tmp_path / f"{name}.csv" for name in ("zeros", "field", "line", "other"))
    sparse(zeros, b"file,label\n", 8 << 30)
    field.write_text("file,label\ngood.png," + "x" * 200_000)
    line.write_text("file,label\n" + "good.png," * 3_000_000)
    other.write_bytes(b"file,label\ngood.png,a\0b\ngood.jpg,\x1b[31m\n")
    *refused, accepted = asked(tmp_path, folder, labels=(zeros, field, line, other))
    for found, words in zip(refused, ("is longer than", "not CSV", "is longer than"), strict=True):
        assert words in found["said"]
    assert (accepted["read"], accepted["said"]) == (2, None)
