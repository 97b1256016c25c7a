"""Schedules: numbers that depend on how far training is."""

from __future__ import annotations

import math


def target_decay(progress: float, base: float) -> float:
    """The target's decay tau_k = 1 - (1 - base) (cos(pi k/K) + 1) / 2. Grill et al. 2020, section 3.3.

    progress: k/K in [0, 1]; 0 gives exactly `base`, 1 gives 1.
    """
    if progress == 0:
        return base
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The learning rate as a share of its peak: step/W while step < W, then a half cosine from 1 to 0 at K.

    Linear from 0, so the first update of a run with warm-up moves nothing, as in the authors' code.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
