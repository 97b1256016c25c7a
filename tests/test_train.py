"""The training loop: what a step does, what a run writes, and that stopping changes nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import byol
from byol import checkpoint
from byol.console import Terminal
from byol.data.loader import Batch, Loader, Normalization, load_pixels, looked_at
from byol.data.open import open_source
from byol.diagnose import Health
from byol.methods import Out
from byol.methods.byol import BYOL
from byol.networks import Networks, make_optimizer
from byol.online import HoldOut, OnlineClassifier
from byol.options import Options
from byol.pipeline import Silent, pretrain
from byol.run import Run
from byol.step import train_step
from byol.train import Budget, Training, TrainingStopped
from byol.views.view import View

TINY = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    steps=12,
    precision="32",
    method_args={"hidden": 16, "out": 8},
    optimizer="lars",
    base_lr=0.5,
)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    seen = []
    observer = SimpleNamespace(
        say=lambda line: None,
        warn=lambda line: None,
        loading=lambda d, t: None,
        planned=lambda run, lines: None,
        begun=lambda run, source, pixels: None,
        progress=seen.append,
    )
    run = pretrain(images, out, TINY, observer=observer)
    return SimpleNamespace(out=out, run=run, seen=seen)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_files_it_promises(finished):
    names = {p.name for p in finished.out.iterdir()}
    assert {
        "run.json",
        "plan.txt",
        "metrics.jsonl",
        "skipped.jsonl",
        "backbone.safetensors",
        "backbone.json",
    } <= names
    assert {"checkpoints", "tensorboard"} <= names
    assert byol.run.Run.read(finished.out / "run.json") == finished.run
    metrics = lines(finished.out / "metrics.jsonl")
    steps = [m for m in metrics if "loss" in m]
    assert [m["step"] for m in steps] == [10, 12]
    assert all(0 < m["loss"] < 8 and m["images_per_second"] > 0 for m in steps)
    looks = [m for m in metrics if "held_out/std" in m]
    assert looks[0]["step"] == 0
    assert looks[-1]["step"] == 12
    assert all(0 <= m["held_out/knn"] <= 1 for m in looks)
    assert all(0 <= m["held_out/classifier"] <= 1 for m in looks)
    assert sum(p.probe is not None for p in finished.seen) == len(looks)


def test_a_run_in_bf16_with_labels_by_number_alone(tmp_path):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "rgb.npz", images=generator.integers(0, 256, (240, 12, 12, 3), dtype=np.uint8),
             labels=np.arange(240) % 3)  # fmt: skip
    pretrain(str(tmp_path / "rgb.npz"), tmp_path / "run", replace(TINY, steps=2, precision="bf16"))
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics if "held_out/std" in m] == [0, 2]
    assert next(m["classifier_loss"] for m in metrics if "loss" in m) > 0.5
    weights = load_file(tmp_path / "run" / "backbone.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}


def test_the_learning_rate_and_tau_written_are_those_of_the_step(finished):
    run = finished.run
    last = next(m for m in lines(finished.out / "metrics.jsonl") if m["step"] == 12 and "lr" in m)
    from byol.schedules import target_decay, warmup_cosine

    expected = run.peak_lr * warmup_cosine(11, warmup_steps=run.warmup_steps, total_steps=12)
    assert last["lr"] == pytest.approx(expected)
    assert last["tau"] == pytest.approx(target_decay(11 / 12, run.method_args["tau"]))


def strip(path):
    return [(m["step"], m.get("loss"), m.get("held_out/std")) for m in lines(path / "metrics.jsonl")]


class Stop(Silent):
    def progress(self, progress):
        if progress.step == 10 and progress.metrics:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fused_optimizer_resumes_to_the_same_bytes(images, tmp_path, optimizer):
    options = replace(TINY, optimizer=optimizer, base_lr=0.01, warmup_steps=0)
    pretrain(images, tmp_path / "whole", options)
    with pytest.raises(TrainingStopped):
        pretrain(images, tmp_path / "stopped", options, observer=Stop())
    pretrain(images, tmp_path / "stopped", resume=True)
    whole, stopped = (tmp_path / name / "backbone.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_a_stopped_run_resumes_to_the_same_bytes(images, finished, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(TrainingStopped, match="--resume"):
        pretrain(images, out, TINY, observer=Stop())
    assert not (out / "backbone.safetensors").exists()
    assert checkpoint.latest(out / "checkpoints").stem == "step-000000009"
    pretrain(images, out, resume=True)
    assert (out / "backbone.safetensors").read_bytes() == (finished.out / "backbone.safetensors").read_bytes()
    assert [m for m in strip(out) if m[0] != 10] == [m for m in strip(finished.out) if m[0] != 10]
    assert len(strip(out)) == len(strip(finished.out))


@pytest.mark.parametrize("stop", [10, 30])
def test_two_looks_in_a_row_count_across_a_stop_and_the_start_is_none_of_them(images, tmp_path, monkeypatch, stop):
    monkeypatch.setattr("byol.online.verdict", lambda looks: "collapsed")
    options = replace(TINY, steps=60, stop_on_collapse=True)

    class StopAfterOneLook(Silent):
        def progress(self, progress):
            if progress.step == stop:
                raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="--resume"):
        pretrain(images, tmp_path / "run", options, observer=StopAfterOneLook())
    with pytest.raises(TrainingStopped, match="stopped at step 40"):
        pretrain(images, tmp_path / "run", resume=True)


def test_the_verdict_knows_looks_from_before_a_stop_and_none_from_the_warm_up(images, tmp_path, monkeypatch):
    ranks = iter([9.0, 99.0, 99.0, 60.0, 26.0, 28.0])  # after 0, 20, 40, 60, 80 and 100 steps
    monkeypatch.setattr(
        "byol.online.health", lambda z1, z2: Health(0.1, 1.0, next(ranks), alignment=0.1, uniformity=-2, view_ratio=0.1)
    )

    class StopAt70(Silent):
        def progress(self, progress):
            if progress.step == 70:
                raise KeyboardInterrupt

    options = replace(TINY, steps=100, warmup_steps=50)
    with pytest.raises(TrainingStopped, match="--resume"):
        pretrain(images, tmp_path / "run", options, observer=StopAt70())
    pretrain(images, tmp_path / "run", resume=True)
    words = [m["held_out/verdict"] for m in lines(tmp_path / "run" / "metrics.jsonl") if "held_out/verdict" in m]
    assert words == ["early", "early", "early", "healthy", "collapsed", "healthy"]


def test_a_run_of_few_steps_has_no_verdict(finished):
    looks = [m for m in lines(finished.out / "metrics.jsonl") if "held_out/verdict" in m]
    assert [(m["step"], m["held_out/verdict"]) for m in looks] == [(0, "early"), (12, "early")]


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc, which only Linux has")
def test_the_peak_memory_is_the_process_s_own(tmp_path):
    program = """
