"""What a run costs: FLOPs beside counts from the literature, memory and disk beside what real runs take."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from byol import capacity, cli, launch
from byol.convolution import MatrixConv2d, use_matrix_products, without_matrix_products
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.estimate import estimate
from byol.machine import available_memory, process_memory, resident_memory
from byol.options import Options
from byol.pipeline import Silent, pretrain
from byol.plan import plan
from byol.train import Training

TINY = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    steps=12,
    method_args={"hidden": 16, "out": 8},
)
RESNET18_MACS = 1_814_073_344 - 512 * 1000
"""Multiply-adds of ResNet-18 at 224 px as fvcore counts them, without the classifier."""
FIRST_CONVOLUTION_MACS = 64 * 3 * 7 * 7 * 112 * 112


def opened(folder, options):
    source, pixels, _ = load_pixels(open_source(folder)) if options.image_size < 64 else (open_source(folder), None, ())
    return plan(options, source, pixels), source, pixels


@pytest.fixture
def large(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8))
    return folder / "images.npy"


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_flops_of_a_step_are_those_of_the_networks_by_hand(large, tmp_path, precision):
    options = Options(backbone="resnet18", image_size=224, batch_size=2, accumulate=2, steps=4, precision=precision,
                      method_args={"hidden": 4096, "out": 256}, hold_out=0.0, workers=0)  # fmt: skip
    run, source, pixels = opened(large, options)
    training = Training(run, source, pixels, tmp_path)
    before = [p.clone() for p in training.networks.parameters()]
    projector, predictor = 512 * 4096 + 4096 * 256, 256 * 4096 + 4096 * 256
    # Forward, and backward to weights and to inputs; the first convolution's input wants no gradient.
    online = 3 * (RESNET18_MACS + projector + predictor) - FIRST_CONVOLUTION_MACS
    target = RESNET18_MACS + projector
    views, images, flops_of_a_mac = 2, 4, 2
    assert capacity.step_flops(training) == flops_of_a_mac * images * views * (online + target)
    assert all(map(torch.equal, before, training.networks.parameters())), "on a copy"


def test_products_of_patches_turn_back_into_convolutions():
    networks = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    use_matrix_products(networks)
    assert type(networks[0]) is MatrixConv2d
    without_matrix_products(networks)
    assert type(networks[0]) is nn.Conv2d


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_the_disk_is_that_of_the_run_s_files(images, tmp_path, optimizer):
    options = replace(TINY, optimizer=optimizer, base_lr=0.1)
    run, source, pixels = opened(images, options)
    training = Training(run, source, pixels, tmp_path)
    pretrain(images, tmp_path / "run", options)
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    header = 64 * 1024  # names and shapes
    assert len(files) == 2
    assert 0 < files[-1].stat().st_size - capacity.checkpoint_bytes(run, training) < header
    kept = sum(f.stat().st_size for f in [*files, tmp_path / "run" / "backbone.safetensors"])
    most = capacity.disk_bytes(run, training)
    assert kept - 3 * header < most <= kept + files[-1].stat().st_size


PROGRAM = """
import json, sys
from pathlib import Path
from byol import estimate
from byol.options import Options
from byol.pipeline import Silent, pretrain
what, data, out = sys.argv[1:]
estimate.TRIAL_SECONDS = 1.0
options = Options(batch_size={batch}, steps={steps}, device="cpu", {more})
if what == "estimate":
    print(json.dumps(estimate.estimate(data, options, Silent())[0]["memory_bytes"]))
else:
    pretrain(data, out, options)
    last = (Path(out) / "metrics.jsonl").read_text().splitlines()
    print(next(json.loads(line)["peak_memory_bytes"] for line in last if "peak_memory" in line))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc, which only Linux has")
