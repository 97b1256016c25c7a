"""Schedules: numbers that depend on how far training is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def target_decay(progress: float, base: float) -> float:
    """The target's decay tau_k = 1 - (1 - base) (cos(pi k/K) + 1) / 2. Grill et al. 2020, section 3.3.

    progress: k/K in [0, 1]; 0 gives exactly `base`, 1 gives 1.
    """
    if progress == 0:
        return base
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def warmup_cosine(step: float, *, warmup_steps: int, total_steps: int, final: float = 0.0) -> float:
    """The learning rate as a share of its peak: step/W while step < W, then a half cosine from 1 to `final` at K.

    Linear from 0, so the first update of a run with warm-up moves nothing, as in the authors' code.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return final
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
    return final + (1 - final) * cosine


def warmup_drops(step: float, *, warmup_steps: int, total_steps: int, drops: Sequence[float]) -> float:
    """The same warm-up, then a tenth after each of `drops`, shares of the run in (0, 1)."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.1 ** sum(step >= round(share * total_steps) for share in drops)