import subprocess, sys
if sys.argv[1:] == ["child"]:
    from byol.machine import process_memory
    before = process_memory()
    kept = b"x" * 2**28
    print(before, process_memory())
else:
    kept = b"x" * 2**31
    subprocess.run([sys.executable, sys.argv[0], "child"], check=True)
"""
    path = tmp_path / "program.py"
    path.write_text(program, "utf-8")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 2**22 < before < 2**28
    assert 2**27 < after - before < 2**28 + 2**26


def test_nothing_random_is_drawn_from_global_state(images, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    pretrain(images, tmp_path / "run", replace(TINY, steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_resuming_on_changed_data_or_nothing_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"no run\.json"):
        pretrain(images, tmp_path / "none", resume=True)
    own = tmp_path / "own.npz"
    with np.load(images) as file:
        np.savez(own, images=file["images"], labels=file["labels"])
        pretrain(str(own), tmp_path / "run", replace(TINY, steps=2))
        np.savez(own, images=file["images"][::-1], labels=file["labels"])
    with pytest.raises(ValueError, match="not what this run began with"):
        pretrain(str(own), tmp_path / "run", resume=True)


def test_a_run_inside_its_own_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lies inside"):
        pretrain(str(tmp_path), tmp_path / "run", TINY)


def test_a_budget_of_time_becomes_the_steps_that_fit(images, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("byol.pipeline.TRIAL_SECONDS", 1.0)
    monkeypatch.setattr(Training, "measure_rate", lambda self, seconds: tried.append(seconds) or 40.0)
    monkeypatch.setattr(Budget, "spent", lambda self: 0.04)
    run = pretrain(images, tmp_path / "run", replace(TINY, steps=None, budget=2.5))
    assert run.total_steps == 6  # 0.96 x 2.5 s x 40 images/s in batches of 16
    assert run.replan is None
    assert Run.read(tmp_path / "run" / "run.json") == run
    assert [m["step"] for m in lines(tmp_path / "run" / "metrics.jsonl")][-1] == run.total_steps
    # It is not planned again where nothing is left of it: after its last step.
    spent = iter([0.04, 0.5])
    monkeypatch.setattr(Budget, "spent", lambda self: next(spent))
    assert pretrain(images, tmp_path / "slow", replace(TINY, steps=None, budget=2.5)).replan is None
    monkeypatch.setattr(Budget, "spent", lambda self: 0.04)
    pretrain(images, tmp_path / "longer", replace(TINY, steps=None, budget=40.0, batch_size=64))
    assert tried == [1.0, 1.0, 2.0]


def test_a_run_planned_again_goes_evenly_to_the_same_end(make_run):
    run = make_run(total_steps=50, replan=(20, 100))
    at, totals = zip(*(run.schedule(step) for step in range(51)), strict=True)
    assert set(totals) == {100}
    assert list(at[:21]) == list(range(21))
    assert at[-1] == 100
    assert np.allclose(np.diff(at[20:]), 80 / 30)
    assert [make_run(total_steps=50).schedule(step) for step in range(51)] == [(step, 50) for step in range(51)]


def test_the_steps_that_fit_in_what_is_left_of_a_budget(monkeypatch):
    monkeypatch.setattr("byol.train.time.perf_counter", lambda: 130.0)
    # 30 s of 100 are over, 10 of them before the first step; 40 steps took 12 s and two looks 4 s each.
    budget = Budget(100.0, began=100.0, training=110.0, looks=[4.0, 4.0])
    assert budget.spent() == 0.3
    # 66 s until the last look; a step takes 0.3 s, and a twentieth of a look.
    assert budget.steps(40, 20) == 40 + int(66 / (0.3 + 0.2))
    assert Budget(20.0, began=100.0, training=110.0).steps(40, 20) == 41  # late already: one more step ends it


def test_a_budget_plans_again_once_and_the_run_can_be_repeated_to_the_bit(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "measure_rate", lambda self, seconds: 160.0)
    spent = iter([0.0, 0.1, 0.25])
    monkeypatch.setattr(Budget, "spent", lambda self: next(spent))
    monkeypatch.setattr(Budget, "steps", lambda self, done, every: done + 17)
    said = []
    observer = Silent()
    observer.say = said.append
    budget = replace(TINY, steps=None, budget=5.0)
    run = pretrain(images, tmp_path / "run", budget, observer=observer)
    assert (run.total_steps, run.replan) == (37, (20, 50))
    assert Run.read(tmp_path / "run/run.json") == run
    assert [line["step"] for line in lines(tmp_path / "run/metrics.jsonl") if "loss" in line] == [10, 20, 30, 37]
    again = "--steps 37 --set replan=20,50"
    assert again in (tmp_path / "run/plan.txt").read_text() and again in said[-1]
    repeated = replace(TINY, steps=37).with_settings(["replan=20,50"])
    assert pretrain(images, tmp_path / "repeated", repeated) == run
    one, two = (load_file(tmp_path / name / "checkpoints/step-000000037.safetensors") for name in ("run", "repeated"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ValueError, match="add the --steps"):
        replace(TINY, steps=None, replan=(20, 50)).checked()


def test_a_backbone_that_cannot_take_the_images_is_one_line(images, tmp_path):
    with pytest.raises(ValueError, match="densenet121 cannot take 12 px images"):
        pretrain(images, tmp_path / "run", replace(TINY, backbone="densenet121", backbone_args=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # compilers warn of what is theirs
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_train_as_they_are(images, tmp_path, monkeypatch, backend):
    # The first traces as the second does, whose kernels take a minute to build.
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda part, mode: compile_(part, backend=backend))
    found = {}
    torch._dynamo.utils.counters.clear()
    for name, mode in (("plain", None), ("compiled", "default")):
        assert not torch._dynamo.utils.counters["stats"]
        pretrain(images, tmp_path / name, replace(TINY, steps=10, precision="64", compile=mode))
        found[name] = load_file(tmp_path / name / "checkpoints/step-000000010.safetensors")
    assert found["plain"].keys() == found["compiled"].keys()
    for name, value in found["plain"].items():
        assert torch.allclose(value, found["compiled"][name], rtol=1e-9, atol=1e-11), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4  # encoder, projector, predictor, target
    assert "networks compiled (default)" in (tmp_path / "compiled/plan.txt").read_text()


@pytest.mark.filterwarnings("ignore")
def test_where_there_is_no_compiler_that_is_one_line(images, tmp_path):
    none = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    refused = pytest.raises(ValueError, match=r"compile=default does not work here, leave it out: .*no-such-compiler")
    with none, refused:
        pretrain(images, tmp_path / "run", replace(TINY, steps=10, compile="default", image_size=11))
    assert not (tmp_path / "run").exists()


def test_graphs_that_are_replayed_do_not_accumulate():
    with pytest.raises(ValueError, match="use compile=default"):
        replace(TINY, compile="reduce-overhead", accumulate=2).checked()


def test_an_existing_directory_is_left_alone(images, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        pretrain(images, tmp_path, TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_the_backbone_loads_in_timm_without_this_package(finished, tmp_path):
    """The README's snippet, in a process that cannot import `byol`."""
    readme = finished.out.parents[0] / "snippet.py"
    from pathlib import Path

    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    snippet = text.split("<!-- snippet: timm -->")[1].split("```python")[1].split("```")[0]
    torch.manual_seed(0)
    x = torch.randn(4, 3, 12, 12)
    torch.save(x, tmp_path / "x.pt")
    readme.write_text(
        "import sys\nsys.modules['byol'] = None\n"
        + snippet.replace('"RUN"', repr(str(finished.out)))
        + f"\nimport torch\nx = torch.load({str(tmp_path / 'x.pt')!r})\n"
        + f"torch.save(model(x).detach(), {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run([sys.executable, str(readme)], check=True, cwd=tmp_path, capture_output=True)
    with torch.no_grad():
        expected = byol.load(finished.out)(x)
    assert torch.allclose(torch.load(tmp_path / "y.pt"), expected, atol=1e-6)
    assert expected.std() > 0


def test_the_exported_weights_are_the_online_encoder_s(images, finished):
    weights = load_file(finished.out / "backbone.safetensors")
    last = load_file(checkpoint.latest(finished.out / "checkpoints"))
    assert set(weights) == {k.split("encoder.model.", 1)[1] for k in last if k.startswith("module.method.encoder.")}
    for name, value in weights.items():
        assert torch.equal(value, last[f"module.method.encoder.model.{name}"]), name
    assert any(v.abs().sum() > 0 for k, v in weights.items() if "running_mean" in k)


def test_starting_from_weights_takes_them_for_online_and_target(images, finished, tmp_path):
    for init in (finished.out, finished.out / "backbone.safetensors"):
        source, pixels, _ = load_pixels(open_source(images))
        from byol.plan import plan

        run = plan(replace(TINY, init=str(init)), source, pixels)
        assert run.method_args["target_init"] == "copy"
        training = Training(run, source, pixels, tmp_path)
        given = load_file(finished.out / "backbone.safetensors")
        for name, value in given.items():
            assert torch.equal(training.method.encoder.model.state_dict()[name], value)
            assert torch.equal(training.method.target.module[0].model.state_dict()[name], value)
    scratch = plan(TINY, source, pixels)
    assert scratch.method_args["target_init"] == "independent"
    other = replace(TINY, init=str(finished.out), backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]})
    with pytest.raises(ValueError, match="does not fit"):
        pretrain(images, tmp_path / "run", other)
    assert not (tmp_path / "run").exists()


