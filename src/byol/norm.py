"""Batch normalisation over a stated set of images: the batch of all processes, or equal groups of it.

torch's SyncBatchNorm refuses CPU tensors and knows no groups within a process, hence this one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from byol import rng
from byol.parallel import gather, own, world_size


class SharedBatchNorm(_BatchNorm):
    """Batch norm of the global batch, or of each of `groups` equal parts of it, in order of rows and ranks.

    Running statistics are those of the global batch, or the mean of the groups', and the same in every process.
    """

    groups: int | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of torch's own)
        if not self.training:
            output = super().forward(input)
        elif self.groups not in (None, 1):
            output = self._in_groups(input)
        elif world_size() > 1:
            output = self._over_world(input)
        else:
            output = super().forward(input)
        # timm's BatchNormAct2d holds these.
        for name in ("drop", "act"):
            if name in self._modules:
                output = getattr(self, name)(output)
        return output

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any [B, C, ...] will do."""

    def _over_world(self, x: Tensor) -> Tensor:
        output, mean, var = _OverWorld.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None, "kept wherever running statistics are"
            self.num_batches_tracked.add_(1)
            count = world_size() * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self._momentum())
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), self._momentum())
        return output

    def _in_groups(self, x: Tensor) -> Tensor:
        assert self.groups is not None, "checked by the caller"
        here, odd = divmod(self.groups, world_size())
        if odd or len(x) % here:
            raise ValueError(
                f"{world_size()} processes with {len(x)} images each do not make {self.groups} equal groups for "
                "batch norm; use a number of groups that the processes divide and that divides the batch"
            )
        if self.running_mean is None or self.running_var is None:
            groups = [F.batch_norm(p, None, None, self.weight, self.bias, True, eps=self.eps) for p in x.chunk(here)]
            return torch.cat(groups)
        assert self.num_batches_tracked is not None, "kept wherever running statistics are"
        self.num_batches_tracked.add_(1)
        means, variances = self.running_mean.repeat(here, 1), self.running_var.repeat(here, 1)
        groups = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self._momentum(), self.eps)
            for part, mean, var in zip(x.chunk(here), means, variances, strict=True)
        ]
        self.running_mean.copy_(gather(means).mean(0))
        self.running_var.copy_(gather(variances).mean(0))
        return torch.cat(groups)

    def _momentum(self) -> float:
        return 0.1 if self.momentum is None else self.momentum


class _OverWorld(torch.autograd.Function):
    """Batch norm of the rows of all processes, by the kernels of torch's own: (output, mean [C], variance [C]).

    Each pass exchanges two numbers a channel: the mean and the variance going forward, and the sums over rows of dy
    and of dy times the normalised x coming back (Ioffe & Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Of a mean of squares minus a squared mean little is left in float32; means and variances merge exactly.
        # Running statistics, which stay as they are, make those of bfloat16 rows float32.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        unused = x.new_zeros(x.shape[1], dtype=dtype)
        parts = gather(torch.stack(torch.batch_norm_update_stats(x, unused, unused, 0.0))[None])
        means, variances = parts[:, 0], parts[:, 1]
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        scale = torch.rsqrt(var + ctx.eps)
        # The sums alone, for which CUDA's kernel wants to be given weights and what the forward pass would have kept.
        factors = torch.ones_like(mean) if weight is None else weight
        _, dot, total = torch.ops.aten.native_batch_norm_backward(
            dy, x, factors, mean, var, mean, scale, False, ctx.eps, [False, True, True]
        )
        dx = None
        if needs_x:
            sums = torch.stack([dot, total]).to(mean.dtype)
            dist.all_reduce(sums)
            dot_mean, dy_mean = sums / (world_size() * x.numel() // x.shape[1])
            scale = scale * factors
            # dx = scale (dy - mean of dy - normalised x times mean of dot), by the kernel of the forward pass, which
            # keeps what is of a channel in float32 beside bfloat16 rows.
            # (0.5 and 0.5 make 1: an epsilon of 0 is refused.)
            half = torch.full_like(var, 0.5)
            dx = F.batch_norm(dy, torch.zeros_like(mean), half, scale, -scale * dy_mean, False, eps=0.5)
            dx += F.batch_norm(x, mean, var, -scale * dot_mean, torch.zeros_like(mean), False, eps=ctx.eps)
        return dx, dot if needs_weight else None, total if needs_bias else None, None


def share(module: nn.Module, groups: int | None = None) -> nn.Module:
    """Turn each batch norm in `module` into a SharedBatchNorm, in place; names and parameters stay. Those that already
    have groups keep them."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and getattr(part, "groups", None) is None:
            part.__class__ = SharedBatchNorm
            part.groups = groups  # type: ignore[assignment]
    return module


def check_groups(groups: int, batch_size: int) -> None:
    """ValueError where `groups` do not part a batch evenly. A part of one image has no batch statistics."""
    if groups not in (fit := [g for g in range(1, batch_size // 2 + 1) if batch_size % g == 0]):
        near = f"use groups= one of {', '.join(map(str, fit[:8]))}"
        raise ValueError(f"groups={groups} does not divide a batch of {batch_size} into parts of 2 and more; {near}")


def dealt(network: nn.Module, x: Tensor, ids: Tensor, key: Tensor) -> Tensor:
    """network(x), the images dealt to the groups of its batch norm by (key, id): not by row or process.

    x: [B, ...], without gradient. ids: [B] int64. key: [2]. Returns network's [B, d], row i of image i.
    """
    order = rng.by_words(rng.fold(key, gather(ids)))
    found = gather(network(own(gather(x)[order])))
    return own(found[torch.argsort(order)])
