"""The training loop, and the only file that knows the engine.

The engine is Lightning's Fabric, for devices, precision and loggers, and not its Trainer: the batches of a run are a
function of the step number and everything a step changes happens in `Method.after_step`, so the loop is fifteen lines
in the open, and to resume is to start it at another number.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import inspect
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from byol import checkpoint, cluster, rng
from byol.convolution import use_matrix_products
from byol.data.loader import Batch, Loader, Normalization, split_hold_out
from byol.data.source import DataError, Source
from byol.diagnose import SETTLED_STEPS, Health
from byol.encoder import SMALL_IMAGE_PX, Encoder, EncoderSpec, initialize
from byol.export import parameter_count, save_backbone, start_from
from byol.machine import process_memory
from byol.methods import Method, Out, get, wanted
from byol.names import FILLED, unknown
from byol.norm import share
from byol.online import ADVICE, HoldOut, OnlineClassifier, Probe
from byol.optim import LARS, parameter_groups
from byol.parallel import agreed, collected, everywhere, met, rank, together, world_size
from byol.run import Run
from byol.schedules import warmup_cosine, warmup_drops
from byol.views import recipes
from byol.views.view import View

LOG_EVERY_STEPS = 10
REPLAN_AT = 0.2
"""Share of a budget of time after which the steps that fit are counted again."""
COMPILE_FROM_IMAGES = 20_000
"""Of 224 px: compiling the views takes half a minute, and saves about 5 ms an image on a CPU core."""


class TrainingStopped(RuntimeError):
    """Training ended early for a reason a person should read; what was written stays usable."""


@dataclass(frozen=True)
class Progress:
    """What an observer is told. `probe` is set when held-out images were looked at."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    images_per_second: float
    probe: Probe | None = None


@dataclass
class Budget:
    """A time to be done by. seconds: in all; began: when it began, and training: when the first step did, both by
    time.perf_counter; looks: how long each look at held-out images took."""

    seconds: float
    began: float
    training: float = 0.0
    looks: list[float] = field(default_factory=list)

    def spent(self) -> float:
        """The share of it that is over."""
        return (time.perf_counter() - self.began) / self.seconds

    def steps(self, done: int, look_every: int) -> int:
        """How many steps there are to be in all, by what `done` of them took. look_every: steps from look to look."""
        now = time.perf_counter()
        a_look = statistics.median(self.looks) if self.looks else 0.0
        a_step = (now - self.training - sum(self.looks)) / done
        left = self.began + self.seconds - now - a_look  # the last look
        return done + max(1, int(left / (a_step + a_look / look_every)))


