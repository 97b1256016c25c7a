"""The page: one file that needs no other, and asks nothing of any network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from byol.files import write_text
from byol.report import gallery
from byol.report.facts import CURVES, MOST_SKIPPED, Facts, percent, read

REPORT = "report.html"
REFRESH_SECONDS = 30
PARTS = Path(__file__).with_name("page")


def write_page(directories: Sequence[Path], out: Path, *, refresh: bool = False) -> Path:
    """Write one page of one run, or of several side by side. refresh: it loads itself anew while a run goes on.

    ValueError or FileNotFoundError, in one line, where a directory is no run or its files are damaged.
    """
    from jinja2 import UndefinedError

    runs = [read(directory) for directory in directories]
    try:
        text = render(runs, refresh=refresh)
    except (KeyError, TypeError, IndexError, AttributeError, UndefinedError) as error:
        named = ", ".join(map(str, directories))
        raise ValueError(
            f"{named}: a file of the run lacks what belongs in it ({error}); restore it from a copy"
        ) from error
    write_text(out, text)
    return out


def render(runs: list[Facts], *, refresh: bool = False) -> str:
    """The page's HTML."""
    most = gallery.SAMPLE // len(runs)
    shown = [
        {
            "facts": run,
            "key": f"run{i}",
            "health": run.health(),
            "quality": run.quality(),
            "neighbours": [] if run.embedding is None else gallery.neighbour_rows(run.embedding),
            "map": None if run.embedding is None else _map(run, most),
            "confusion": _confusion(run),
            "efficiency": _efficiency(run),
        }
        for i, run in enumerate(runs)
    ]
    return template("report.html").render(
        runs=shown,
        charts=_charts(runs),
        compared=_compared(runs) if len(runs) > 1 else [],
        differing=_differing(runs) if len(runs) > 1 else [],
        refresh=REFRESH_SECONDS if refresh else 0,
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        most_skipped=MOST_SKIPPED,
        has_times=any(line.get("seconds") for run in runs for line in run.lines),
    )


@cache
def template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json"] = script_json
    environment.filters["code"] = _with_code
    environment.globals["part"] = lambda part: (PARTS / part).read_text("utf-8")
    return environment.get_template(name)


def _with_code(text: str) -> Any:
    """What stands between backticks as code."""
    from markupsafe import Markup

    pieces = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(pieces))


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _charts(runs: list[Facts]) -> list[dict[str, Any]]:
    charts = []
    for title, how in CURVES:
        lines = list[dict[str, Any]]()
        for i, run in enumerate(runs):
            # Of several runs one line each: the first that a run has.
            names = how["lines"] if len(runs) == 1 else how["lines"][:1]
            for j, (name, short) in enumerate(names):
                if points := run.curve(name):
                    of_run = len(runs) > 1
                    lines.append(
                        {"points": points, "short": run.name if of_run else short, "colour": (i if of_run else j) % 8}
                    )
        if lines:
            data: dict[str, Any] = {key: how[key] for key in ("zero", "percent", "marks") if key in how}
            charts.append({"title": title, "about": how["about"], "data": {**data, "time": True, "lines": lines}})
    return charts


def _efficiency(run: Facts) -> dict[str, Any] | None:
    curves = run.label_curves()
    if not curves:
        return None
    lines = [{"points": points, "short": name, "colour": i % 8} for i, (name, points) in enumerate(curves.items())]
    return {"labels": True, "percent": True, "lines": lines}


def _map(run: Facts, most: int) -> dict[str, Any] | None:
    """What map.js draws, and the legend."""
    found = run.embedding
    if found is None or found.positions is None:
        return None
    rows = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
    of, names, kind = gallery.groups(found)
    picture, columns = gallery.sprite(found, rows)
    about = found.about.get("map") or {}
    return {
        "kind": kind,
        "about": about,
        "names": names,
        "num": len(rows),
        "data": {
            "xy": base64.b64encode(found.positions[rows].astype("<f4").tobytes()).decode(),
            "group": of[rows].tolist(),
            "names": names,
            "paths": [found.path(int(row)) for row in rows],
            "sprite": picture,
            "columns": columns,
            "side": gallery.SPRITE_PX,
        },
    }


def _confusion(run: Facts) -> dict[str, Any] | None:
    found = (run.evaluation or {}).get("confusion")
    if not found:
        return None
    counts, classes = np.array(found["counts"]), found["classes"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = [divmod(int(cell), len(counts)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:10]]
    pairs = [(classes[a], classes[b], int(wrong[a, b]), int(counts[a].sum())) for a, b in order if wrong[a, b]]
    return {
        "row": found["row"],
        "classes": classes,
        "counts": counts.tolist(),
        "shares": shares.tolist(),
        "pairs": pairs,
    }


def _compared(runs: list[Facts]) -> list[tuple[str, list[str]]]:
    """Measures, and what each run has of them."""

    def of(run: Facts, name: str) -> str:
        points = run.curve(name)
        return f"{points[-1][2]:.3g}" if points else ""

    rows: list[tuple[str, list[str]]] = [
        ("method", [run.run.method if run.run else "" for run in runs]),
        ("backbone", [run.run.backbone if run.run else "" for run in runs]),
        ("data", [run.run.data if run.run else "" for run in runs]),
        ("steps", [f"{run.step:,}" for run in runs]),
        ("health", [health.word if (health := run.health()) else "" for run in runs]),
        ("loss", [of(run, "loss") for run in runs]),
        ("effective rank", [of(run, "held_out/effective_rank") for run in runs]),
        ("kNN while training", [percent(p[-1][2]) if (p := run.curve("held_out/knn")) else "" for run in runs]),
    ]
    protocols = dict.fromkeys(row["name"] for run in runs for row in run.results())
    for protocol in protocols:
        cells = []
        for run in runs:
            own = next(
                (c for r in run.results() if r["name"] == protocol for c in r["columns"] if c[0] == "backbone"), None
            )
            cells.append("" if own is None else f"{percent(own[1])} ({own[2] * 100:.1f} to {own[3] * 100:.1f})")
        rows.append((protocol, cells))
    return [(name, cells) for name, cells in rows if any(cells)]


def _differing(runs: list[Facts]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs."""
    each = [dict(run.settings()) for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings)
    rows = [(name, [settings.get(name, "") for settings in each]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
