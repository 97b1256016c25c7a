"""What torchrun or SLURM said of the processes of one run, before they have met. Imports nothing heavy."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """(processes, those of them on this machine) that torchrun or SLURM started for one run; (1, 1) without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in os.environ:  # set by srun alone, and not in a job's batch script
        world = int(os.environ["SLURM_STEP_NUM_TASKS"])
        return world, world // int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    return 1, 1


def launched_rank() -> int:
    """This process's number among those of `launched`, known before they have met."""
    name = "RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"
    return int(os.environ.get(name, 0)) if launched()[0] > 1 else 0