class Networks(nn.Module):
    """All that trains: the method, and the online classifier where there are labels."""

    def __init__(self, method: Method, classifier: OnlineClassifier | None) -> None:
        super().__init__()
        self.method = method
        self.classifier = classifier

    def forward(
        self, views: tuple[Tensor, ...], ids: Tensor, labels: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(loss of the method, loss of the classifier, and features, embedding and extras of `Out`)."""
        given = {"ids": ids, "labels": labels, "key": key}
        asked = {name: given[name] for name in wanted(type(self.method))}
        out: Out = self.method(*(v.contiguous(memory_format=torch.channels_last) for v in views), **asked)
        probe = self.classifier(out.features, labels) if self.classifier else out.loss.new_zeros(())
        return out.loss, probe, out.features, out.embedding, out.extras


def build(run: Run, *, num_classes: int = 0, num_images: int = 0) -> Networks:
    """The networks of a run before its first step, drawn from its seed; no global random state is used up.

    num_classes: of the data, 0 without labels. num_images: one more than the largest image id.
    """
    spec = EncoderSpec(run.backbone, run.image_size, run.channels, run.stem, run.backbone_args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        encoder = Encoder(spec)
        if run.encoder_init == "byol":
            initialize(encoder)
        if run.init is not None:
            encoder = start_from(encoder, run.init)
        kind = get(run.method)
        data = {"num_classes": num_classes, "num_images": num_images}
        filled = {name: data[name] for name in FILLED if name in inspect.signature(kind).parameters}
        method = kind(encoder, **filled, **run.method_args)
        classifier = OnlineClassifier(encoder.dim, num_classes) if num_classes else None
    networks = Networks(method, classifier).to(memory_format=torch.channels_last)
    if world_size() > 1:
        share(networks)
    if run.device == "cpu" and run.precision == "bf16":
        use_matrix_products(networks)
    return networks


def compile_networks(run: Run, networks: Networks) -> Networks:
    """The same, in place, each part of the method compiled where the run says so. Copies have to be compiled anew."""
    if run.compile is not None:
        # All parts, and the copy that tries the machine's speed, are one function to it.
        torch._dynamo.config.recompile_limit = 64
        for part in networks.method.children():
            part.compile(mode=run.compile)
    return networks


def refusal(run: Run, error: Exception) -> str:
    """Why the networks of a run cannot train, in one line."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"compile={run.compile} does not work here, leave it out: {reason}"
    return f"{run.backbone} cannot take {run.image_size} px images: {reason}"


def make_optimizer(run: Run, networks: Networks) -> torch.optim.Optimizer:
    parts = dict(networks.method.named_children()) if run.constant_lr or run.lr_scales else {}
    if strange := [name for name in (*run.constant_lr, *run.lr_scales) if name not in parts]:
        raise ValueError(unknown(f"part of {run.method}", strange[0], parts))
    groups = parameter_groups(
        [networks],
        weight_decay=run.weight_decay,
        decay_all=run.decay_all,
        bias_lr=run.bias_lr,
        constant=[parts[name] for name in run.constant_lr],
        lr_scales={parts[name]: scale for name, scale in run.lr_scales.items()},
    )
    if run.optimizer == "lars":
        return LARS(groups, lr=run.peak_lr, lr_in_momentum=run.lr_in_momentum)
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=run.peak_lr, momentum=0.9, fused=True)
    # One pass over each tensor: unfused, AdamW took a seventh of a small network's step on a CPU.
    return torch.optim.AdamW(groups, lr=run.peak_lr, betas=(0.9, 0.999), fused=True)


def train_step(
    run: Run,
    step: int,
    networks: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    backward: Callable[[Tensor], None],
    apart: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Tensor]:
    """One optimizer step from its micro-batches; `step` is the number of steps done before it.

    apart: a context in which processes do not exchange gradients, for all micro-batches but the last. Returns the mean
    losses, detached, on the device.
    """
    share = learning_rate_share(run, run.schedule_step(step))
    held = min(1.0, run.schedule_step(step) / run.warmup_steps) if run.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = run.peak_lr * group["lr_scale"] * (held if group["constant"] else share)
    outs: list[Out] = []
    classifier_losses = []
    root = rng.fold(rng.key(run.seed, rng.Purpose.METHOD), step)
    for number, batch in enumerate(batches):
        device = batch.views[0].device
        with apart() if number + 1 < len(batches) else nullcontext():
            loss, classifier_loss, *rest = networks(
                batch.views,
                batch.ids.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
                rng.fold(root, number),
            )
            backward((loss + classifier_loss) / len(batches))
        outs.append(Out(loss, *rest).detach())
        classifier_losses.append(classifier_loss.detach())
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(run.progress(step), outs)
    return {
        "loss": torch.stack([out.loss for out in outs]).mean(),
        "classifier_loss": torch.stack(classifier_losses).mean(),
    }


