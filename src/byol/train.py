"""The training loop, and the only file that knows the engine.

The engine is Lightning's Fabric, for devices, precision and loggers, and not its Trainer: the batches of a run are a
function of the step number and everything a step changes happens in `Method.after_step`, so the loop
(`Training._steps`) stands in the open, and to resume is to start it at another number.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from byol import checkpoint, cluster, rng
from byol.dashboard import Dashboard
from byol.data.loader import Batch, Loader, Normalization, split_hold_out
from byol.data.source import DataError, Source
from byol.diagnose import SETTLED_STEPS, Health
from byol.encoder import SMALL_IMAGE_PX
from byol.export import parameter_count, save_backbone
from byol.files import write_json
from byol.journal import Journal, Progress
from byol.machine import process_memory
from byol.methods import Method
from byol.metrics import SKIPPED
from byol.networks import build, compile_networks, make_optimizer
from byol.online import ADVICE, HoldOut, Probe
from byol.parallel import agreed, collected, everywhere, lost, met, met_with, missing, rank, together, world_size
from byol.run import RUN, Run
from byol.signals import Noted, noted
from byol.spikes import WINDOW, is_spike
from byol.step import Gradients, apply, gradients, train_step
from byol.views import recipes
from byol.views.view import View

LOG_EVERY_STEPS = 10
CHECKPOINTS = "checkpoints"
REPLAN_AT = 0.2
"""Share of a budget of time after which the steps that fit are counted again."""
COMPILE_FROM_IMAGES = 20_000
"""Of 224 px: compiling the views takes half a minute, and saves about 5 ms an image on a CPU core."""


class TrainingStopped(RuntimeError):
    """Training ended early for a reason a person should read; what was written stays usable. code: what the command
    then exits with."""

    code = 1


class Interrupted(TrainingStopped):
    """A signal ended a run: after a step, whose state is saved, or at once where no step was under way. number: of the
    signal."""

    def __init__(self, line: str, number: int = 0) -> None:
        super().__init__(line)
        self.number = number
        self.code = 128 + number


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
        self.saved = 0
        self._done = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)
        # All that a forward pass changes: a step that goes wrong gives it back.
        self._statistics = [b for m in self.networks.modules() if isinstance(m, _NormBase) for b in m.buffers(False)]
        self._statistics_before = [buffer.clone() for buffer in self._statistics]
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

    def fit(
        self,
        observe: Callable[[Progress], None],
        *,
        begin: Path | None = None,
        budget: Budget | None = None,
        say: Callable[[str], None] = lambda line: None,
        dashboard: Dashboard | None = None,
    ) -> None:
        """Train to the end, writing metrics, checkpoints and at last the backbone.

        begin: the checkpoint to go on from. budget: when to end, by planning again once. say: is told what a person
        should read meanwhile. dashboard: gets every line of numbers too. Interrupted where a signal asks for it: after
        a whole step, while there are steps.
        """
        start = self._done = 0 if begin is None else self.restore(begin)
        self._journal = Journal(self.run, self.directory, start, observe, say, dashboard)
        self._found = [found for step, found in self._journal.looks if self._settled(step)]
        if self.fabric.device.type == "cuda":  # the trial steps held a second copy of everything
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        try:
            if budget is not None:
                budget.training = time.perf_counter()
            if self._looks(start) and not self._journal.looked:
                self._look(budget)
            self._journal.clock(start)
            with noted() as asked:
                self._steps(start, asked, budget)
            if rank() == 0:
                written = partial(save_backbone, self.method.encoder, self.run, self.directory, step=self._done)
                self._journal.write(written)
            if (line := met(self._journal.unwritten)) is not None:
                raise self._ended(line, 0)
        except KeyboardInterrupt as asked:
            number = getattr(asked, "number", int(signal.SIGINT))
            how = f"goes on after {self.saved} steps" if self.saved else "begins it again"
            line = f"{signal.Signals(number).name} ended it at once, after {self._done} steps; --resume {how}"
            raise everywhere(Interrupted(line, number), 128 + number) from None
        except RuntimeError as error:
            if not lost(error):
                raise
            after = f"after {self._done} steps; --resume goes on after {self.saved}"
            raise missing(error, TrainingStopped, after) from error
        finally:
            self._journal.close()
            self.loader.source.rest()

    def _steps(self, start: int, asked: Noted, budget: Budget | None) -> None:
        """All steps from a number on."""
        run, journal = self.run, self._journal
        # Of a run that may get longer, more are ready to be made than it will have.
        end = run.total_steps * run.accumulate if budget is None else sys.maxsize // run.batch_size
        batches = self.loader.batches(start * run.accumulate, end)
        self.module.train()
        following = self._read(batches) if start < run.total_steps else ([], None)
        while (step := self._done) < self.run.total_steps:
            micro, unread = following
            line, number = met_with(unread or journal.unwritten, asked.number)
            if line is not None or number:
                raise self._ended(line, number)  # the state is whole: no part of this step is done
            taken = self.passes(step, micro)
            # Made while a GPU works on the passes, whose end the next line waits for.
            following = self._read(batches) if step + 1 < self.run.total_steps else ([], None)
            losses = {name: float(value) for name, value in taken.losses.items()}
            norm = float(taken.norm)
            if not (all(map(math.isfinite, losses.values())) and (math.isfinite(norm) or not self.wrong())):
                raise self._not_finite(micro, losses)
            apply(self.run, step, self.method, self._optimizer, taken)
            self._done += 1
            self._after(micro, losses, norm, budget)

    def _after(self, micro: list[Batch], losses: dict[str, float], norm: float, budget: Budget | None) -> None:
        """What is written after a step, and whether the run is to go on."""
        run, journal, done = self.run, self._journal, self._done
        last = done == run.total_steps
        journal.replaced(done, micro)
        if is_spike(losses["loss"], self._losses):
            journal.spike(done, losses["loss"], statistics.median(self._losses))
        self._losses.append(losses["loss"])
        logs = last or done % LOG_EVERY_STEPS == 0
        saves = last or done % run.checkpoint_every_steps == 0
        looks = self._looks(done)
        if logs or saves or looks:
            journal.exchange()
        if logs:
            values = {
                **losses,
                "gradient_norm": norm,
                "lr": self.optimizer.param_groups[0]["lr"],
                **self.method.status(run.progress(done - 1)),
            }
            if last and (memory := self.peak_memory()):
                values["peak_memory_bytes"] = memory
            journal.log(done, run.total_steps, values)
        if saves:
            journal.settle()
            self._save()
        if (logs or saves or looks) and self._mostly_bad():
            self._save()
            raise everywhere(self._stopped_for_bad())
        if looks:
            self._look(budget)
        if budget is not None and logs and not last and run.replan is None and agreed(budget.spent()) >= REPLAN_AT:
            steps = agreed(budget.steps(done, run.evaluate_every_steps))
            self.run = replace(run, total_steps=steps, replan=(done, run.total_steps))
            journal.write(self.run.write, self.directory / RUN)

    def _read(self, batches: Iterator[Batch]) -> tuple[list[Batch], Exception | None]:
        """(the micro-batches of a step, why there are none)"""
        try:
            return [next(batches) for _ in range(self.run.accumulate)], None
        except (DataError, OSError) as error:
            return [], error

    def _save(self) -> None:
        """A checkpoint, by the first process, unless there is one."""
        if rank() == 0 and self.saved < self._done:
            self._journal.write(self.save, self._done)
        if self._journal.unwritten is None:
            self.saved = max(self.saved, self._done)

    def _ended(self, line: str | None, number: int) -> BaseException:
        """What to raise where the run has to end before a step: because of what `line` says, or of a signal."""
        self._journal.exchange()
        if (unwritten := agreed(self._journal.unwritten is not None)) is False:
            self._save()
        saved = agreed(self.saved)
        state = f"the state after {saved} steps is saved, --resume goes on"
        why = self._journal.unwritten
        if unwritten or why is not None:
            what = f"{why.strerror}: {why.filename}" if why is not None else line
            return everywhere(TrainingStopped(f"{what}; {state} once there is room or permission"))
        if number:  # workers end by the same signal, and cannot be read from
            name = signal.Signals(number).name
            return everywhere(Interrupted(f"{name} after {self._done} steps; {state}", number), 128 + number)
        return everywhere(TrainingStopped(f"{line}; {state}"))

    def _not_finite(self, micro: list[Batch], losses: dict[str, float]) -> BaseException:
        """What to raise where the passes of a step gave a number that is not one: weights and statistics are those from
        before it, and are saved, with what the step saw."""
        torch._foreach_copy_(self._statistics, self._statistics_before)
        wrong = self.wrong()
        self.optimizer.zero_grad()
        ids = collected([[batch.ids.tolist() for batch in micro]])
        self._journal.exchange()
        step = self._done
        place = failure(self.directory, step)
        if rank() == 0:
            drawn = [image for parts in zip(*ids, strict=True) for part in parts for image in part]
            found = {"step": step, **losses, "gradients_not_finite": wrong, "ids": drawn}
            self._journal.write(partial(self.save, step, place))
            self._journal.write(write_json, place / "batch.json", found)
        names = [name for name, value in losses.items() if not math.isfinite(value)] or ["a gradient"]
        return everywhere(
            TrainingStopped(
                f"{names[0].replace('_', ' ')} is not finite in step {step}, which changed no weight; `byol pretrain "
                f"--replay {self.directory} {step}` draws its batch again and shows where. Try a lower --base-lr, or "
                "--precision 32"
            )
        )

    def wrong(self) -> list[str]:
        """The parameters whose gradients are not finite."""
        named = self.networks.named_parameters()
        return [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]

    def _mostly_bad(self) -> bool:
        """Whether more images than `max_bad` allows turned out unusable, of those seen so far or of a thousand."""
        seen = min(self.num_train, max(1000, self._done * self.run.images_per_step))
        return len(self._journal.bad) > self.run.max_bad * seen

    def _stopped_for_bad(self) -> TrainingStopped:
        seen = min(self.num_train, self._done * self.run.images_per_step)
        return TrainingStopped(
            f"{len(self._journal.bad):,} of about {seen:,} images turned out unusable, more than --max-bad "
            f"{self.run.max_bad:g} allows; {self.directory}/{SKIPPED} lists them. Stopped after {self._done} steps; "
            "mend the data and begin anew, or go on with --resume and a larger --max-bad"
        )

    def _looks(self, done: int) -> bool:
        return done % self.run.evaluate_every_steps == 0 or done == self.run.total_steps

    def passes(self, step: int, micro: list[Batch]) -> Gradients:
        """The gradients of a step; of what it changes, `_statistics_before` keeps what was."""
        torch._foreach_copy_(self._statistics_before, self._statistics)
        apart = partial(self.fabric.no_backward_sync, self.module)
        arguments = (self.run, step, self.module, micro, self.fabric.backward, apart)
        if not self._redraw:
            return gradients(*arguments)
        # Dropout and stochastic depth draw from torch's generator: seeded per step, so that a resumed run agrees.
        with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []):
            torch.manual_seed(int(rng.bits(rng.fold(rng.key(self.run.seed), step), rank() + 1)[-1]))
            return gradients(*arguments)

    def step(self, step: int, micro: list[Batch]) -> dict[str, Tensor]:
        """A whole step; `step` is the number of steps done before it. Returns the mean losses, on the device."""
        taken = self.passes(step, micro)
        apply(self.run, step, self.method, self._optimizer, taken)
        return taken.losses

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
        return step >= SETTLED_STEPS and self.run.schedule(step)[0] >= self.run.warmup_steps

    def _look(self, budget: Budget | None) -> None:
        """Look at held-out images, if there are any; two looks in a row that find a collapse may end the run."""
        journal, step = self._journal, self._done
        if self.hold_out is None:
            return
        with journal.paused() as seconds:
            began = time.perf_counter()
            probe = agreed(self._found_by_first(step) if rank() == 0 else None)
            if isinstance(probe, TrainingStopped):
                raise everywhere(probe)
            assert probe is not None, "the first process looked"
            journal.look(step, self.run.total_steps, probe, seconds)
            if budget is not None:
                budget.looks.append(time.perf_counter() - began)
        journal.collapsed = journal.collapsed + 1 if step and probe.word == "collapsed" else 0
        if journal.collapsed >= 2 and self.run.stop_on_collapse:
            self._save()
            raise everywhere(TrainingStopped(f"stopped at step {step}: {ADVICE}"))

    def _found_by_first(self, step: int) -> Probe | TrainingStopped:
        """What the first process finds in a look, or why the run has to end."""
        try:
            probe = self.look(step)
        except (DataError, OSError) as error:
            self._save()
            return TrainingStopped(f"{error}; the state after {step} steps is saved, --resume goes on")
        except ValueError as error:
            return TrainingStopped(
                f"{error} at step {step}; the last checkpoint is whole. Try a lower --base-lr or --precision 32"
            )
        self._found += [probe.health] if self._settled(step) else []
        return probe

    def peak_memory(self) -> int | None:
        """The most memory taken so far, bytes: of the device's own, else of this process; None where nobody knows."""
        if self.fabric.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.fabric.device)
        return process_memory()

    def restore(self, path: Path) -> int:
        """Take the state of a checkpoint; the number of steps done then."""
        self.saved, notes = checkpoint.load(path, self.networks, self.optimizer)
        self._losses.extend(notes["losses"])
        return self.saved

    def save(self, step: int, directory: Path | None = None) -> None:
        """Write the state after `step` steps among the checkpoints, or into another directory. OSError where it cannot
        be."""
        place = directory or self.directory / CHECKPOINTS
        notes = {"losses": list(self._losses)}
        checkpoint.save(place, step, self.networks, self.optimizer, keep=self.run.keep, notes=notes)


def failure(directory: Path, step: int) -> Path:
    """Where a run keeps the state and the batch of a step that gave numbers that are not finite."""
    return directory / "failures" / f"step-{step:09d}"
