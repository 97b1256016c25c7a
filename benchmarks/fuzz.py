"""Damaged files of every format through the package's own readers, in a process that may die without harm.

    .venv/bin/python benchmarks/fuzz.py --inputs 10000 --seed 0

Each input is a real picture, or a container of some, with one to three mutations that know the format: lengths,
tables, dimensions, types, offsets, with checksums made right again; or bits, splices and cuts. Input i of a format
follows from (seed, format, i): `--replay png:17` reads that one here, with its traceback.

decoded: there were pixels. refused: Unusable, DataError or OSError. foreign: any other exception. crashes: the process
died. hangs: more than --seconds. memory: more than --gib of it, resident. asked: an allocation of more than twice that
was refused, and so is the file; whether it would have been filled shows with a larger --gib.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import FORMATS, made, originals

ENDINGS = {"jpeg": ".jpg", "tiff": ".tif"}


def tried(kind: str, path: Path) -> Iterator[str]:
    """What each of the package's readers makes of a file: "decoded", or why not. Any other exception is let through."""
    from byol.data import deep
    from byol.data.decode import Unusable, decode, look
    from byol.data.open import open_source
    from byol.data.parquet import Rows
    from byol.data.source import DataError, measured

    def read(reader: Callable[[], Any]) -> str:
        try:
            reader()
        except (Unusable, DataError, OSError) as error:
            text = str(error)
            if isinstance(error, ValueError) and (not text.isprintable() or not text or len(text) > 1000):
                raise AssertionError(f"not one printable line: {text!r}") from error
            return text
        return "decoded"

    def all_images(**options: Any) -> str:
        def opened() -> None:
            source = open_source(path, **options)
            if source.deep:
                source = measured(source)
            why = {read(lambda i=i: source.read(i)) for i in source.ids.tolist()}
            if isinstance(source.listing, Rows):
                for name in source.listing.columns():
                    source.listing.column(name)
            if why and "decoded" not in why:
                raise Unusable(min(why))

        return read(opened)

    if kind in ("npz", "tar"):
        yield all_images()
    elif kind == "parquet":
        yield all_images()
        yield all_images(streams=True)
    elif kind == "npy":
        for channels in (None, 7):
            yield read(lambda channels=channels: deep.look(str(path), channels))
            yield read(lambda channels=channels: deep.values(str(path), channels or 1))
        yield read(lambda: deep.pixels(str(path)))
        yield all_images()
    else:
        data = path.read_bytes()
        yield read(lambda: look(data))
        yield read(lambda: look(str(path)))
        yield read(lambda: decode(data, 3))
        yield read(lambda: decode(path, reduce=4))
        if kind == "tiff":
            for channels in (None, 5):
                yield read(lambda channels=channels: deep.look(str(path), channels))
                yield read(lambda channels=channels: deep.values(str(path), channels or 1))
            yield read(lambda: deep.pixels(str(path)))


@dataclass
class Outcome:
    """Of one input. what: decoded, refused, asked, foreign, memory; and of what killed the process, crash and hang."""

    kind: str
    number: int
    what: str
    why: str = ""
    seconds: float = 0.0
    num_bytes: int = 0


def read_one(kind: str, number: int, seed: int, folder: Path, most_bytes: int) -> Outcome:
    from byol.machine import resident_memory

    path = folder / f"{number}{ENDINGS.get(kind, '.' + kind)}"
    path.write_bytes(made(kind, number, seed))
    before = resident_memory() or 0
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    began = time.perf_counter()
    try:
        answers = list(tried(kind, path))
        why = next((answer for answer in answers if answer != "decoded"), "")
        if any("too large for memory" in answer or "nable to allocate" in answer for answer in answers):
            what = "asked"
        else:
            what = "decoded" if "decoded" in answers else "refused"
    except MemoryError as error:
        what, why = "foreign", f"MemoryError: {error}"
    except Exception as error:
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        what, why = "foreign", f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"[:400]
    seconds = time.perf_counter() - began
    path.unlink()
    more = max(0, _peak() - before)
    return Outcome(kind, number, "memory" if more > most_bytes else what, why, seconds, more)


def _peak() -> int:
    from byol.machine import process_memory

    return process_memory() or 0