def test_the_memory_of_a_run_is_what_was_estimated(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(batch=128, steps=2, more="precision='32'"), "utf-8")

    def peak(what):
        own = [sys.executable, tmp_path / "program.py", what, "digits", tmp_path / "run"]
        return int(subprocess.run(own, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    assert peak("estimate") == pytest.approx(peak("pretrain"), rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc, which only Linux has")
def test_a_step_alone_takes_what_it_adds_to_a_process(images, monkeypatch):
    run, source, _ = opened(images, TINY)
    monkeypatch.setenv(launch.LAUNCHERS[0], "another run's")
    wide = replace(run, backbone_args={"layers": [1, 1, 1, 1], "channels": [32, 32, 32, 32]}, image_size=32)
    small, large = (
        capacity.step_memory(replace(wide, batch_size=size), num_classes=2, num_images=source.num_listed)
        for size in (16, 128)
    )
    maps = 2 * 32 * 32 * 32 * 4  # both views, the first convolution's output alone, float32
    assert large - small > 112 * maps
    tall = replace(run, image_size=64, stem="original", batch_size=32)
    one, many = (
        capacity.step_memory(replace(tall, accumulate=times), num_classes=2, num_images=source.num_listed)
        for times in (1, 24)
    )
    views = 2 * 32 * 3 * 64 * 64 * 4
    assert 0.7 * 23 * views < many - one < 1.5 * 23 * views, "the views of every forward pass of a step are held"


def test_a_step_that_the_kernel_ends_does_not_fit(images, monkeypatch):
    run, *_ = opened(images, TINY)
    for code in (-9, 137):
        monkeypatch.setattr(capacity.subprocess, "run", lambda *a, c=code, **k: SimpleNamespace(returncode=c))
        assert capacity.step_memory(run, num_classes=2, num_images=4) is None
    refused = SimpleNamespace(returncode=0, stdout='"resnet18 cannot take 3 px images"\n')
    monkeypatch.setattr(capacity.subprocess, "run", lambda *a, **k: refused)
    with pytest.raises(ValueError, match="cannot take 3 px"):
        capacity.step_memory(run, num_classes=2, num_images=4)
    failed = SimpleNamespace(returncode=1, stderr="what went wrong")
    monkeypatch.setattr(capacity.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(RuntimeError, match="what went wrong"):
        capacity.step_memory(run, num_classes=2, num_images=4)


@pytest.fixture
def machine(monkeypatch):
    """A machine whose steps take what a function says, and the batches that were tried on it."""
    tried = []

    def set_up(free, taken):
        def step_memory(run, **_):
            tried.append(run.batch_size)
            return taken(run.batch_size)

        monkeypatch.setattr(capacity, "available_memory", lambda: free)
        monkeypatch.setattr(capacity, "step_memory", step_memory)
        return tried

    return set_up


@pytest.fixture(scope="module")
def many():
    source, pixels, _ = load_pixels(open_source("digits"))
    return source, pixels


def largest(options, many):
    told = []
    return capacity.largest_batch(replace(options, device="cpu"), *many, told.append), told[-1]


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda b: 10**8 + 10**6 * b, 432),
        (lambda b: 5 * 10**8 + 1010 * b * b, 176),
        (lambda b: None if b > 100 else b, 96),
    ],
)
def test_the_largest_batch_is_the_largest_that_fits(machine, many, taken, expected):
    free = 600 * 10**6
    tried = machine(free, taken)
    options, why = largest(replace(TINY, batch_size=None, steps=None, epochs=1.0), many)
    assert options.batch_size == expected
    assert len(tried) <= 8
    assert "free" in why
    limit = 0.9 * free - many[1].nbytes  # the pixels are held once more
    assert expected == max(b for b in range(16, 475, 16) if taken(b) is not None and taken(b) <= limit)


def test_what_limits_the_batch_where_memory_does_not(machine, many):
    machine(10**12, lambda b: 10**6 * b)
    options, why = largest(replace(TINY, batch_size=None), many)
    assert options.batch_size == 3800 // 8 // 16 * 16
    assert "an eighth of 3,800" in why
    machine(10**7, lambda b: 10**6 * b)
    with pytest.raises(ValueError, match="not even 16 images of 12 px fit"):
        largest(TINY, many)
    machine(None, lambda b: b)
    with pytest.raises(ValueError, match="--batch-size in place of --auto-batch"):
        largest(TINY, many)


def test_the_recipe_moves_with_the_batch_but_for_what_was_given(machine, images, tmp_path):
    machine(10**12, lambda b: b)
    recipe = replace(TINY, batch_size=2, steps=100, base_lr=0.4, auto_batch=True, device="cpu")
    run = pretrain(images, tmp_path / "run", recipe)
    assert run.batch_size > 2
    assert run.total_steps == round(100 * 2 / run.batch_size)
    assert run.peak_lr == pytest.approx(0.4 * 2 / 256 * (run.batch_size / 2) ** 0.5, rel=1e-3)
    assert any("batch 2 ->" in line for line in run.facts["moved"])
    fixed = replace(recipe, auto_batch=False, fixed=("steps", "base_lr", "tau"), method_args={"tau": 0.9})
    moved = fixed.at_batch(8)
    assert (moved.steps, moved.base_lr, moved.method_args["tau"]) == (100, 0.4, 0.9)
    assert fixed.at_batch(2) == replace(fixed)


def test_auto_batch_and_a_batch_are_one_too_many(capsys, monkeypatch, tmp_path):
    for batch in (("--batch-size", "8"), ("--set", "batch_size=8")):
        monkeypatch.setattr(
            sys, "argv", ["byol", "pretrain", "digits", "--out", str(tmp_path / "o"), "--auto-batch", *batch]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert "give one of them" in capsys.readouterr().err


def test_the_estimate_of_a_run_adds_up_and_writes_nothing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("byol.estimate.TRIAL_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found, lines = estimate(str(images), TINY, Silent())
    assert sorted(tmp_path.rglob("*")) == before
    training = found["steps"] * found["images_per_step"] / found["images_per_second"]
    # Opening the data, and two looks at the held-out images, take time too.
    assert training < found["seconds"]
    assert found["epochs"] == pytest.approx(12 * 16 / 228)
    assert {"FLOPs", "speed", "memory", "disk", "time"} <= set(dict(lines))
    arguments = ["--backbone", "resnet18", "--image-size", "12", "--batch-size", "8", "--steps", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["byol", "estimate", str(images), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 11e6


def test_memory_of_this_machine_and_process():
    assert 0 < (resident_memory() or 0) <= (process_memory() or 0)
    assert (available_memory() or 0) > 2**20


def test_a_batch_that_the_method_refuses_is_passed_over(machine, many):
    tried = machine(540 * 10**6 / 0.9, lambda b: 10**8 + 10**6 * b)  # up to 440
    recipe = replace(TINY, method="moco", method_args={"queue": 256, "hidden": 16, "out": 8}, batch_size=16)
    options, _ = largest(recipe, many)
    assert options.batch_size == 256 and set(tried) <= {16, 32, 64, 128, 256}


def test_what_is_wrong_with_a_trial_is_one_line(images, monkeypatch, capsys, tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    own = ["pretrain", images, "--out", str(tmp_path / "run"), "--auto-batch", "--steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["byol", *own, "--init", str(tmp_path / "other.safetensors")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "does not fit the backbone" in said and not (tmp_path / "run").exists()
    assert "Traceback" not in said
