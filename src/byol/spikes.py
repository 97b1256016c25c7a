"""Is a loss out of line with those before it?"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 50
"""Losses of steps that one is compared with."""
LEAST = 0.01
"""Of the largest of them, by absolute value: a loss that stood still may move by so much."""


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss lies above the last WINDOW by more than they lie apart. This package's choice: no loss has a scale
    or a sign that another would share. False while there are fewer."""
    if len(before) < WINDOW:
        return False
    low, high = min(before), max(before)
    return loss > high + max(high - low, LEAST * max(abs(low), abs(high)))
