"""A run of two processes is the run of one: the same views, bit for bit, and the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hung_run
import numpy as np
import pytest
import torch
import two_runs
from PIL import Image
from safetensors.torch import load_file

from byol.checkpoint import all_of, step_of


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """(what one process found, what each of two found, the directories of their runs)."""
    place = tmp_path_factory.mktemp("processes")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(place / "arrays.npz", images=images, labels=np.arange(60) % 3)
    (place / "folder").mkdir()
    for i in range(30):
        pixels = generator.integers(0, 256, (100 + i, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "folder" / f"{i:02}.png")
    whole = (place / "folder" / "05.png").read_bytes()
    (place / "folder" / "05.png").write_bytes(whole[: len(whole) // 2])
    data = (str(place / "arrays.npz"), str(place / "folder"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", two_runs.__file__, *data]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (place / "two").mkdir()
    two = subprocess.Popen([*command, str(place / "two")], env=environment, stderr=subprocess.PIPE, text=True)
    (place / "one").mkdir()
    two_runs.work(*data, str(place / "one"))
    _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    found = [json.loads((place / "two" / f"seen{rank}.json").read_text()) for rank in range(2)]
    return json.loads((place / "one" / "seen0.json").read_text()), found, place


@pytest.mark.parametrize("kind", ["exact", "decoded"])
def test_two_processes_see_the_views_of_one_bit_for_bit(ends, kind):
    one, two, _ = ends
    trained = [each[kind] for each in two]
    assert len(trained[0]) == len(trained[1]) == len(one[kind]) / 2 > 20
    assert sorted(trained[0] + trained[1]) == sorted(one[kind])


def test_every_weight_is_that_of_one_process(ends):
    """In float64: what one ulp of difference grew to in 50 steps of LARS. 1e-11 is for biases before a batch norm,
    whose gradient is zero but for rounding."""
    *_, place = ends
    one, two = (load_file(place / n / "exact/checkpoints/step-000000050.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(one) > 100
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-9, atol=1e-11), name


def test_losses_and_probes_are_those_of_one_process_and_written_once(ends):
    *_, place = ends
    lines = [
        [json.loads(line) for line in (place / n / "exact/metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    for one, two in zip(*lines, strict=True):
        assert one.keys() - {"peak_memory_bytes"} == two.keys() - {"peak_memory_bytes"}
        for name in one.keys() - {"seconds", "images_per_second", "peak_memory_bytes"}:
            assert one[name] == (two[name] if isinstance(one[name], str) else pytest.approx(two[name], rel=1e-5)), name


def test_a_broken_image_is_listed_whichever_process_met_it(ends):
    *_, place = ends
    listed = [(place / n / "decoded/skipped.jsonl").read_text().splitlines() for n in ("one", "two")]
    assert sorted(listed[0]) == sorted(listed[1])
    assert listed[0]
    assert all(json.loads(line)["id"] == 5 for line in listed[0])


def test_a_mistake_is_one_line_of_the_first_process(ends):
    _, (first, second), place = ends
    assert first["odd batch"] == "batch_size=15 cannot be dealt to 2 processes; use a multiple of it"
    assert first["not here"].startswith(f"process 1: no such file or folder: {place}")
    assert first["other data"].startswith("process 1: ")
    assert "has 30 images here, not the 60 that the first process found" in first["other data"]
    assert "exists already" in first["taken"]
    for name in ("odd batch", "not here", "other data", "taken"):
        assert second[name] == "exit 2"
    assert not (Path(place) / "two/odd").exists()


def test_what_one_process_cannot_read_ends_all_in_one_line(ends):
    _, (first, second), place = ends
    assert first["unread in the trial"] == first["not embedded"] == "process 1: a shard is gone"
    assert first["unread"] == "process 1: a shard is gone; the state after 16 steps is saved, --resume goes on"
    assert first["saved"][-1] == "step-000000016.safetensors"
    for name in ("unread in the trial", "not embedded", "unread", "unfit"):
        assert second[name].startswith("exit ")
    lines = [json.loads(line) for line in (place / "two/unread/skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [5] * 4, "once an epoch, the last time after the last line of the log"
    assert lines[-1]["step"] > 12


def test_what_all_processes_cannot_do_is_one_line(ends):
    _, (first, second), _ = ends
    assert "the maps are too small" in first["unfit"]
    assert second["unfit"] == "exit 1"


@pytest.mark.parametrize(
    ("hangs", "where"),
    [
        (1, "passes"),
        pytest.param(0, "passes", marks=pytest.mark.slow),
        pytest.param(1, "_read", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_hangs_is_named(images, tmp_path, hangs, where):
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launcher, hung_run.__file__, images, str(out), str(hangs), where],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("said by")]
    assert said == [f"said by {1 - hangs}: process {hangs} ended or hangs, after 5 steps; --resume goes on after 4"], (
        ended.stderr
    )
    assert [step_of(path) for path in all_of(out / "checkpoints")] == [2, 4]
