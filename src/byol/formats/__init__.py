"""The backbone as files of other ecosystems, each checked against the encoder once it is written, with a card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol import names
from byol.export import check_plain_timm, digest
from byol.files import TEMPORARY, is_free, naming, read_json, sync, write_json, write_text
from byol.formats.backbone import Backbone, Form, NoSuchArchitecture, read
from byol.formats.card import card
from byol.formats.graph import write_onnx, write_pt2
from byol.formats.of_timm import write_hub, write_timm
from byol.formats.of_torchvision import write_torchvision
from byol.pipeline import Observer, Silent

ABOUT = "export.json"
"""What an export says of itself; a directory that holds it may be written again."""
CARD = "README.md"
TOLERANCE = 1e-4
"""Relative difference of features in float32, above which an export is refused."""
UNDER_OTHERS_NAMES = ("timm", "huggingface", "torchvision")
"""Formats whose structure is timm's or torchvision's own, by name."""
FIRST_IMAGES, MORE_IMAGES = 1, 5
"""Numbers of images that exports are checked on: as one batch each, for batches may have any size."""

WRITERS: dict[str, Callable[[Backbone, Path], Form]] = {
    "timm": write_timm,
    "huggingface": write_hub,
    "torchvision": write_torchvision,
    "onnx": write_onnx,
    "pt2": write_pt2,
}


def export(
    run_directory: str | Path,
    format: str,  # noqa: A002 (as the option is called)
    out: str | Path | None = None,
    *,
    licence: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Write a run's backbone to `out` in a format of `names.FORMATS`, with a model card; returns what is there.

    Each loads without this package, and gives the encoder's features: on random images they are compared, and
    ValueError is raised where the relative difference of one image's is above TOLERANCE, with nothing written.
    out: RUN/export/FORMAT by default; ValueError where it holds anything but an earlier export of that format.
    licence: an SPDX identifier, for the card. ValueError where the format cannot hold the backbone, or needs packages
    that are not installed.
    """
    observer = observer or Silent()
    names.check_format(format)
    licence = None if licence is None else names.licence(licence)
    run_directory = Path(run_directory)
    out = run_directory / "export" / format if out is None else Path(out)
    before = _own(out, format)
    backbone = read(run_directory)
    if format in UNDER_OTHERS_NAMES:
        try:
            check_plain_timm(backbone.description)
        except ValueError as error:
            raise ValueError(f"{error}, or --format onnx or pt2") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    observer.say(f"writing the backbone as {format}, and comparing its features")
    # Beside its place, so that what fails leaves nothing there.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=TEMPORARY) as name:
        new = Path(name)
        try:
            form = WRITERS[format](backbone, new)
        except NoSuchArchitecture as error:
            raise ValueError(f"{error}; use --format {_others(format)}") from None
        except OSError:
            raise
        except Exception as error:  # exporters raise nearly anything on a network that they cannot follow
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            name = backbone.encoder.spec.name
            raise ValueError(f"{format} cannot hold {name}: {reason}; use --format {_others(format)}") from error
        difference = _difference(backbone, form.features)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"as {format} the backbone gives other features (relative difference {difference:.1e}); use --format "
                f"{_others(format)}"
            )
        write_text(new / CARD, card(run_directory, backbone, form, format, difference, licence))
        files = sorted(path.name for path in new.iterdir())
        about: dict[str, Any] = {
            "format": format,
            "files": [*files, ABOUT],
            "weights": digest(run_directory),
            "relative_difference": difference,
            "licence": licence,
            "byol": metadata.version("byol"),
        }
        write_json(new / ABOUT, about)
        _move(new, out, about["files"], before)
    return {"out": str(out), "feature_dim": backbone.encoder.dim, "card": str(out / CARD), "load": form.code, **about}


def _own(out: Path, kind: str) -> list[str]:
    """The files of an earlier export there. ValueError where it holds anything else."""
    if (out / ABOUT).is_file():
        about = read_json(out / ABOUT)
        files = about.get("files")
        if about.get("format") != kind:
            raise ValueError(f"{out} holds an export of another format; choose another --out")
        if not isinstance(files, list) or not all(isinstance(f, str) and Path(f).name == f for f in files):
            raise ValueError(f"{out / ABOUT} is damaged; remove {out} or choose another --out")
        return files
    if not is_free(out):
        raise ValueError(f"{out} exists already and holds no {ABOUT}; choose another --out")
    return []


def _move(new: Path, out: Path, files: list[str], before: list[str]) -> None:
    """Give files their names, each whole. ABOUT goes first and comes last: without it nothing there is trusted."""
    with naming(out):
        out.mkdir(exist_ok=True)
        if before:
            write_json(out / ABOUT, {**read_json(out / ABOUT), "files": sorted({*before, *files})})
        for name in files:
            sync(new / name)
            (new / name).replace(out / name)
        for name in {*before} - {*files}:
            (out / name).unlink(missing_ok=True)
    sync(out)


def _others(kind: str) -> str:
    """Formats that hold every backbone and can be written here."""
    found = [f for f in names.FORMATS if f not in (kind, "torchvision") and not names.missing_packages(f)]
    return ", ".join(found[:-1]) + f" or {found[-1]}"


def _difference(backbone: Backbone, features: Callable[[Tensor], Tensor]) -> float:
    """The largest relative difference, |a - b| / |b|, of an image's features a by what was written, b the encoder's."""
    largest = 0.0
    for seed, count in enumerate((FIRST_IMAGES, MORE_IMAGES)):
        images = backbone.some_images(count, seed)
        expected = backbone.features(images)
        if not expected.isfinite().all():
            raise ValueError("the backbone's features are not finite numbers; export one whose training went well")
        with torch.no_grad():
            found = features(images)
        if found.shape != expected.shape:
            return float("inf")
        apart, size = (found - expected).norm(dim=1), expected.norm(dim=1)
        largest = max(largest, float(torch.where(apart == 0, 0.0, apart / size).nan_to_num(torch.inf).max()))
    return largest
