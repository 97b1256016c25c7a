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
import logging
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from byol import checkpoint, rng
from byol.convolution import use_matrix_products
from byol.data.loader import Batch, Loader, Normalization, split_hold_out
from byol.data.source import Source
from byol.encoder import Encoder, EncoderSpec, initialize
from byol.export import parameter_count, save_backbone, start_from
from byol.methods import Method, Out, get, wanted
from byol.names import FILLED, unknown
from byol.norm import share
from byol.online import ADVICE, HoldOut, OnlineClassifier, Probe
from byol.optim import LARS, parameter_groups
from byol.parallel import world_size
from byol.run import Run
from byol.schedules import warmup_cosine, warmup_drops
from byol.views.view import View

_FABRIC_PRECISION = {"bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
LOG_EVERY_STEPS = 10


def process_memory() -> int | None:
    """The most memory this process has had resident, bytes; None where nobody knows."""
    # Where it is known, not getrusage: on Linux a process that another one started begins with the other's peak there.
    with contextlib.suppress(OSError):
        if own := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8")):
            return int(own[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
) -> dict[str, Tensor]:
    """One optimizer step from its micro-batches; `step` is the number of steps done before it.

    Returns the mean losses, detached, on the device.
    """
    share = learning_rate_share(run, step)
    held = min(1.0, step / run.warmup_steps) if run.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = run.peak_lr * group["lr_scale"] * (held if group["constant"] else share)
    outs: list[Out] = []
    classifier_losses = []
    root = rng.fold(rng.key(run.seed, rng.Purpose.METHOD), step)
    for number, batch in enumerate(batches):
        device = batch.views[0].device
        loss, classifier_loss, *rest = networks(
            batch.views, batch.ids.to(device), batch.labels.to(device), rng.fold(root, number)
        )
        backward((loss + classifier_loss) / len(batches))
        outs.append(Out(loss, *rest).detach())
        classifier_losses.append(classifier_loss.detach())
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(step / run.total_steps, outs)
    return {
        "loss": torch.stack([out.loss for out in outs]).mean(),
        "classifier_loss": torch.stack(classifier_losses).mean(),
    }


def learning_rate_share(run: Run, step: int) -> float:
    """The learning rate of a step as a share of its peak, by the run's own schedule."""
    if step >= run.warmup_steps:
        step = max(step // run.lr_every_steps * run.lr_every_steps, run.warmup_steps)
    if run.lr_drops:
        return warmup_drops(step, warmup_steps=run.warmup_steps, total_steps=run.total_steps, drops=run.lr_drops)
    return warmup_cosine(step, warmup_steps=run.warmup_steps, total_steps=run.total_steps, final=run.final_lr)


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
        # The plan says the precision already.
        logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
        self.fabric = Fabric(
            accelerator=run.device,
            devices=1,
            precision=_FABRIC_PRECISION[run.precision],  # type: ignore[arg-type]
        )
        training, held = split_hold_out(source, run.hold_out, run.seed)
        self.num_train, self.num_held = len(training), 0 if held is None else len(held)
        self.networks = build(run, num_classes=source.num_classes, num_images=source.num_listed)
        self.method: Method = self.networks.method
        self.optimizer = make_optimizer(run, self.networks)
        self.module, self._optimizer = self.fabric.setup(self.networks, self.optimizer)
        self.loader = self._loader(training, source, pixels, run.batch_size, run.workers)
        self.hold_out = None
        if held is not None:
            self.hold_out = HoldOut(self._loader(held, source, pixels, 256, 0), self.loader, self.networks.classifier)
        self._redraw = any(
            isinstance(m, nn.modules.dropout._DropoutNd) or type(m).__name__ == "DropPath"
            for m in self.module.modules()
        )

    def _loader(self, part: Source, whole: Source, pixels: Tensor | None, batch_size: int, workers: int) -> Loader:
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
        )

    def parameters(self) -> int:
        """Parameters that are trained."""
        return parameter_count(self.networks.method) - sum(
            p.numel() for p in self.networks.method.parameters() if not p.requires_grad
        )

    def measure_rate(self, seconds: float = 1.0) -> float:
        """Images/s that trial steps on a copy of the networks reach, the median; the run itself is not touched.

        seconds: about how long to try.
        """
        most = math.ceil(10 * seconds)
        networks = copy.deepcopy(self.networks)
        optimizer = make_optimizer(self.run, networks)
        dtype = torch.float64 if self.run.precision == "64" else torch.float32
        batches = self.loader.batches(0, most)
        taken: list[float] = []
        # The first one warms up; of steps that take seconds one more has to do.
        while len(taken) < most and (len(taken) < 2 or sum(taken[1:]) < seconds):
            start = time.perf_counter()
            batch = next(batches)
            if self.loader.pixels is None:  # made by workers, meanwhile
                start = time.perf_counter()
            batch = replace(batch, views=tuple(v.to(dtype) for v in batch.views))
            with self.fabric.autocast():
                train_step(self.run, 0, networks, networks.method, optimizer, [batch], Tensor.backward)
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return self.run.batch_size / statistics.median(taken[1:])

    def fit(self, observe: Callable[[Progress], None], *, resume: bool = False) -> None:
        """Train to the end, writing metrics, checkpoints and at last the backbone."""
        run = self.run
        start = self._restore() if resume else 0
        metrics = _Metrics(self.directory, start)
        seconds = (metrics.last("seconds") or {"seconds": 0.0})["seconds"]
        collapsed = int(start > 0 and (metrics.last("held_out/verdict") or {}).get("held_out/verdict") == "collapsed")
        if self.fabric.device.type == "cuda":  # the trial steps held a second copy of everything
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        try:
            if start == 0:
                self._look(0, metrics, observe, 0.0)
            batches = self.loader.batches(start * run.accumulate, run.total_steps * run.accumulate)
            clock, clock_step = time.perf_counter(), start
            rate = 0.0
            self.module.train()
            for step in range(start, run.total_steps):
                micro = [next(batches) for _ in range(run.accumulate)]
                losses = self._step(step, micro)
                done = step + 1
                for ids in (batch.replaced for batch in micro):
                    metrics.skipped(done, ids)
                if done % LOG_EVERY_STEPS == 0 or done == run.total_steps:
                    values = {k: float(v) for k, v in losses.items()}  # waits for the device
                    now = time.perf_counter()
                    seconds += now - clock
                    rate = (done - clock_step) * run.images_per_step / (now - clock)
                    values |= {
                        "lr": self.optimizer.param_groups[0]["lr"],
                        **self.method.status(step / run.total_steps),
                    }
                    if done == run.total_steps and (memory := self.peak_memory()):
                        values["peak_memory_bytes"] = memory
                    if not math.isfinite(values["loss"]):
                        raise self._diverged(f"the loss is {values['loss']}", done)
                    metrics.write(done, {**values, "images_per_second": rate, "seconds": round(seconds, 3)})
                    observe(Progress(done, run.total_steps, values, rate))
                    clock, clock_step = time.perf_counter(), done
                if done % run.checkpoint_every_steps == 0 or done == run.total_steps:
                    if not math.isfinite(float(losses["loss"])):
                        raise self._diverged(f"the loss is {float(losses['loss'])}", done)
                    self.save(done)
                if done % run.evaluate_every_steps == 0 or done == run.total_steps:
                    before = time.perf_counter()
                    probe = self._look(done, metrics, observe, seconds + before - clock)
                    clock += time.perf_counter() - before  # training's seconds are training's alone
                    collapsed = collapsed + 1 if probe and probe.word == "collapsed" else 0
                    if collapsed >= 2 and run.stop_on_collapse:
                        self.save(done)
                        raise TrainingStopped(f"stopped at step {done}: {ADVICE}")
        except KeyboardInterrupt:
            raise TrainingStopped(
                f"interrupted; `byol pretrain ... --out {self.directory} --resume` goes on from the last checkpoint"
            ) from None
        finally:
            metrics.close()
        save_backbone(self.method.encoder, run, self.directory, step=run.total_steps)

    def _step(self, step: int, micro: list[Batch]) -> dict[str, Tensor]:
        arguments = (self.run, step, self.module, self.method, self._optimizer, micro, self.fabric.backward)
        if not self._redraw:
            return train_step(*arguments)
        # Dropout and stochastic depth draw from torch's generator: seeded per step, so that a resumed run agrees.
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.bits(rng.fold(rng.key(self.run.seed), step), 1)[0]))
            return train_step(*arguments)

    def _look(self, step: int, metrics: _Metrics, observe: Callable[[Progress], None], seconds: float) -> Probe | None:
        if self.hold_out is None:
            return None
        with self.fabric.autocast():
            try:
                probe = self.hold_out.look(self.method, step, late=2 * step >= self.run.total_steps)
            except ValueError as error:
                raise self._diverged(str(error), step) from None
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
        path = checkpoint.latest(self.directory / "checkpoints")
        return 0 if path is None else checkpoint.load(path, self.networks, self.optimizer)


class _Metrics:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = directory / "metrics.jsonl"
        self._skipped = directory / "skipped.jsonl"
        _drop_after(self._path, start or -1)  # a run that starts anew looks at step 0 again
        _drop_after(self._skipped, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start or None)

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

    def skipped(self, step: int, replaced: list[tuple[int, str]]) -> None:
        if replaced:
            with self._skipped.open("a", encoding="utf-8") as file:
                for image, reason in replaced:
                    file.write(json.dumps({"step": step, "id": image, "reason": reason}) + "\n")

    def close(self) -> None:
        self._file.close()
        self._board.close()


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