def learning_rate_share(run: Run, step: float) -> float:
    """The learning rate as a share of its peak at a step of the run's schedule."""
    if step >= run.warmup_steps:
        step = max(step // run.lr_every_steps * run.lr_every_steps, run.warmup_steps)
    if run.lr_drops:
        return warmup_drops(step, warmup_steps=run.warmup_steps, total_steps=run.planned_steps, drops=run.lr_drops)
    return warmup_cosine(step, warmup_steps=run.warmup_steps, total_steps=run.planned_steps, final=run.final_lr)


def _unread(reason: str, step: int) -> TrainingStopped:
    return TrainingStopped(f"{reason}; the state after {step} steps is saved, --resume goes on")


def keep_memory() -> None:
    """Ask glibc to reuse large freed blocks rather than return them: a step else faults in thousands of pages anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Training:
    """One run over one source, from the first step or from the last checkpoint in its directory."""

    def __init__(self, run: Run, source: Source, pixels: Tensor | None, directory: Path) -> None:
        self.run = run
        self.directory = directory
        if run.device == "cpu":
            keep_memory()
        self.fabric = cluster.fabric(run.device, run.precision)
        if run.batch_size % world_size():
            raise ValueError(
                f"batch_size={run.batch_size} cannot be dealt to {world_size()} processes; use a multiple of it"
            )
        if run.compile is not None and world_size() > 1:
            raise ValueError(f"compile={run.compile} is for one process, and these are {world_size()}; leave it out")
        training, held = split_hold_out(source, run.hold_out, run.seed)
        self.num_train, self.num_held = len(training), 0 if held is None else len(held)
        self.no_compiler = ""
        self.arithmetic = self._arithmetic(cropped_here=pixels is not None)
        networks = build(run, num_classes=source.num_classes, num_images=source.num_listed)
        self.networks = compile_networks(run, networks)
        self.method: Method = self.networks.method
        self.optimizer = make_optimizer(run, self.networks)
        self.module, self._optimizer = self.fabric.setup(self.networks, self.optimizer)
        self.loader = self._loader(training, source, pixels, run.batch_size, run.workers, run.streams)
        self.hold_out = None
        if held is not None:
            self.hold_out = HoldOut(self._loader(held, source, pixels, 256, 0), self.loader, self.networks.classifier)
        self._found: list[Health] = []
        self._redraw = any(
            isinstance(m, nn.modules.dropout._DropoutNd) or type(m).__name__ == "DropPath"
            for m in self.module.modules()
        )

    def _loader(
        self, part: Source, whole: Source, pixels: Tensor | None, batch_size: int, workers: int, streams: int = 0
    ) -> Loader:
        rows = torch.searchsorted(torch.from_numpy(whole.ids), torch.from_numpy(part.ids))
        return Loader(
            part,
            tuple(View(**fields) for fields in self.run.views),
            pixels=None if pixels is None else pixels[rows],
            size=self.run.image_size,
            batch_size=batch_size,
            normalization=Normalization(self.run.mean, self.run.std),
            seed=self.run.seed,
            workers=workers,
            device=self.fabric.device,
            share=(rank(), world_size()),
            streams=streams,
            reduced=self.run.reduced_decoding,
            arithmetic=self.arithmetic,
        )

    def _arithmetic(self, *, cropped_here: bool) -> recipes.Arithmetic:
        """The views' operations, compiled where that takes less time than it saves, and where there is a compiler."""
        run, device = self.run, self.fabric.device
        worth = run.total_steps * run.images_per_step * (run.image_size / 224) ** 2 >= COMPILE_FROM_IMAGES
        if not worth or (device.type == "cpu" and (cropped_here or run.image_size <= SMALL_IMAGE_PX)):
            return recipes.EAGER
        try:
            views = tuple(View(**fields) for fields in run.views)
            return recipes.compiled(views, run.channels, run.image_size, device)
        except Exception as error:  # compilers fail in many ways; without one the views are the same, and slower
            self.no_compiler = type(error).__name__
            return recipes.EAGER

    def parameters(self) -> int:
        """Parameters that are trained."""
        return parameter_count(self.networks.method) - sum(
            p.numel() for p in self.networks.method.parameters() if not p.requires_grad
        )

    def measure_rate(self, seconds: float = 1.0) -> float:
        """Images/s that trial steps on a copy of the networks reach, with all that they wait for; the run itself is not
        touched. The median; where workers make images, the mean, once those made ahead are used up.

        seconds: about how long to try.
        """
        most = math.ceil(10 * seconds)
        # A GPU makes the next images beside a step: the clock waits for it only after some.
        steps = 4 if self.fabric.device.type == "cuda" else 1
        beside = self.loader.pixels is None and self.loader.workers > 0
        ahead = 3 if beside else 1  # of each worker, and the one that warms up
        networks = compile_networks(self.run, copy.deepcopy(self.networks))
        module, optimizer = self.fabric.setup(networks, make_optimizer(self.run, networks))
        batches = self.loader.batches(0, steps * most)
        taken: list[float] = []
        # The first one warms up; of steps that take seconds one more has to do.
        while len(taken) < most and (len(taken) < ahead + 1 or steps * sum(taken[ahead:]) < seconds):
            start = time.perf_counter()
            for _ in range(steps):
                batch = together(lambda: next(batches))
                train_step(self.run, 0, module, networks.method, optimizer, [batch], self.fabric.backward)
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(agreed((time.perf_counter() - start) / steps))  # all processes try as often
        found = statistics.mean(taken[ahead:]) if ahead > 1 else statistics.median(taken[1:])
        return self.run.batch_size / found

    def fit(self, observe: Callable[[Progress], None], *, resume: bool = False, budget: Budget | None = None) -> None:
        """Train to the end, writing metrics, checkpoints and at last the backbone. budget: when to end, by planning
        again once."""
        run = self.run
        start = self._restore() if resume else 0
        metrics = _Metrics(self.directory, start) if rank() == 0 else _NoMetrics()
        seconds, collapsed, looked = agreed(metrics.standing())
        self._found = [found for step, found in metrics.looks() if self._settled(step)]
        if self.fabric.device.type == "cuda":  # the trial steps held a second copy of everything
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        try:
            if budget is not None:
                budget.training = time.perf_counter()
            if self._looks(start) and not looked:
                before = time.perf_counter()
                probe = self._look(start, metrics, observe, seconds)
                if start:
                    collapsed = self._collapses(probe, collapsed, start)
                if budget is not None:
                    budget.looks.append(time.perf_counter() - before)
            # Of a run that may get longer, more are ready to be made than it will have.
            end = run.total_steps * run.accumulate if budget is None else sys.maxsize // run.batch_size
            batches = self.loader.batches(start * run.accumulate, end)
            clock, clock_step = time.perf_counter(), start
            rate = 0.0
            self.module.train()
            replaced: list[tuple[int, int, str]] = []
            step = start
            while step < run.total_steps:
                micro, unread = list[Batch](), None
                try:
                    micro += [next(batches) for _ in range(run.accumulate)]
                except (DataError, OSError) as error:
                    unread = error
                if (line := met(unread)) is not None:
                    metrics.skipped(collected(replaced))
                    if rank() == 0:  # the state is whole: no part of this step is done
                        self.save(step)
                    raise everywhere(_unread(line, step)) from unread
                losses = self._step(step, micro)
                done = step + 1
                replaced += [(done, *each) for batch in micro for each in batch.replaced]
                logs = done % LOG_EVERY_STEPS == 0 or done == run.total_steps
                saves = done % run.checkpoint_every_steps == 0 or done == run.total_steps
                looks = self._looks(done)
                if logs or saves or looks:
                    metrics.skipped(collected(replaced))
                    replaced = []
                if logs:
                    values = {k: float(v) for k, v in losses.items()}  # waits for the device
                    now = time.perf_counter()
                    seconds += now - clock
                    rate = (done - clock_step) * run.images_per_step / (now - clock)
                    values |= {
                        "lr": self.optimizer.param_groups[0]["lr"],
                        **self.method.status(run.progress(step)),
                    }
                    if done == run.total_steps and (memory := self.peak_memory()):
                        values["peak_memory_bytes"] = memory
                    if not math.isfinite(values["loss"]):
                        raise everywhere(self._diverged(f"the loss is {values['loss']}", done))
                    metrics.write(done, {**values, "images_per_second": rate, "seconds": round(seconds, 3)})
                    observe(Progress(done, run.total_steps, values, rate))
                    clock, clock_step = time.perf_counter(), done
                if saves:
                    if not math.isfinite(float(losses["loss"])):
                        raise everywhere(self._diverged(f"the loss is {float(losses['loss'])}", done))
                    if rank() == 0:
                        self.save(done)
                if looks:
                    before = time.perf_counter()
                    probe = self._look(done, metrics, observe, seconds + before - clock)
                    clock += time.perf_counter() - before  # training's seconds are training's alone
                    if budget is not None:
                        budget.looks.append(time.perf_counter() - before)
                    collapsed = self._collapses(probe, collapsed, done)
                if budget is not None and logs and run.replan is None and agreed(budget.spent()) >= REPLAN_AT:
                    steps = agreed(budget.steps(done, run.evaluate_every_steps))
                    run = self.run = replace(run, total_steps=steps, replan=(done, run.total_steps))
                    if rank() == 0:
                        run.write(self.directory / "run.json")
                step = done
        except KeyboardInterrupt:
            raise everywhere(
                TrainingStopped(
                    f"interrupted; `byol pretrain ... --out {self.directory} --resume` goes on from the last checkpoint"
                )
            ) from None
        finally:
            metrics.close()
            self.loader.source.rest()
        if rank() == 0:
            save_backbone(self.method.encoder, run, self.directory, step=run.total_steps)

    def _looks(self, done: int) -> bool:
        return done % self.run.evaluate_every_steps == 0 or done == self.run.total_steps

    def _collapses(self, probe: Probe | None, before: int, done: int) -> int:
        """How many looks in a row found a collapse, with this one; at two the run may want to be stopped."""
        found = before + 1 if probe and probe.word == "collapsed" else 0
        if found >= 2 and self.run.stop_on_collapse:
            if rank() == 0:
                self.save(done)
            raise everywhere(TrainingStopped(f"stopped at step {done}: {ADVICE}"))
        return found

    def _step(self, step: int, micro: list[Batch]) -> dict[str, Tensor]:
        apart = partial(self.fabric.no_backward_sync, self.module)
        arguments = (self.run, step, self.module, self.method, self._optimizer, micro, self.fabric.backward, apart)
        if not self._redraw:
            return train_step(*arguments)
        # Dropout and stochastic depth draw from torch's generator: seeded per step, so that a resumed run agrees.
        with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []):
            torch.manual_seed(int(rng.bits(rng.fold(rng.key(self.run.seed), step), rank() + 1)[-1]))
            return train_step(*arguments)

    def look(self, step: int) -> Probe:
        """What the held-out images, of which there are some, say of the networks after so many steps."""
        assert self.hold_out is not None, "known by the caller"
        # Compiled networks as they are: their kernels are for training's batches, and a CUDA graph's output lasts only
        # to the next replay.
        eager = torch.compiler.set_stance("force_eager") if self.run.compile else nullcontext()
        with self.fabric.autocast(), eager:
            return self.hold_out.look(self.method, step, earlier=self._found if self._settled(step) else None)

    def _settled(self, step: int) -> bool:
        """Whether a look after so many steps counts for the verdict."""
        return step >= SETTLED_STEPS and self.run.schedule_step(step) >= self.run.warmup_steps

    def _look(
        self, step: int, metrics: _Metrics | _NoMetrics, observe: Callable[[Progress], None], seconds: float
    ) -> Probe | None:
        if self.hold_out is None:
            return None
        found_here: Probe | TrainingStopped | None = None
        if rank() == 0:
            try:
                found_here = self.look(step)
                self._found += [found_here.health] if self._settled(step) else []
            except (DataError, OSError) as error:
                self.save(step)
                found_here = _unread(str(error), step)
            except ValueError as error:
                found_here = self._diverged(str(error), step)
        probe = agreed(found_here)
        if isinstance(probe, TrainingStopped):
            raise everywhere(probe)
        assert probe is not None, "the first process looked"
        found = probe.to_dict()
        found.pop("step")
        metrics.write(step, {"seconds": round(seconds, 3), **{f"held_out/{k}": v for k, v in found.items()}})
        observe(Progress(step, self.run.total_steps, {}, 0.0, probe))
        return probe

    def _diverged(self, what: str, step: int) -> TrainingStopped:
        return TrainingStopped(
            f"{what} at step {step}; the last checkpoint is whole. Try a lower --base-lr or --precision 32"
        )

    def peak_memory(self) -> int | None:
        """The most memory taken so far, bytes: of the device's own, else of this process; None where nobody knows."""
        if self.fabric.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.fabric.device)
        return process_memory()

    def save(self, step: int) -> None:
        checkpoint.save(self.directory / "checkpoints", step, self.networks, self.optimizer)

    def _restore(self) -> int:
        path = agreed(checkpoint.latest(self.directory / "checkpoints"))
        return 0 if path is None else checkpoint.load(path, self.networks, self.optimizer)


