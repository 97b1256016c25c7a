"""A run over shards that writes down which images each step saw, and may be killed; started by torchrun, or called."""

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from byol import parallel
from byol.launch import launched_rank, restarted
from byol.options import Options
from byol.pipeline import pretrain
from byol.train import Training

OPTIONS = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    steps=30,
    precision="64",
    device="cpu",
    workers=2,
    streams=8,
    method_args={"hidden": 16, "out": 8},
    optimizer="lars",
    base_lr=0.5,
)


def work(data, place, kill_at=None, kill_after=None):
    """Begins PLACE/run, or goes on with it where the launcher starts it again; a process kills itself, the first time:
    the second one before the step `kill_at`, or one after so many seconds, kill_after = (rank, seconds)."""
    original, run = Training.passes, Path(place, "run")
    again = restarted()
    if kill_after is not None and launched_rank() == kill_after[0] and not again:

        def die():
            Path(place, "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

        timer = threading.Timer(kill_after[1], die)
        timer.daemon = True
        timer.start()

    def step(self, number, micro):
        if number == kill_at and parallel.rank() == 1 and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        ids = [i for batch in micro for i in batch.ids.tolist()]
        with Path(place, f"seen{parallel.rank()}.jsonl").open("a") as file:
            file.write(json.dumps([again, number, ids]) + "\n")
        return original(self, number, micro)

    Training.passes = step
    try:
        pretrain(data, run, OPTIONS)
    finally:
        Training.passes = original


def seen(place, *, resumed=False):
    """Step -> its images, of all processes together, before or after the run was started again; whole steps alone."""
    found = defaultdict(list)
    for file in Path(place).glob("seen*.jsonl"):
        for line in file.read_text().splitlines():
            again, step, ids = json.loads(line)
            if again == resumed:
                found[step] += ids
    return {step: sorted(ids) for step, ids in found.items() if len(ids) == OPTIONS.batch_size}


if __name__ == "__main__":
    began = time.monotonic()
    kill = [json.loads(text) for text in sys.argv[3:]]
    work(sys.argv[1], sys.argv[2], *kill)
    Path(sys.argv[2], f"seconds{launched_rank()}").write_text(str(time.monotonic() - began))