def _work(pipe: Any, seed: int, most_bytes: int, log: str) -> None:
    """The process that may die: reads (kind, number), answers with an Outcome."""
    import resource
    import warnings

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)  # decoders in C write there
    faulthandler.enable()
    warnings.simplefilter("ignore")
    import pyarrow.parquet
    import tifffile

    import byol.data.open
    from byol.data import shards

    del pyarrow.parquet, tifffile, byol.data.open
    shards.TRIES = 1  # else it waits for storage that may come back
    with tempfile.TemporaryDirectory() as place:
        os.environ["BYOL_CACHE"] = f"{place}/cache"
        for kind in FORMATS:
            originals(kind)
        taken = next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if "VmSize" in s)
        resource.setrlimit(resource.RLIMIT_AS, (taken * 1024 + 2 * most_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while (given := pipe.recv()) is not None:
            pipe.send(read_one(*given, seed, Path(place), most_bytes))


class Reader:
    """A process that reads one input after another; a new one where it died or hung."""

    def __init__(self, seed: int, seconds: float, most_bytes: int, place: Path) -> None:
        self.seed, self.seconds, self.most_bytes, self.place = seed, seconds, most_bytes, place
        self._process: Any = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, kind: str, number: int) -> Outcome:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self.log = self.place / "stderr.txt"
            self._process = context.Process(
                target=_work, args=(other, self.seed, self.most_bytes, str(self.log)), daemon=True
            )
            self._process.start()
            other.close()
            self._pipe.send(("png", 0))  # the first answer waits for its imports
            self._pipe.recv()
        self._pipe.send((kind, number))
        try:
            if self._pipe.poll(self.seconds):
                return self._pipe.recv()
            faults, what = "", "hang"
            self._process.kill()
        except EOFError:
            what = "crash"
        self._process.join()
        faults = " ".join(self.log.read_text(errors="replace").split())[-300:]
        outcome = Outcome(kind, number, what, f"exit {self._process.exitcode}: {faults}", self.seconds)
        self._end()
        return outcome

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(5)
            self._process.kill()
            self._pipe.close()
            self._process = None


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    most_bytes: int = 0
    longest: float = 0.0


def run(
    kinds: list[str], inputs: int, seed: int, *, seconds: float, most_bytes: int, save: Path | None = None
) -> tuple[dict[str, Tally], list[Outcome]]:
    """(what became of `inputs` inputs of each format, those that neither gave pixels nor were refused)"""
    tallies, noted = {kind: Tally() for kind in kinds}, list[Outcome]()
    with (
        tempfile.TemporaryDirectory() as place,
        Reader(seed, seconds, most_bytes, Path(place)) as reader,
    ):
        for kind in kinds:
            for number in range(inputs):
                outcome = reader.read(kind, number)
                tally = tallies[kind]
                tally.counts[outcome.what] += 1
                tally.most_bytes = max(tally.most_bytes, outcome.num_bytes)
                tally.longest = max(tally.longest, outcome.seconds)
                if outcome.what not in ("decoded", "refused"):
                    noted.append(outcome)
                    if save is not None:
                        save.mkdir(parents=True, exist_ok=True)
                        name = f"{kind}-{seed}-{number}-{outcome.what}{ENDINGS.get(kind, '.' + kind)}"
                        (save / name).write_bytes(made(kind, number, seed))
                        with (save / "noted.jsonl").open("a") as stream:
                            stream.write(json.dumps(vars(outcome)) + "\n")
    return tallies, noted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gib", type=float, default=1.5)
    parser.add_argument("--save", type=Path, help="a folder for the inputs that neither gave pixels nor were refused")
    parser.add_argument("--replay", help="FORMAT:NUMBER, read here")
    arguments = parser.parse_args()
    if arguments.replay:
        kind, number = arguments.replay.split(":")
        with tempfile.TemporaryDirectory() as place:
            os.environ["BYOL_CACHE"] = f"{place}/cache"
            path = Path(place) / f"input{ENDINGS.get(kind, '.' + kind)}"
            path.write_bytes(made(kind, int(number), arguments.seed))
            for answer in tried(kind, path):
                print(answer)
        return
    print(f"{'':8}  inputs decoded refused foreign crashes hangs memory  asked    MiB seconds")
    for kind in arguments.formats:
        tallies, noted = run(
            [kind],
            arguments.inputs,
            arguments.seed,
            seconds=arguments.seconds,
            most_bytes=int(arguments.gib * 2**30),
            save=arguments.save,
        )
        c = tallies[kind].counts
        counts = f"{c['decoded']:7} {c['refused']:7} {c['foreign']:7} {c['crash']:7} {c['hang']:5} {c['memory']:6}"
        most = f"{c['asked']:6} {tallies[kind].most_bytes / 2**20:6.0f} {tallies[kind].longest:7.2f}"
        print(f"{kind:8} {arguments.inputs:7} {counts} {most}", flush=True)
        kinds_of = Counter((each.what, each.why) for each in noted)
        for (what, why), count in kinds_of.most_common(12):
            example = next(each.number for each in noted if (each.what, each.why) == (what, why))
            print(f"    {count} x {what}, such as {kind}:{example}: {why}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
