"""Convolutions of small feature maps as matrix products, where that is faster: bfloat16 on CPUs.

With AMX, oneDNN's bfloat16 convolutions lose most of the matrix rate on maps of a few pixels: at 512 channels and
4 x 4 px its weight gradient ran at 88 GFLOP/s on a CPU whose matrix product reached 700.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The patches a convolution sees, as rows: [B, C, H, W] -> [B H' W', kernel kernel C], channels fastest."""
    images = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    b, h, w, c = images.shape
    rows, columns = (h - kernel) // stride + 1, (w - kernel) // stride + 1
    sb, sh, sw, sc = images.stride()
    windows = images.as_strided((b, rows, columns, kernel, kernel, c), (sb, sh * stride, sw * stride, sh, sw, sc))
    return windows.reshape(b * rows * columns, kernel * kernel * c)


def one_output(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """A convolution whose output is one pixel: [B, C, H, W] -> [B, out, 1, 1]. Of the kernel only the taps that fall
    on the map are multiplied: one of nine on a map of one pixel."""
    height, width = (min(size, kernel - padding) for size, kernel in zip(x.shape[-2:], weight.shape[-2:], strict=True))
    seen = x[..., :height, :width].permute(0, 2, 3, 1).flatten(1)
    taps = weight[..., padding : padding + height, padding : padding + width].permute(0, 2, 3, 1).flatten(1)
    return nn.functional.linear(seen, taps)[:, :, None, None]


class _MatrixConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        out, _, kernel, _ = weight.shape
        size = [(s + 2 * padding - kernel) // stride + 1 for s in x.shape[-2:]]
        found = patches(x, kernel, stride, padding) @ weight.permute(0, 2, 3, 1).reshape(out, -1).T
        return found.view(len(x), *size, out).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        out, channels, kernel, _ = weight.shape
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, out)
            found = rows.T @ patches(x, kernel, ctx.stride, ctx.padding)
            of_weight = found.view(out, kernel, kernel, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            if ctx.stride == 1:
                turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, channels)
                of_x = patches(gradient, kernel, 1, kernel - 1 - ctx.padding) @ turned
                of_x = of_x.view(len(x), *x.shape[-2:], channels).permute(0, 3, 1, 2)
            else:
                of_x = torch.ops.aten.convolution_backward(
                    gradient, x, weight, None, [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1,
                    [True, False, False],
                )[0]  # fmt: skip
        return of_x, of_weight, None, None


class MatrixConv2d(nn.Conv2d):
    """nn.Conv2d, computed as a matrix product under CPU bfloat16 autocast where the output has at most
    LARGEST_MAP pixels; elsewhere, and in its parameters, an nn.Conv2d."""

    LARGEST_MAP = 16 if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else 1
    """Pixels of the output map up to which the matrix product was faster at every width tried: with AMX 1.8 to 3.3
    times up to 16; else oneDNN keeps its rate, except on maps of one pixel, where it multiplies zeros."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        pixels = 1
        for size in x.shape[-2:]:
            pixels *= (size + 2 * padding - kernel) // stride + 1
        if pixels > self.LARGEST_MAP or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            x, weight = x.to(dtype), self.weight.to(dtype)
            if pixels == 1:
                found = one_output(x, weight, padding)
            else:
                found = _MatrixConvolution.apply(x, weight, stride, padding)
            return found if self.bias is None else found + self.bias.to(dtype)[:, None, None]


def use_matrix_products(module: nn.Module) -> None:
    """Turn the plain square convolutions in `module` into MatrixConv2d, in place; names and parameters stay."""
    for part in module.modules():
        if (
            type(part) is nn.Conv2d
            and part.groups == 1
            and part.padding_mode == "zeros"
            and part.dilation == (1, 1)
            and len(set(part.kernel_size)) == len(set(part.stride)) == 1
            and not isinstance(part.padding, str)
            and len(set(part.padding)) == 1
        ):
            part.__class__ = MatrixConv2d


def without_matrix_products(module: nn.Module) -> None:
    """Undo `use_matrix_products`."""
    for part in module.modules():
        if type(part) is MatrixConv2d:
            part.__class__ = nn.Conv2d  # type: ignore[assignment]
