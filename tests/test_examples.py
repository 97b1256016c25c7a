"""The one-file BYOL against the package: the same weights and views give the same steps; and the other examples."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from byol.data.loader import Batch
from byol.methods.byol import BYOL
from byol.networks import Networks, make_optimizer
from byol.step import train_step

EXAMPLES = Path(__file__).parents[1] / "examples"


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