class _Metrics:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._start = start
        self._path = directory / "metrics.jsonl"
        self._skipped = directory / "skipped.jsonl"
        _drop_after(self._path, start or -1)  # a run that starts anew looks at step 0 again
        _drop_after(self._skipped, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start or None)

    def standing(self) -> tuple[float, int, bool]:
        """(seconds of training, whether the last look found a collapse, whether it was at `start`) as far as the file
        goes."""
        seconds = (self.last("seconds") or {"seconds": 0.0})["seconds"]
        look = self.last("held_out/verdict") or {"step": -1, "held_out/verdict": ""}
        collapsed = look["step"] > 0 and look["held_out/verdict"] == "collapsed"  # a start is no collapse
        return seconds, int(collapsed), look["step"] == self._start

    def looks(self) -> list[tuple[int, Health]]:
        """The steps after which held-out images were looked at, and what was found."""
        lines = map(json.loads, self._path.read_text("utf-8").splitlines())
        names = [each.name for each in fields(Health)]
        return [
            (line["step"], Health(**{name: line[f"held_out/{name}"] for name in names}))
            for line in lines
            if "held_out/verdict" in line
        ]

    def last(self, name: str) -> dict[str, Any] | None:
        """The last line that holds a number of that name."""
        lines = map(json.loads, reversed(self._path.read_text("utf-8").splitlines()))
        return next((line for line in lines if name in line), None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def skipped(self, replaced: list[tuple[int, int, str]]) -> None:
        if replaced:
            with self._skipped.open("a", encoding="utf-8") as file:
                for step, image, reason in replaced:
                    file.write(json.dumps({"step": step, "id": image, "reason": reason}) + "\n")

    def close(self) -> None:
        self._file.close()
        self._board.close()


class _NoMetrics:
    """Of a process that writes none, because the first one does."""

    def standing(self) -> tuple[float, int, bool]:
        return 0.0, 0, False

    def looks(self) -> list[tuple[int, Health]]:
        return []

    def write(self, step: int, values: dict[str, Any]) -> None: ...
    def skipped(self, replaced: list[tuple[int, int, str]]) -> None: ...
    def close(self) -> None: ...


def _drop_after(path: Path, step: int) -> None:
    """Forget lines of steps a resumed run will do again, and a line cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    path.write_text("".join(line + "\n" for line in kept), "utf-8")
