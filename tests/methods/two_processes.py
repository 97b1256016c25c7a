"""What two real processes compute of each method's step, written to a file for the tests to compare."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from methods import outside
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from byol import conformance, parallel
from byol.names import METHODS
from byol.norm import share

WORLD = 2
DTYPES = {"float64": torch.float64, "float32": torch.float32}
VARIANTS = {  # name -> (method, arguments other than its defaults)
    **{name: (name, {}) for name in METHODS},
    "moco_v1": ("moco", {"hidden": None, "temperature": 0.07}),
    "moco_symmetric": ("moco", {"symmetric": True, "queue": 32}),
    "moco_one_group": ("moco", {"groups": 1}),
    "moco_two_groups": ("moco", {"groups": 2}),
    "instdisc_nce": ("instdisc", {"negatives": 16}),
    "from_outside": (outside.NAME, {}),
}


def measure(name, dtype, *, seeds=((0,),), progress=0.0):
    """Loss, gradients and state of steps of a method; each step is a tuple of seeds, one for each micro-batch.

    In several processes each one takes its own part of every batch, under DistributedDataParallel.
    """
    kind, arguments = VARIANTS[name]
    method = conformance.make(kind, dtype=dtype, **arguments)
    model, part = method, slice(None)
    if parallel.world_size() > 1:
        share(method)
        model = DistributedDataParallel(method, broadcast_buffers=False)
        size = conformance.BATCH // parallel.world_size()
        part = slice(parallel.rank() * size, (parallel.rank() + 1) * size)
    found = {}
    for step, micro in enumerate(seeds):
        outs = []
        method.zero_grad()
        for number, seed in enumerate(micro):
            views, given = conformance.rows(*conformance.batch(method, seed=seed), part)
            asked = {n: given[n] for n in conformance.wanted(type(method))}
            last = number + 1 == len(micro)
            with nullcontext() if last or model is method else model.no_sync():
                out = model(*views, **asked)
                (out.loss / len(micro)).backward()
            outs.append(out.detach())
        found[f"{step}|loss"] = torch.stack([out.loss for out in outs]).mean()
        for part_name, parameter in method.named_parameters():
            if parameter.grad is not None:
                found[f"{step}|gradient|{part_name}"] = parameter.grad.clone()
        conformance.descend(method)
        method.after_step(step / len(seeds), outs)
    for part_name, value in method.state_dict().items():
        found[f"state|{part_name}"] = value.clone()
    return found


STEPS = ((0,), (1,), (2,))
MICRO = ((0, 1), (2, 3))


def jobs():
    """Key -> a call that measures it; the same in one process and in two."""
    found = {}
    for name in VARIANTS:
        for dtype in DTYPES:
            found[f"{name}|{dtype}|steps"] = (name, DTYPES[dtype], STEPS)
        found[f"{name}|float64|micro"] = (name, torch.float64, MICRO)
    return found


def normalised(dtype, shape, affine):
    """Batch norm alone, its parameters float32 beside bfloat16 rows: output, gradients, running statistics. In several
    processes, of each one's part of the rows."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(shape[1], affine=affine) if len(shape) < 4 else nn.BatchNorm2d(shape[1], affine=affine)
    norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    x, weights = (3 * torch.randn(2, *shape, dtype=torch.float64) + 2).to(dtype)
    if parallel.world_size() > 1:
        share(norm)
        x, weights = (whole.chunk(WORLD)[parallel.rank()] for whole in (x, weights))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    output = norm(x)
    (weights * output).sum().backward()
    found = {"output": output.detach(), "gradient": x.grad, "mean": norm.running_mean, "var": norm.running_var}
    return found | {name: parameter.grad for name, parameter in norm.named_parameters()}


NORMALISED = {
    f"{str(dtype)[6:]}|{shape}|{affine}": (dtype, shape, affine)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for shape in ((16, 5), (4, 5, 7), (8, 5, 6, 5))
    for affine in (True, False)
}


def keep_own_gradient_only(ctx, *gradients):
    return parallel.own(gradients[0])


def work(rank, store, path):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.path.insert(0, path)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    found = {key: measure(name, dtype, seeds=seeds) for key, (name, dtype, seeds) in jobs().items()}
    found |= {key: normalised(*of) for key, of in NORMALISED.items()}
    right = parallel._Gather.backward
    parallel._Gather.backward = staticmethod(keep_own_gradient_only)
    for name in VARIANTS:
        found[f"{name}|wrong gather"] = measure(name, torch.float64)
    parallel._Gather.backward = right
    torch.save(found, Path(path) / f"rank{rank}.pt")
    dist.destroy_process_group()
