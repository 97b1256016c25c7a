"""What each process of a run finds, written to a file for the tests to compare; started by torchrun, or called."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import byol.embed
import byol.train
from byol import parallel
from byol.data.loader import Loader
from byol.data.source import DataError
from byol.options import Options
from byol.pipeline import pretrain
from byol.train import Training, TrainingStopped

EXACT = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    steps=50,
    precision="64",
    device="cpu",
    method_args={"hidden": 16, "out": 8},
    optimizer="lars",
    base_lr=0.5,
    hold_out=0.2,
)
DECODED = replace(EXACT, steps=3, accumulate=2, precision="32", workers=1, image_size=80, batch_size=8, hold_out=0.0)


@contextmanager
def recorded(seen):
    """Every image's views as (batch, id, hashes), in order; not those of the trial before the run."""
    original, fit = Loader.batches, Training.fit

    def fit_recorded(self, *arguments, **named):
        seen.clear()
        fit(self, *arguments, **named)

    def batches(self, start, stop):
        for number, batch in zip(range(start, stop), original(self, start, stop), strict=True):
            for i, *views in zip(batch.ids.tolist(), *batch.views, strict=True):
                seen.append([number, i, *(sha256(view.numpy().tobytes()).hexdigest() for view in views)])
            yield batch

    Loader.batches, Training.fit = batches, fit_recorded
    try:
        yield
    finally:
        Loader.batches, Training.fit = original, fit


@contextmanager
def failing(at):
    """The second process cannot read the batch of that number."""
    original = Loader.batches

    def batches(self, start, stop):
        for number, batch in zip(range(start, stop), original(self, start, stop), strict=True):
            if number == at and parallel.rank() == 1:
                raise DataError("a shard is gone")
            yield batch

    Loader.batches = batches
    try:
        yield
    finally:
        Loader.batches = original


def failures(arrays, folder, out):
    """How it ends where one process cannot read, or all of them cannot take a step."""
    found = {}
    with failing(0):
        found["unread in the trial"] = refused(lambda: pretrain(arrays, f"{out}/trial", EXACT))
    small = replace(DECODED, steps=20, accumulate=1, workers=0, image_size=24)
    with failing(16):
        found["unread"] = refused(lambda: pretrain(folder, f"{out}/unread", small))
    parallel.together(lambda: None)
    found["saved"] = sorted(file.name for file in Path(out, "unread/checkpoints").iterdir())

    def unreadable(*arguments, **named):
        if parallel.rank() == 1:
            raise DataError("a shard is gone")
        return original(*arguments, **named)

    original, byol.embed.batches_and = byol.embed.batches_and, unreadable
    found["not embedded"] = refused(lambda: byol.embed.embed(f"{out}/exact", arrays, f"{out}/features", rows=20))
    byol.embed.batches_and = original

    def unfit(*arguments):
        raise RuntimeError("the maps are too small")

    original, byol.train.train_step = byol.train.train_step, unfit
    found["unfit"] = refused(lambda: pretrain(arrays, f"{out}/unfit", EXACT))
    byol.train.train_step = original
    return found


def refused(call):
    """How a mistake ends here: the line, or the silent exit."""
    try:
        call()
    except (ValueError, TrainingStopped) as error:
        return str(error)
    except SystemExit as error:
        return f"exit {error.code}"
    return "nothing"


def work(arrays, folder, out):
    """Runs on both kinds of data; what this process saw of them goes to OUT/seenRANK.json."""
    found = {"exact": [], "decoded": []}
    with recorded(found["exact"]):
        pretrain(arrays, f"{out}/exact", EXACT)
    with recorded(found["decoded"]):
        pretrain(folder, f"{out}/decoded", DECODED)
    if parallel.world_size() > 1:
        found["odd batch"] = refused(lambda: pretrain(arrays, f"{out}/odd", replace(EXACT, batch_size=15)))
        own = arrays if parallel.rank() == 0 else f"{out}/nowhere.npy"
        found["not here"] = refused(lambda: pretrain(own, f"{out}/missing", EXACT))
        own = arrays if parallel.rank() == 0 else folder
        found["other data"] = refused(lambda: pretrain(own, f"{out}/other", EXACT))
        found["taken"] = refused(lambda: pretrain(arrays, f"{out}/exact", EXACT))
        found |= failures(arrays, folder, out)
    Path(out, f"seen{parallel.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    work(*sys.argv[1:])
