"""The one-file BYOL against the package: the same weights and views give the same steps; and the other examples."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from byol.data.loader import Batch
from byol.methods.byol import BYOL
from byol.networks import Networks, make_optimizer
from byol.step import train_step

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = ("few_labels", "own_loop", "own_lightning")


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tiny(nn.Sequential):
    dim = 6

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def test_the_example_is_short_and_needs_torch_and_torchvision_only():
    lines = (EXAMPLES / "minimal_byol.py").read_text().splitlines()
    assert len(lines) < 150
    imports = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports <= {"copy", "math", "sys", "pathlib", "torch", "torchvision"}


def test_the_example_takes_the_package_s_steps(make_run):
    example = load_example("minimal_byol")
    torch.manual_seed(0)
    theirs = example.BYOL(Tiny(), 6, hidden=16, out=8, tau=0.9).double().train()
    ours = BYOL(Tiny(), hidden=16, out=8, tau=0.9)
    networks = Networks(ours, None).double().train()
    for part in ("encoder", "projector", "predictor"):
        getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
    ours.target.module.load_state_dict(theirs.target.state_dict())

    run = make_run(batch_size=8, total_steps=6, warmup_steps=2, base_lr=0.9, weight_decay=0.05)
    optimizer = make_optimizer(run, networks)
    their_optimizer = example.LARS([p for p in theirs.parameters() if p.requires_grad], 0.0, 0.05)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        v, v_prime = (torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        batch = Batch(torch.arange(8), torch.full((8,), -1), (v, v_prime))
        found = train_step(run, step, networks, ours, optimizer, [batch], torch.Tensor.backward)
        their_optimizer.param_groups[0]["lr"] = example.learning_rate(step, 6, 2, run.peak_lr)
        loss = theirs(v, v_prime)
        their_optimizer.zero_grad()
        loss.backward()
        their_optimizer.step()
        theirs.follow(step / 6)
        assert abs(found["loss"].item() - loss.item()) < 1e-12, step
    for a, b in zip(ours.target.parameters(), theirs.target.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for part in ("encoder", "projector", "predictor"):
        for a, b in zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_the_recipe_for_a_gpu_trains_goes_on_and_says_how_long_it_took(tmp_path):
    example = load_example("cifar10_gpu")
    data = write_cifar(tmp_path / "cifar", train=64, test=32)
    tiny = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    small = {"hidden": 16, "out": 8, "tau": 0.99}
    recipe = replace(example.RECIPE, backbone_args=tiny, method_args=small, batch_size=16, epochs=2, warmup_epochs=1)
    found = example.main(str(data), tmp_path / "run", recipe)
    assert {"minutes", "images_per_second"} < set(found)
    assert 0 < found["minutes"] < 10
    scores = [value for name, value in found.items() if name.startswith(("kNN", "linear"))]
    assert len(scores) >= 2
    assert all(0 <= score <= 1 for score in scores)
    assert json.loads((tmp_path / "run/result.json").read_text()) == found
    again = example.main(str(data), tmp_path / "run", recipe)
    assert again["minutes"] == found["minutes"], "nothing was trained again"


def printed(name, folder, *arguments):
    """What a notebook's script prints, run in a folder of its own."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = {**os.environ, "TMPDIR": str(folder), "MPLBACKEND": "agg"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_few_labels(text, folder):
    """The features beat the pixels where labels are few."""
    rows = re.findall(r"^ +(\d+) +(0\.\d{3}) +(0\.\d{3})$", text, re.MULTILINE)
    curve = {int(labels): (float(features), float(pixels)) for labels, features, pixels in rows}
    assert list(curve) == [1, 2, 5, 10, 20, 50]
    few = np.array([curve[labels] for labels in (1, 2, 5, 10)])
    assert few[:, 0].mean() > few[:, 1].mean() + 0.02, curve
    for column in zip(*curve.values(), strict=True):
        assert column[0] < column[2] < column[-1], "more labels help"
    assert len(list(folder.glob("few_labels-*/images/*.png"))) == 4000
    with Image.open(next(folder.glob("few_labels-*/curve.png"))) as curve_drawn:
        assert min(curve_drawn.size) > 100


@pytest.mark.slow
def test_few_labels_make_a_better_classifier_of_features_than_of_pixels(tmp_path):
    check_few_labels(printed("few_labels", tmp_path, "--fast"), tmp_path)


@pytest.mark.slow
def test_few_labels_at_full_length_beats_pixels_at_any_number_of_labels(tmp_path):
    text = printed("few_labels", tmp_path)
    check_few_labels(text, tmp_path)
    rows = re.findall(r"(0\.\d{3}) +(0\.\d{3})$", text, re.MULTILINE)
    assert all(float(features) > float(pixels) for features, pixels in rows), text


def test_a_loop_of_one_s_own_trains_a_method(tmp_path):
    text = printed("own_loop", tmp_path, "--fast")
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", text, re.MULTILINE)]
    assert len(losses) == 5
    assert losses[-1] < 0.7 * losses[0]
    before, after = map(float, re.search(r"(\S+) before training, (\S+) after", text).groups())
    assert after > before + 0.05


def test_a_lightning_trainer_of_one_s_own_trains_a_method(tmp_path):
    text = printed("own_lightning", tmp_path, "--fast")
    steps, first, last, moved = re.search(r"(\d+) steps: loss (\S+) at .*, (\S+) at .* moved by (\S+)", text).groups()
    assert int(steps) == 30
    assert float(last) < 0.7 * float(first)
    assert float(moved) > 1, "after_step is called"


def lines(cells):
    """Those of code."""
    return [line for cell in cells for line in cell.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_built_of_an_example(name, tmp_path):
    """By `make notebooks`; its cells are the script's, and its code compiles."""
    import jupytext

    made = jupytext.read(EXAMPLES / f"{name}.py", fmt="py:percent")
    jupytext.write(made, tmp_path / "made.ipynb")
    notebook = json.loads((tmp_path / "made.ipynb").read_text("utf-8"))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= 4
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert lines(code) == lines([script])
    compile("\n".join(code), name, "exec")
    prose = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert prose.startswith("# ")


def write_cifar(folder, **parts):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, num in parts.items():
        labels = np.arange(num) % 4
        images = []
        for label in labels:
            pixels = generator.integers(0, 64, (32, 32, 3)) + 48 * label
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
            images.append(buffer.getvalue())
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{part}.parquet")
    return folder
