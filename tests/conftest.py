import json
import os
import subprocess
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import byol.pipeline
from byol import cli

# Processes of pytest-xdist share the cores: threads that wait for each other would take turns.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
byol.pipeline.TRIAL_SECONDS = 0.5  # at most five steps, before each of hundreds of runs that are as short


@pytest.fixture(scope="session")
def server():
    """Asks for runs and commands in processes that can be killed; see kill_server.py."""
    import kill_server

    process = subprocess.Popen(
        [sys.executable, kill_server.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(asked):
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """240 small images in two classes that differ, as an .npz."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 2
    pixels = generator.integers(0, 200, (240, 12, 12, 3)) + labels[:, None, None, None] * np.array([50, 0, 0])
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return str(path)


@pytest.fixture(scope="session")
def with_test_part(tmp_path_factory):
    """An .npz file of 24 training and 12 test images of two classes."""
    path = tmp_path_factory.mktemp("with_test_part") / "data.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (36, 16, 16, 3)).astype(np.uint8)
    labels = np.arange(36) % 2
    np.savez(path, images=images[:24], labels=labels[:24], test_images=images[24:], test_labels=labels[24:])
    return path


@pytest.fixture
def measured():
    """A line of the record of `byol ablate`, without its key, for tables."""
    return {
        "linear": 0.5,
        "seconds": 1.0,
        "test_images": 4,
        "train_images": 8,
        "verdict": "healthy",
        **{name: [] for name in ("loss", "held_out_std_ratio", "held_out_effective_rank", "held_out_knn")},
    }


@pytest.fixture(scope="session")
def make_run():
    """A complete Run; keyword arguments replace its fields."""
    from dataclasses import asdict

    from byol.run import Run
    from byol.views.view import BYOL_T, BYOL_T_PRIME

    def make(**changes):
        fields = {
            "data": "test",
            "method": "byol",
            "method_args": {"hidden": 32, "out": 16, "tau": 0.99, "target_init": "independent"},
            "backbone": "resnet18",
            "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
            "stem": "3x3",
            "image_size": 16,
            "channels": 3,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "views": (asdict(BYOL_T), asdict(BYOL_T_PRIME)),
            "batch_size": 16,
            "accumulate": 1,
            "total_steps": 20,
            "warmup_steps": 4,
            "optimizer": "lars",
            "base_lr": 0.3,
            "weight_decay": 1e-6,
            "precision": "32",
            "device": "cpu",
            "workers": 0,
            "seed": 0,
            "hold_out": 0.0,
            "evaluate_every_steps": 10,
            "checkpoint_every_steps": 10,
        }
        return Run(**(fields | changes))

    return make


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return call


@pytest.fixture
def published(tmp_path, monkeypatch):
    """ResNet-18 of other weights, where timm looks for `a1_in1k` before it downloads."""
    torch.manual_seed(7)
    weights = timm.create_model("resnet18").state_dict()
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return weights
