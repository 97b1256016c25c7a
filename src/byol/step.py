"""One optimizer step: passes of its micro-batches, and what moves by them. No device or engine is known here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from byol import rng
from byol.data.loader import Batch
from byol.methods import Method, Out
from byol.run import Run
from byol.schedules import warmup_cosine, warmup_drops


@dataclass(frozen=True)
class Gradients:
    """What the passes of one step gave; the gradients themselves lie with the parameters.

    outs: detached, one for each micro-batch. losses: their means, detached, on the device. norm: of all gradients
    together, on the device; not finite where one of them is not, or where their squares are too large.
    """

    outs: list[Out]
    losses: dict[str, Tensor]
    norm: Tensor


def gradients(
    run: Run,
    step: int,
    networks: nn.Module,
    batches: list[Batch],
    backward: Callable[[Tensor], None],
    apart: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Gradients:
    """The gradients of one optimizer step from its micro-batches; `step` is the number of steps done before it.

    apart: a context in which processes do not exchange gradients, for all micro-batches but the last.
    """
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
    losses = {
        "loss": torch.stack([out.loss for out in outs]).mean(),
        "classifier_loss": torch.stack(classifier_losses).mean(),
    }
    given = [p.grad for p in networks.parameters() if p.grad is not None]
    # Of absolute values the largest would say it exactly, and takes ten times as long on a CPU.
    return Gradients(outs, losses, nn.utils.get_total_norm(given))


def apply(run: Run, step: int, method: Method, optimizer: torch.optim.Optimizer, taken: Gradients) -> None:
    """Move the weights by the gradients, and do what the method does after a step."""
    share = learning_rate_share(run, step)
    held = min(1.0, run.schedule(step)[0] / run.warmup_steps) if run.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = run.peak_lr * group["lr_scale"] * (held if group["constant"] else share)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(run.progress(step), taken.outs)


def train_step(
    run: Run,
    step: int,
    networks: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """A whole optimizer step; `step` is the number of steps done before it. Returns the mean losses, on the device."""
    taken = gradients(run, step, networks, batches, backward)
    apply(run, step, method, optimizer, taken)
    return taken.losses


def learning_rate_share(run: Run, step: int) -> float:
    """The learning rate as a share of its peak at a step."""
    position, total = run.schedule(step)
    if position >= run.warmup_steps:
        position = max(position // run.lr_every_steps * run.lr_every_steps, run.warmup_steps)
    if run.lr_drops:
        return warmup_drops(position, warmup_steps=run.warmup_steps, total_steps=total, drops=run.lr_drops)
    return warmup_cosine(position, warmup_steps=run.warmup_steps, total_steps=total, final=run.final_lr)
