"""Rates of ResNet-18's 3x3 convolutions in bfloat16 on this CPU, and of other ways to their weight gradient.

    .venv/bin/python benchmarks/convolutions.py

The maps are those of 32 px images behind a 3x3 stem, batch 128, channels last. Medians, GFLOP/s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from byol.convolution import patches

MAPS = ((64, 32), (128, 16), (256, 8), (512, 4))


def product(x: Tensor, gradient: Tensor) -> Tensor:
    """What byol.convolution does on small maps."""
    return gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches(x, 3, 1, 1)


def turned_product(x: Tensor, gradient: Tensor) -> Tensor:
    return gradient.permute(0, 2, 3, 1).flatten(0, 2).T.contiguous() @ patches(x, 3, 1, 1)


def shifted_products(x: Tensor, gradient: Tensor) -> Tensor:
    """One product for each tap: in padded maps laid out row by row, a shift by a tap is an offset."""
    padded_x, padded_gradient = (
        nn.functional.pad(t.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2) for t in (x, gradient)
    )
    width = x.shape[3] + 2
    margin, length = width + 1, len(padded_x)
    rows = padded_gradient[margin : length - margin].T
    shifts = [i * width + j for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return torch.cat([rows @ padded_x[margin + s : length - margin + s] for s in shifts], dim=1)


def median_rate(call: Callable[[], object], operations: float, repeats: int = 15) -> float:
    call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return operations / statistics.median(taken) / 1e9


def main() -> None:
    a = torch.randn(2048, 2048, dtype=torch.bfloat16)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ", end="")
    print(f"matrix product {median_rate(lambda: a @ a, 2 * 2048**3):.0f} GFLOP/s\n")
    ways = ("forward", "input gradient", "weight gradient", "product", "turned product", "shifted products")
    print(f"| channels, map | {' | '.join(ways)} |\n|{' --- |' * (len(ways) + 1)}")
    for channels, side in MAPS:
        x, gradient = (
            torch.randn(128, channels, side, side, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
            for _ in range(2)
        )
        weight = torch.randn(channels, channels, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last)

        def backward(mask: list[bool], x=x, weight=weight, gradient=gradient) -> Tensor:  # type: ignore[no-untyped-def]
            found = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )
            return found[mask.index(True)]

        expected = backward([False, True, False]).permute(0, 2, 3, 1).flatten(1)
        for way in (product, turned_product, shifted_products):
            torch.testing.assert_close(way(x, gradient), expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
        calls: tuple[Callable[[], object], ...] = (
            lambda x=x, weight=weight: nn.functional.conv2d(x, weight, padding=1),
            lambda backward=backward: backward([True, False, False]),
            lambda backward=backward: backward([False, True, False]),
            lambda x=x, gradient=gradient: product(x, gradient),
            lambda x=x, gradient=gradient: turned_product(x, gradient),
            lambda x=x, gradient=gradient: shifted_products(x, gradient),
        )
        rates = [median_rate(call, 2 * x.numel() * channels * 9) for call in calls]
        print(f"| {channels}, {side} x {side} | {' | '.join(f'{r:.0f}' for r in rates)} |", flush=True)


if __name__ == "__main__":
    main()
