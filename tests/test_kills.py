"""A run that is killed, at any moment and at each place where it writes, ends as one that was left alone."""

import json
import random
import shutil
from types import SimpleNamespace

import kill_server
import numpy as np
import pytest
from PIL import Image

from byol import checkpoint
from byol.names import METHODS, method_arguments
from byol.run import Run

SMALL = {"hidden": 16, "out": 8, "width": 16, "bottleneck": 8, "queue": 64, "negatives": 16}


def of_method(name):
    arguments = {known: size for known, size in SMALL.items() if known in method_arguments(name)}
    return {"method": name, "method_args": arguments, "optimizer": None, "base_lr": None}


PLAIN = {"method_args": {"hidden": 16, "out": 8}}
CHANGES = {
    "plain": PLAIN,
    "accumulated": {**PLAIN, "accumulate": 2, "optimizer": "adamw", "base_lr": 0.01, "hold_out": 0.2},
    "workers": {**PLAIN, "workers": 2, "steps": 8, "image_size": 140, "batch_size": 4},
    **{name: of_method(name) for name in METHODS},
}
KINDS = list(CHANGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 images too large to live in memory, one of them cut short."""
    place = tmp_path_factory.mktemp("large")
    generator = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(generator.integers(0, 256, (150, 160 + i, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    whole = (place / "05.png").read_bytes()
    (place / "05.png").write_bytes(whole[: len(whole) // 2])
    return place


@pytest.fixture(scope="module")
def alone(server, images, folder, tmp_path_factory):
    """The run of a kind that nothing disturbed: (its data, its directory, how long it took)."""
    place, known = tmp_path_factory.mktemp("alone"), {}

    def of(kind):
        if kind not in known:
            data = folder if kind == "workers" else images
            took = run(server, data, place / kind, CHANGES[kind])
            assert took["status"] == 0, took["stderr"]
            known[kind] = SimpleNamespace(data=data, out=place / kind, seconds=took["seconds"])
        return known[kind]

    return of


def run(server, data, out, changes, *, resume=False, point=None, count=1, after=None):
    asked = {"data": str(data), "out": str(out), "changes": changes, "resume": resume}
    return server({**asked, "point": point, "count": count, "after": after})


def lines(path):
    """What a run wrote, but for how fast it was."""
    timed = ("seconds", "images_per_second", "peak_memory_bytes")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in found]


def check_same(out, whole):
    """Every byte of the weights, every line, and nothing left over."""
    last = Run.read(whole / "run.json").total_steps
    for name in ("backbone.safetensors", "backbone.json", f"checkpoints/step-{last:09d}.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("metrics.jsonl", "skipped.jsonl"):
        assert lines(out / name) == lines(whole / name), name
    assert {p.relative_to(out) for p in out.rglob("*") if "tensorboard" not in p.parts} == {
        p.relative_to(whole) for p in whole.rglob("*") if "tensorboard" not in p.parts
    }


@pytest.mark.parametrize("moment", [*range(20), *(pytest.param(i, marks=pytest.mark.slow) for i in range(20, 200))])
def test_killed_at_any_moment(server, alone, tmp_path, moment):
    kind = KINDS[moment % len(KINDS)]
    whole, out = alone(kind), tmp_path / "run"
    generator = random.Random(moment)
    killed = {"status": 0}
    while killed["status"] == 0:  # this time it was quicker than its moment
        shutil.rmtree(out, ignore_errors=True)
        killed = run(server, whole.data, out, CHANGES[kind], after=generator.uniform(0, 1) * whole.seconds)
    assert killed["status"] == -9, killed["stderr"]
    again = run(server, whole.data, out, CHANGES[kind], resume=(out / "run.json").exists())
    assert again["status"] == 0, again["stderr"]
    check_same(out, whole.out)


@pytest.mark.parametrize("kind", ["plain", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "plain")])
@pytest.mark.parametrize("point", kill_server.POINTS)
def test_killed_where_it_writes(server, alone, tmp_path, point, kind):
    whole, out = alone(kind), tmp_path / "run"
    once = "run.json" in point or "backbone" in point or (kind == "workers" and "metrics" in point)  # in so few steps
    count = 1 if once else 4 if "prun" in point else 3
    killed = run(server, whole.data, out, CHANGES[kind], point=point, count=count)
    assert killed["status"] == -9
    if (kept := checkpoint.latest(out / "checkpoints")) is not None:  # what has its name is whole
        assert checkpoint.newest_whole(out / "checkpoints") == (kept, [])
    again = run(server, whole.data, out, CHANGES[kind], resume=(out / "run.json").exists())
    assert again["status"] == 0, again["stderr"]
    check_same(out, whole.out)
