"""How the processes of one run find each other: torchrun's or SLURM's, through Lightning's Fabric.

Nothing is started here: a launcher started the processes, and each of them runs the same command.
"""

from __future__ import annotations

import atexit
import logging
import signal
import subprocess
import warnings
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from byol.launch import launched, launched_job, restarts
from byol.run import Precision

# Buffers are equal by what each process computes. PyTorch 2.15 renamed what leaves them alone.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
_KEEP_BUFFERS: dict[str, Any] = {
    next(n for n in _NAMES if n in signature(DistributedDataParallel.__init__).parameters): False
}
TIMEOUT_SECONDS = 900.0
"""The first process looks at held-out images, lists a million files and writes a checkpoint in less."""
_FABRIC_PRECISION = {"bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def fabric(device: str, precision: Precision = "32", timeout: float = TIMEOUT_SECONDS) -> Fabric:
    """The engine of one process, joined to the others that the launcher started. ValueError where this machine has not
    what is asked for. timeout: how long a process waits for another before that counts as hanging, s."""
    _check(device, precision)
    # The plan says the precision already, and the launcher how many there are.
    for name in ("lightning_fabric.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    world, local = launched()
    if world == 1:
        return Fabric(
            accelerator=device,
            devices=1,
            precision=_FABRIC_PRECISION[precision],  # type: ignore[arg-type]
            plugins=[LightningEnvironment()],  # also within a job of one process
        )
    engine = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        precision=_FABRIC_PRECISION[precision],  # type: ignore[arg-type]
        # Plain values are exchanged by the processors, so that no GPU is waited for.
        strategy=DDPStrategy(
            process_group_backend="cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout),
            **_KEEP_BUFFERS,
        ),
        plugins=[_environment()],
    )
    if restarts() and not dist.is_initialized():
        _meet_again(timeout)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*device under current context.*")
        engine.launch()
    atexit.unregister(_leave)
    atexit.register(_leave)
    return engine


def _meet_again(timeout: float) -> None:
    """Where torchrun keeps one store for all attempts, what processes that are gone left there would be taken for
    theirs that are new: each attempt has a part of its own."""
    store, number, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    # Lightning leaves a group that is there as it is.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {restarts()}", store),
        rank=number,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )


def _leave() -> None:
    # Left to the end of the interpreter, its threads now and then ended the process with SIGABRT, all work done.
    if dist.is_initialized():
        dist.destroy_process_group()


def _environment() -> ClusterEnvironment:
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment(auto_requeue=False)


def _check(device: str, precision: Precision) -> None:
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError("device='cuda' is not available here; use --device cpu")
    if (local := launched()[1]) > torch.cuda.device_count():
        raise ValueError(
            f"{local} processes on a machine with {torch.cuda.device_count()} GPUs; start as many as there are GPUs"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic; use --precision 32")


def requeue(number: int) -> str | None:
    """Put the SLURM job that this process is of back into its queue, after a signal of that number. Returns what was
    done, in words; None where nothing had to be.

    SIGUSR1 is what a job asks for before its time is over; SIGTERM comes with pre-emption, and from scancel, after
    which nobody wants the job back: its record says which.
    """
    job = launched_job()
    if job is None or number == signal.SIGINT:
        return None
    try:
        if number == signal.SIGTERM and not _preempted(_scontrol("show", "--oneliner", "job", job)):
            return None
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"job {job} could not be put back into its queue: {' '.join(said.split())}"
    return f"job {job} is back in its queue"


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def _preempted(record: str) -> bool:
    fields = dict(field.split("=", 1) for field in record.split() if "=" in field)
    return fields.get("JobState") == "PREEMPTED" or fields.get("PreemptTime", "None") not in ("None", "Unknown")