class Encoder(nn.Sequential):
    dim = 6

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def small_networks(num_classes=3):
    torch.manual_seed(0)
    return Networks(BYOL(Encoder(), hidden=8, out=4, tau=0.5), OnlineClassifier(6, num_classes)).double().train()


def random_batch(seed, size=8):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(torch.arange(size), torch.randint(-1, 3, (size,), generator=generator), views)


def test_the_target_moves_once_a_step_however_many_micro_batches(make_run):
    networks = small_networks()
    run = make_run(batch_size=8, accumulate=3, total_steps=10, warmup_steps=0)
    calls = []
    follow = networks.method.target.follow
    networks.method.target.follow = lambda module, decay: (calls.append(decay), follow(module, decay))
    seen = []
    after = networks.method.after_step
    networks.method.after_step = lambda progress, outs: (
        seen.append((progress, len(outs))),
        after(progress, outs),
    )
    optimizer = make_optimizer(run, networks)
    for step in range(2):
        train_step(
            run,
            step,
            networks,
            networks.method,
            optimizer,
            [random_batch(i) for i in range(3)],
            torch.Tensor.backward,
        )
    assert len(calls) == 2
    assert seen == [(0.0, 3), (0.1, 3)]
    assert calls[0] == 0.5


def test_accumulated_gradients_are_the_mean_over_micro_batches(make_run):
    gradients = []
    for batches in ([random_batch(1), random_batch(2)], [random_batch(1)], [random_batch(2)]):
        networks = small_networks()
        run = make_run(batch_size=8, accumulate=len(batches), total_steps=10)
        optimizer = make_optimizer(run, networks)
        optimizer.step = lambda: None
        optimizer.zero_grad = lambda: None
        train_step(run, 0, networks, networks.method, optimizer, batches, torch.Tensor.backward)
        gradients.append({n: p.grad for n, p in networks.named_parameters() if p.grad is not None})
    both, first, second = gradients
    for name in both:
        assert torch.allclose(both[name], (first[name] + second[name]) / 2, atol=1e-12), name


