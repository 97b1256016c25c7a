"""Damaged files of every format, by benchmarks/fuzz.py: pixels or one line, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzz

    return fuzz


@pytest.mark.parametrize("inputs", [30, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_files_give_pixels_or_are_refused(fuzz: ModuleType, inputs: int, tmp_path: Path) -> None:
    tallies, noted = fuzz.run(
        list(fuzz.FORMATS), inputs, 7, seconds=300, most_bytes=1600 << 20, save=tmp_path / "noted"
    )
    assert [outcome for outcome in noted if outcome.what != "asked"] == []
    for kind, tally in tallies.items():
        assert tally.counts.total() == inputs, kind
        # Mutations that no reader got past, or that harmed nothing, would show little.
        assert tally.counts["decoded"] and tally.counts["refused"], kind


def test_a_process_that_dies_hangs_or_takes_memory_is_noted_and_replaced(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmful = tmp_path / "harmful.py"
    harmful.write_text(
        "import os, time\n"
        "import fuzz\n"
        "def tried(kind, path):\n"
        "    number = int(path.stem)\n"
        "    if number == 1: os.abort()\n"
        "    if number == 2: time.sleep(100)\n"
        "    if number == 3: yield str(len(bytes(range(256)) * (1 << 20)))\n"
        "    if number == 4: raise KeyError('foreign')\n"
        "    yield 'decoded'\n"
        "def work(*arguments):\n"
        "    fuzz.tried = tried\n"
        "    own_work(*arguments)\n"
        "own_work = fuzz._work\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import harmful as changed

    monkeypatch.setattr(fuzz, "_work", changed.work)
    tallies, noted = fuzz.run(["png"], 6, 0, seconds=3, most_bytes=128 << 20, save=tmp_path / "noted")
    assert [(each.number, each.what) for each in noted] == [(1, "crash"), (2, "hang"), (3, "memory"), (4, "foreign")]
    assert tallies["png"].counts["decoded"] == 2
    assert (tmp_path / "noted" / "png-0-1-crash.png").read_bytes() == fuzz.made("png", 1, 0)
