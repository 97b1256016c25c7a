"""What only a GPU can show: steps without waiting, runs, compiled networks and views, memory."""

import json
import math

import numpy as np
import pytest
import torch

from byol import names
from byol.capacity import largest_batch, step_memory
from byol.data.loader import Batch, Loader, Normalization, load_pixels
from byol.data.open import open_source
from byol.methods import get
from byol.networks import build, make_optimizer
from byol.options import Options
from byol.pipeline import pretrain
from byol.plan import plan
from byol.step import train_step
from byol.train import Training
from byol.views import recipes
from byol.views.view import BYOL_T, BYOL_T_PRIME

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SMALL = {
    "backbone": "resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "method_args": {"hidden": 32, "out": 16},
    "image_size": 16,
    "batch_size": 32,
    "hold_out": 0.0,
    "device": "cuda",
}


@pytest.fixture
def no_waiting():
    """An error where the host waits for the device."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("method", [*names.METHODS, "instdisc, contrastive"])
def test_the_host_never_waits_in_a_step(make_run, method, optimizer, request):
    method, _, contrastive = method.partition(", ")
    arguments = {"negatives": 4 if contrastive else 0} if method == "instdisc" else {}
    known = names.method_arguments(method)
    arguments |= {name: value for name, value in {"hidden": 32, "out": 16}.items() if name in known}
    run = make_run(method=method, method_args=arguments, optimizer=optimizer, device="cuda", total_steps=20)
    networks = build(run, num_classes=3, num_images=64).cuda().train()
    optimizer = make_optimizer(run, networks)
    ids = torch.arange(16)
    batch = Batch(ids, ids % 3 - 1, tuple(torch.rand(16, 3, 16, 16, device="cuda") for _ in get(method).views))

    def step(number):
        train_step(run, number, networks, networks.method, optimizer, [batch], torch.Tensor.backward)

    step(0)  # cuDNN and allocators begin
    request.getfixturevalue("no_waiting")
    step(1)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("in_memory", [True, False])
def test_the_host_never_waits_for_views(images, in_memory, request):
    source, pixels, _ = load_pixels(open_source(images))
    loader = Loader(
        source,
        (BYOL_T, BYOL_T_PRIME),
        pixels=pixels if in_memory else None,
        size=32,
        batch_size=32,
        normalization=Normalization((0.5,) * 3, (0.2,) * 3),
        seed=0,
        device="cuda",
    )
    batches = loader.batches(0, 3)
    next(batches)
    request.getfixturevalue("no_waiting")
    assert all(view.is_cuda for view in next(batches).views)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_run_ends_with_files_and_a_finite_loss(images, tmp_path, precision):
    pretrain(images, str(tmp_path / "run"), Options(**SMALL, steps=30, precision=precision))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["peak_memory_bytes"] > 0
    assert (tmp_path / "run/backbone.safetensors").is_file()


def test_the_first_steps_are_those_of_a_cpu(images, tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        options = Options(**(SMALL | {"device": device}), steps=10, precision="64")
        pretrain(images, str(tmp_path / device), options)
        losses.append(json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    # The views are float32, whose last bits differ between devices, and ten steps make more of that.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # compilers warn of what is theirs
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_networks_train_alike(images, tmp_path, mode):
    torch._dynamo.utils.counters.clear()
    found = []
    for compile_, out in ((None, "plain"), (mode, "compiled")):
        options = Options(**(SMALL | {"hold_out": 0.2}), steps=10, precision="32", compile=compile_)
        pretrain(images, str(tmp_path / out), options)
        found.append(json.loads((tmp_path / out / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert f"networks compiled ({mode})" in (tmp_path / "compiled/plan.txt").read_text()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.filterwarnings("ignore")
def test_compiled_views_are_the_eager_ones():
    quick = recipes.compiled((BYOL_T, BYOL_T_PRIME), 3, 224, torch.device("cuda"))
    assert quick is not recipes.EAGER
    images = torch.rand(8, 3, 224, 224, device="cuda")
    ids, sizes = torch.arange(8), torch.full((8,), 224)
    for number, view in enumerate((BYOL_T, BYOL_T_PRIME)):
        p = recipes.draw(view, recipes.view_keys(0, ids * 0, ids, 2)[number], sizes, sizes, 224)
        plain = recipes.photometry(view, images.clone(), p)
        assert (recipes.photometry(view, images.clone(), p, quick) - plain).abs().max() < 1e-5
        assert not torch.equal(plain, images)


def test_memory_of_a_step_is_that_of_a_run(images, tmp_path):
    options = Options(**(SMALL | {"batch_size": 128, "image_size": 64}), steps=10, precision="bf16")
    pretrain(images, str(tmp_path / "run"), options)
    ran = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["peak_memory_bytes"]
    source, pixels, _ = load_pixels(open_source(images))
    run = plan(options, source, pixels)
    found = step_memory(run, num_classes=source.num_classes, num_images=source.num_listed)
    assert ran <= found <= 2 * ran  # what the allocator holds, and what of it was used


def test_the_largest_batch_fits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    source, loaded, _ = load_pixels(open_source(tmp_path / "images.npy"))
    options = Options(**{k: v for k, v in SMALL.items() if k != "batch_size"}, steps=10, auto_batch=True)
    found = largest_batch(options, source, loaded, lambda line: None)
    assert found.batch_size == 64  # an eighth of the images
    Training(plan(found, source, loaded), source, loaded, tmp_path).measure_rate()