def test_the_classifier_never_changes_the_encoder(make_run):
    with_labels, without = small_networks(), small_networks()
    without.classifier = None
    for networks in (with_labels, without):
        run = make_run(batch_size=8, total_steps=10, warmup_steps=0)
        optimizer = make_optimizer(run, networks)
        for step in range(3):
            train_step(run, step, networks, networks.method, optimizer, [random_batch(step)], torch.Tensor.backward)
    for a, b in zip(with_labels.method.parameters(), without.method.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_classifier_s_loss_is_over_labelled_images():
    classifier = OnlineClassifier(4, 3).double()
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, -1, 2, -1, 1])
    known = labels >= 0
    expected = nn.functional.cross_entropy(classifier.linear(features[known]), labels[known])
    assert torch.allclose(classifier(features, labels), expected)
    assert classifier(features, torch.full((5,), -1)).item() == 0.0
    classifier(features, labels).backward()
    assert features.grad is None


def test_dropout_is_seeded_by_the_step(images, tmp_path):
    options = replace(TINY, steps=3, backbone_args={**TINY.backbone_args, "drop_path_rate": 0.5})
    outs = [tmp_path / name for name in ("a", "b")]
    for out in outs:
        torch.manual_seed(hash(out.name) % 1000)
        pretrain(images, out, options)
    first, second = ((out / "backbone.safetensors").read_bytes() for out in outs)
    assert first == second


