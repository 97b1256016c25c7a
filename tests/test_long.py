"""What the documentation says of the demo, of CIFAR-10 and of long runs, measured again. Minutes each: `make
test-long`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from byol.data.open import open_source
from byol.demo import demo
from byol.evaluate.protocols import score_of
from byol.experiments import cifar10_two_cores
from byol.pipeline import Silent, pretrain

pytestmark = pytest.mark.slow


def verdicts(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(m["step"], m["held_out/verdict"]) for m in lines if "held_out/verdict" in m]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    outs = [tmp_path_factory.mktemp("demo") / f"seed-{seed}" for seed in range(3)]
    return {out: demo(out, Silent(), seed=seed) for seed, out in enumerate(outs)}


def test_the_demo_reaches_its_aim_in_the_mean_of_three_seeds(demos):
    found = list(demos.values())
    assert np.mean([score_of(each, "fewshot", "backbone") for each in found]) >= 0.85
    assert np.mean([score_of(each, "linear", "backbone") for each in found]) >= 0.97
    for each in found:
        for baseline in ("raw pixels", "untrained"):
            assert score_of(each, "fewshot", "backbone") > score_of(each, "fewshot", baseline) + 0.1
            assert score_of(each, "linear", "backbone") > score_of(each, "linear", baseline)


def test_the_demo_is_never_called_collapsed(demos):
    for run in demos:
        looks = verdicts(run)
        assert len(looks) >= 20
        assert "collapsed" not in [word for step, word in looks if step > 0]


def test_memory_files_and_threads_stay(tmp_path):
    """Three minutes of what benchmarks/soak.py does for an hour."""
    script = Path(__file__).parents[1] / "benchmarks/soak.py"
    command = [sys.executable, script, "--minutes", "3", "--json", tmp_path / "found.json"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    samples = json.loads((tmp_path / "found.json").read_text())["samples"]
    late = samples[len(samples) // 3 :]
    assert len(late) >= 30
    first, last = late[: len(late) // 2], late[len(late) // 2 :]
    for name, most in {"memory_mb": 20, "files": 1, "threads": 1, "processes": 0.1}.items():
        assert np.mean([each[name] for each in last]) - np.mean([each[name] for each in first]) <= most, name


def test_byol_on_cifar10_is_never_called_collapsed_and_learns(tmp_path):
    folder = Path(os.environ.get("BYOL_CIFAR10", "data/cifar10"))
    if not (folder / "train.parquet").exists():
        pytest.skip("no CIFAR-10; set BYOL_CIFAR10 to a folder with train.parquet and test.parquet")
    source = open_source(folder)
    assert (len(source), source.height, source.width, source.channels) == (50_000, 32, 32, 3)
    pretrain(str(folder), tmp_path / "run", replace(cifar10_two_cores(), steps=1000, warmup_steps=100))
    looks = verdicts(tmp_path / "run")
    assert "collapsed" not in [word for step, word in looks if step > 0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    knn = [m["held_out/knn"] for m in lines if "held_out/knn" in m]
    assert knn[-1] > knn[0] + 0.05
