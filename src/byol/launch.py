"""What torchrun or SLURM said of the processes of one run, before they have met. Imports nothing heavy."""

from __future__ import annotations

import os

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS")
"""Variables of the environment, one of which each launcher sets: srun's is not set in a job's batch script."""


def launched() -> tuple[int, int]:
    """(processes, those of them on this machine) that torchrun or SLURM started for one run; (1, 1) without them."""
    torchrun, slurm = LAUNCHERS
    if torchrun in os.environ:
        return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if slurm in os.environ:
        world = int(os.environ[slurm])
        return world, world // int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    return 1, 1


def is_first_here() -> bool:
    """Whether this process is the first of those of `launched` on its machine."""
    name = "LOCAL_RANK" if LAUNCHERS[0] in os.environ else "SLURM_LOCALID"
    return launched()[0] == 1 or int(os.environ.get(name, 0)) == 0


def launched_rank() -> int:
    """This process's number among those of `launched`, known before they have met."""
    name = "RANK" if LAUNCHERS[0] in os.environ else "SLURM_PROCID"
    return int(os.environ.get(name, 0)) if launched()[0] > 1 else 0


def launched_job() -> str | None:
    """The SLURM job that this process is of, as scontrol knows it; None outside of one."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """How often torchrun has started the processes of this run again, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def restarted() -> bool:
    """Whether the launcher started this run before: torchrun, or SLURM, which put its job back into the queue."""
    return restarts() > 0 or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