class Collapsing(BYOL):
    """BYOL without predictor, target and stop-gradient: attraction alone, which a constant satisfies best."""

    def forward(self, v, v_prime):
        y, y_prime = self.encoder(v), self.encoder(v_prime)
        z, z_prime = self.projector(y), self.projector(y_prime)
        return Out((2 - 2 * nn.functional.cosine_similarity(z, z_prime)).mean(), y, z)


def test_collapse_is_called_out_and_stops_the_run(images, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.networks.get", lambda name: Collapsing)
    options = replace(TINY, steps=200, warmup_steps=10, optimizer="sgd", base_lr=2.0, weight_decay=0.0)
    options = replace(options, stop_on_collapse=True)
    with pytest.raises(TrainingStopped, match="collapsed"):
        pretrain(images, tmp_path / "run", options)
    looks = [m for m in lines(tmp_path / "run" / "metrics.jsonl") if "held_out/verdict" in m]
    assert looks[-1]["held_out/verdict"] == "collapsed"
    assert looks[-1]["step"] <= 100
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_byol_itself_is_not_called_collapsed(images, tmp_path, seed):
    source = "digits"
    options = replace(TINY, image_size=14, batch_size=64, steps=60, optimizer="sgd", base_lr=0.2, seed=seed,
                      stop_on_collapse=True, method_args={"hidden": 64, "out": 32, "tau": 0.9},
                      views=(View(crop_area=(0.4, 1), flip=0, blur=0),) * 2)  # fmt: skip
    pretrain(source, tmp_path / "run", options)
    looks = [m for m in lines(tmp_path / "run" / "metrics.jsonl") if "held_out/verdict" in m]
    assert "collapsed" not in [m["held_out/verdict"] for m in looks]
    assert looks[-1]["held_out/verdict"] == "healthy"


def probe(step, word):
    return SimpleNamespace(
        step=step, total_steps=9, metrics={}, images_per_second=0.0, probe=SimpleNamespace(word=word)
    )


def test_the_terminal_gives_the_advice_once_for_each_collapse():
    from rich.console import Console

    console = Console(record=True, width=200, stderr=True)
    with Terminal(console) as terminal:
        for step, word in ((0, "early"), (1, "collapsed"), (2, "collapsed"), (3, "healthy"), (4, "collapsed")):
            terminal.progress(probe(step, word))
    told = [line for line in console.export_text().splitlines() if "has collapsed" in line]
    assert [line.split(":")[0] for line in told] == ["step 1", "step 4"]


def test_the_terminal_says_nothing_of_a_network_that_has_not_begun():
    from rich.console import Console

    console = Console(record=True, width=200, stderr=True)
    with Terminal(console) as terminal:
        for step, word in ((0, "early"), (1, "healthy")):
            terminal.progress(probe(step, word))
    assert "collapsed" not in console.export_text()


def test_float64_runs_with_held_out_images(images, tmp_path):
    pretrain(images, tmp_path / "run", replace(TINY, steps=2, precision="64"))
    assert [m["step"] for m in lines(tmp_path / "run" / "metrics.jsonl") if "held_out/std" in m] == [0, 2]


def test_a_small_image_that_proves_truncated_is_listed_as_skipped(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i:02}.png")
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    pretrain(str(folder), tmp_path / "run", replace(TINY, steps=1, batch_size=4))
    assert [m["name"] for m in lines(tmp_path / "run" / "skipped.jsonl")] == ["05.png"]
    assert "1 skipped" in (tmp_path / "run" / "plan.txt").read_text()


def test_a_loss_that_is_not_a_number_stops_the_run(images, tmp_path):
    wild = replace(TINY, optimizer="sgd", base_lr=1e30, method_args={"hidden": 16, "out": 8})
    with pytest.raises(TrainingStopped, match="not finite in step 2, which changed no weight"):
        pretrain(images, tmp_path / "run", wild)
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_held_out_images_are_looked_at_in_evaluation_mode(images, monkeypatch):
    source, pixels, _ = load_pixels(open_source(images))
    loader = Loader(source, (View(), View()), pixels=pixels, size=12, batch_size=16,
                    normalization=Normalization((0.5,) * 3, (0.25,) * 3), seed=0)  # fmt: skip
    method = BYOL(Encoder(), hidden=8, out=4).train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    probe = HoldOut(loader, loader).look(method, step=3)
    assert method.training
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert probe.step == 3
    assert probe.knn is not None
    monkeypatch.setattr("byol.online.looked_at", lambda source, most: looked_at(source, 4))
    loader.labels[0] = -1
    loader.labels[3:] = -1  # four of all images are none of the two that have labels
    assert HoldOut(loader, loader).look(method, step=3).knn is not None
