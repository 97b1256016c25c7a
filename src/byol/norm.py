"""Batch normalisation over a stated set of images: the batch of all processes, or equal groups of it.

torch's SyncBatchNorm refuses CPU tensors and knows no groups within a process, hence this one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
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
        full = x if x.dtype == torch.float64 else x.float()
        dims = [d for d in range(x.ndim) if d != 1]
        # Of a mean of squares minus a squared mean little is left in float32; means and variances merge exactly.
        var, mean = torch.var_mean(full, dims, correction=0)
        parts = gather(torch.stack([mean, var])[None])
        means, variances = parts[:, 0], parts[:, 1]
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None, "kept wherever running statistics are"
            self.num_batches_tracked.add_(1)
            count = world_size() * x.numel() // x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self._momentum())
                self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), self._momentum())
        shape = [1, -1] + [1] * (x.ndim - 2)
        found = (full - mean.view(shape)) * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            found = found * self.weight.view(shape)
        if self.bias is not None:
            found = found + self.bias.view(shape)
        return found.to(x.dtype)

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
    order = rng.by_words(rng.fold(key, gather(ids))).to(x.device)
    found = gather(network(own(gather(x)[order])))
    return own(found[torch.argsort(order)])
