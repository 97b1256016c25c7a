"""The paper's experiments on a person's data: lists of runs, one table and one plot, and a verdict on each claim."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from byol import pictures
from byol.apart import Apart
from byol.data.source import Part, Source, digest
from byol.evaluate.columns import BACKBONE, UNTRAINED
from byol.evaluate.labelled import Parts, labelled_of
from byol.evaluate.protocols import score_of
from byol.evaluation import evaluate_run
from byol.experiments.paper import Arm, Experiment
from byol.experiments.verdicts import MEASURES, markdown, summary
from byol.export import DESCRIPTION
from byol.files import json_lines, only_one, write_json, write_text
from byol.methods import get
from byol.metrics import METRICS
from byol.options import Options
from byol.pipeline import Observer, Silent, duration, how_to_open, open_for_training, pretrain
from byol.plan import plan
from byol.run import Run
from byol.subject import open_images, open_parts
from byol.train import Training, TrainingStopped
from byol.unlabelled import without_labels

EXPECTED = (TrainingStopped, BrokenProcessPool, ValueError, OSError)
"""Whose words say enough; of other errors the kind is told too."""
RECORD = "runs.jsonl"
"""A line of JSON for each finished run: enough to make every table anew, here or on another machine."""


@dataclass(frozen=True)
class Job:
    """One run. key: of all that determines its result."""

    arm: Arm
    seed: int
    options: Options
    key: str
    teacher: str | None
    """The key of the run whose network is the fixed target."""
    total_steps: int
    steps_a_pass: float
    """Over the training images, some of which may be held out."""


def ablate(
    make: Callable[[Options], Experiment],
    data: str,
    out: Path,
    base: Options,
    *,
    seeds: int = 5,
    processes: int | None = None,
    labelled: str | None = None,
    test: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train and evaluate every arm with every seed; writes OUT/NAME.json, .md and .png.

    Runs lie in OUT/runs and their results in OUT/runs.jsonl: what stands there is not done again, by whichever
    experiment it was made, so that an interrupted list goes on where it was. A run that fails is named, and the others
    go on. processes: that train side by side; by default one a device, or one a core.
    """
    observer = observer or Silent()
    jobs, experiment = _jobs(make, data, base, seeds, labelled, test)
    out.mkdir(parents=True, exist_ok=True)
    claims = "; ".join(claim.words for claim in experiment.claims)
    observer.say(f"{experiment.name}: {experiment.question} Tested: {claims or 'no order'}")
    if few := _few_steps_a_pass(jobs, experiment):
        observer.warn(few)
    with only_one(out, "another experiment", observer.warn):
        record = _read_record(out / RECORD)
        _write_record(out / RECORD, record)  # without a line that a crash cut off
        missing = {job.key: job for job in jobs if job.key not in record}
        of_key = {job.key: job for job in jobs}
        for job in list(missing.values()):  # a network to predict that is no longer there is trained again
            while job.teacher is not None and job.teacher not in missing and not _network(out, job.teacher).is_dir():
                shutil.rmtree(out / "runs" / job.teacher, ignore_errors=True)
                missing[job.teacher] = of_key[job.teacher]
                job = of_key[job.teacher]
        observer.say(f"{len(jobs)} runs, {len(missing)} of them to do")
        failed = _run_all(missing, record, data, out, labelled, test, processes, observer)
        runs = {(job.arm.name, job.seed): record[job.key] for job in jobs if job.key in record}
        if failed and not runs:
            name, reason = next(iter(failed.items()))
            raise ValueError(f"no run of {experiment.name} came to its end; {name}: {reason}")
        result = summary(experiment, runs, seeds=seeds, data=data, steps=jobs[0].total_steps)
        result["failed"] = failed
        write_json(out / f"{experiment.name}.json", result)
        write_text(out / f"{experiment.name}.md", markdown(result))
        pictures.experiment(result, out / f"{experiment.name}.png")
        return result


def prediction(
    make: Callable[[Options], Experiment],
    data: str,
    out: Path,
    base: Options,
    *,
    seeds: int,
    processes: int | None = None,
    labelled: str | None = None,
    test: str | None = None,
) -> tuple[Experiment, list[tuple[str, int, float, bool]], float]:
    """(the experiment, of each arm (name, runs, seconds of training a run, whether all are done), seconds in all).

    Each distinct network, batch and method is timed for a second; evaluation comes on top.
    """
    jobs, experiment = _jobs(make, data, base, seeds, labelled, test)
    record = _read_record(out / RECORD)
    source, pixels = open_for_training(data, Silent(), **how_to_open(base))
    rates: dict[str, float] = {}
    rows, left = [], 0.0
    count, threads, _ = _parallel(processes)
    own_threads = torch.get_num_threads()
    torch.set_num_threads(threads or own_threads)
    for arm in experiment.arms:
        own = [job for job in jobs if job.arm is arm]
        seconds = 0.0
        if arm.options is not None:
            run = plan(arm.options, source, pixels)
            parts = [run.method, run.method_args, run.backbone_args, run.batch_size, run.views]
            shape = json.dumps(parts, sort_keys=True)
            if shape not in rates:
                rates[shape] = Training(run, source, pixels, out).measure_rate()
            seconds = run.total_steps * run.images_per_step / rates[shape]
        todo = [job for job in own if job.key not in record]
        left += seconds * len(todo)
        rows.append((arm.name, len(own), seconds, not todo))
    torch.set_num_threads(own_threads)
    return experiment, rows, left / count


def _jobs(
    make: Callable[[Options], Experiment], data: str, base: Options, seeds: int, labelled: str | None, test: str | None
) -> tuple[list[Job], Experiment]:
    """Every run of the list. ValueError, before the first one trains, where one could not be trained."""
    experiment = make(base)
    source, pixels = open_for_training(data, Silent(), **how_to_open(base))
    # Says what is missing before the first run has trained.
    like: dict[str, Any] = {"channels": source.channels, "value_range": source.value_range}
    known = labelled_of(source if labelled in (None, data) else open_images(labelled, **like, labels=base.labels))
    others: dict[str, Any] = {"labelled": labelled, "test": test}
    others["content"] = [known.fingerprint, digest(known.labels, known.targets)]
    others["content"] += _tested_on(known, labelled or data, test)
    if base.labels is not None:
        others["content"].append(hashlib.sha256(Path(base.labels).read_bytes()).hexdigest())
    jobs: list[Job] = []
    for arm in experiment.arms:
        for seed in range(seeds):
            options = replace(arm.options or base, seed=seed)
            teacher = next((job.key for job in jobs if job.arm.name == arm.teacher and job.seed == seed), None)
            try:
                run = plan(options, source, pixels)
            except ValueError as error:
                raise ValueError(f"{experiment.name}: {arm.name} cannot be trained: {error}") from None
            key = _key(run, teacher, trained=arm.options is not None, **others)
            options = replace(options, precision=run.precision)  # what this process found, for all of them
            jobs.append(Job(arm, seed, options, key, teacher, run.total_steps, len(source) / run.images_per_step))
    return jobs, experiment


def _few_steps_a_pass(jobs: list[Job], experiment: Experiment) -> str | None:
    """What to say where the images are too few for the experiment to be the paper's."""
    least = min(job.steps_a_pass for job in jobs)
    if least >= experiment.steps_a_pass:
        return None
    return (
        f"a pass over these images is {least:.0f} steps; below {experiment.steps_a_pass}, every step sees much of all "
        "images and a large batch loses what it is for: read the result with care, or take more images"
    )


def _tested_on(known: Source, data: str, test: str | None) -> list[str]:
    """Hashes of the test images and of their labels, where they are not a share of the training images."""
    if test is None and not known.has_test_part:
        return []
    part: Part = "all" if test else "test"
    tested = open_images(test or data, part=part, channels=known.channels, value_range=known.value_range)
    return [tested.fingerprint, digest(tested.labels, tested.targets)]


def _key(run: Run, teacher: str | None, **others: Any) -> str:
    """Of all that determines a run's result and its evaluation."""
    values = asdict(run)
    facts = values.pop("facts")
    policies = ("evaluate_every_steps", "checkpoint_every_steps", "stop_on_collapse", "workers", "keep", "max_bad")
    for name in ("options", *policies):
        values.pop(name)
    # What is at its default is the same as what did not exist yet.
    for each in fields(Run):
        if each.name in values and each.default is not MISSING and values[each.name] == each.default:
            values.pop(each.name)
    for view in values["views"]:
        if not view["channelwise"]:
            del view["channelwise"]
    parameters = inspect.signature(get(run.method)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    values["method_args"] = defaults | run.method_args
    described = [values, facts["data_fingerprint"], teacher, others]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            run = json.loads(line)
        except json.JSONDecodeError:  # cut off by a crash
            continue
        found[run["key"]] = run
    return found


def _write_record(path: Path, record: dict[str, dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(run) + "\n" for run in record.values()))


def _parallel(processes: int | None) -> tuple[int, int | None, list[str | None]]:
    """(processes side by side, threads of each, the device that each sees)."""
    if torch.cuda.is_available():
        # Where the parent sees some of the devices, its children see those.
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
        count = processes or len(names)
        return count, None, [names[i % len(names)] for i in range(count)]
    cores = torch.get_num_threads()
    count = processes or cores
    return count, max(1, cores // count), [None] * count


def _run_all(
    missing: dict[str, Job],
    record: dict[str, dict[str, Any]],
    data: str,
    out: Path,
    labelled: str | None,
    test: str | None,
    processes: int | None,
    observer: Observer,
) -> dict[str, str]:
    """Do the runs, those first that others wait for; adds to the record as they end. Returns arm, seed -> reason of
    those that failed."""
    teachers = {job.teacher for job in missing.values()} - {None}
    count, threads, devices = _parallel(processes)
    free: queue.SimpleQueue[Apart] = queue.SimpleQueue()
    for device in devices:
        free.put(Apart(threads, device))
    writing = threading.Lock()
    failed: dict[str, str] = {}
    stopped: set[str] = set()
    waiting, total, done = list(missing.values()), len(missing), 0
    # A network that others wait for comes first, and before it the one that it waits for.
    waiting.sort(key=lambda job: job.key not in teachers)

    def do(job: Job) -> dict[str, Any]:
        process = free.get()
        try:
            place = out / "runs" / job.key
            options = job.options
            if job.teacher is not None:
                options = replace(
                    options, method_args={**options.method_args, "teacher": str(out / "runs" / job.teacher)}
                )
            trained = job.arm.options is not None
            found = process.call(train_and_measure, data, place, options, trained, labelled, test)
            line = {"key": job.key, "arm": job.arm.name, "seed": job.seed, "data": data, **found}
            with writing, (out / RECORD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            return line
        finally:
            free.put(process)

    running: dict[Future[dict[str, Any]], Job] = {}
    pool = ThreadPoolExecutor(count)
    try:
        while waiting or running:
            coming = {job.key for job in (*waiting, *running.values())}
            for job in [job for job in waiting if job.teacher not in coming]:
                if job.teacher is not None and (job.teacher in stopped or not _network(out, job.teacher).is_dir()):
                    waiting.remove(job)
                    stopped.add(job.key)
                    failed[f"{job.arm.name}, seed {job.seed}"] = "the network that it should predict failed"
            ready = [job for job in waiting if job.teacher not in coming]
            for job in ready[: count - len(running)]:
                waiting.remove(job)
                running[pool.submit(do, job)] = job
            if not running:
                continue
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                done += 1
                observer.working("runs", done, total)
                name = f"{job.arm.name}, seed {job.seed}"
                try:
                    record[job.key] = line = future.result()
                    observer.say(f"{done} of {total}: {name}: {_said(line)}")
                except Exception as error:  # of whatever kind: the others go on
                    reason = str(error) or type(error).__name__
                    failed[name] = reason if isinstance(error, EXPECTED) else f"{type(error).__name__}: {reason}"
                    observer.warn(f"{done} of {total}: {name} failed: {failed[name]}")
                    stopped.add(job.key)
                    # Its checkpoints stay, to go on from; but a finished run's are taken for whole.
                    if job.key in record:
                        shutil.rmtree(_network(out, job.key), ignore_errors=True)
                    continue
                for key in (job.key, job.teacher):
                    if key is not None and not _awaited(key, waiting, running.values()):
                        shutil.rmtree(_network(out, key), ignore_errors=True)
    finally:
        pool.shutdown(cancel_futures=True)
        while not free.empty():
            free.get().__exit__()
    return failed


def _network(out: Path, key: str) -> Path:
    """Where a run's networks lie until nobody waits for them."""
    return out / "runs" / key / "checkpoints"


def _awaited(key: str, waiting: list[Job], running: Any) -> bool:
    return any(job.teacher == key for job in (*waiting, *running))


def _said(line: dict[str, Any]) -> str:
    scores = ", ".join(f"{head} {line[name]:.3f}" for name, head in MEASURES.items() if name in line)
    return f"{scores}; {duration(line['seconds'])}"


_PARTS: dict[tuple[Any, ...], Parts] = {}
"""Of this process: a list of runs evaluates on the same images."""


def train_and_measure(
    data: str, place: Path, options: Options, trained: bool, labelled: str | None, test: str | None
) -> dict[str, Any]:
    """Train a run, or go on with it, and measure its backbone; without `trained`, the network as it starts."""
    if not trained:
        options = replace(options, steps=1, epochs=None, budget=None)
    if not (place / DESCRIPTION).is_file():
        pretrain(data, place, options, resume=(place / "run.json").is_file())
    run = Run.read(place / "run.json")
    where = (labelled or data, test, run.channels, run.labels)
    if where not in _PARTS:
        _PARTS.clear()
        like: dict[str, Any] = {"channels": run.channels, "value_range": run.value_range}
        _PARTS[where] = open_parts(labelled or data, test, **like, labels=run.labels)
    column = BACKBONE if trained else UNTRAINED
    evaluated = evaluate_run(
        place, labelled or data, test=test, parts=_PARTS[where], look_for_duplicates=False, columns=(column,)
    )
    found = evaluated.whole().found
    scores = {measure: score_of(found, measure, column) for measure in MEASURES}
    lines = list(json_lines(place / METRICS))
    looks = [line for line in lines if "held_out/verdict" in line] if trained else []
    curves: dict[str, list[tuple[int, float]]] = {
        f"held_out_{name}": [
            (look["step"], round(look[f"held_out/{name}"], 5)) for look in looks if f"held_out/{name}" in look
        ]
        for name in ("std_ratio", "effective_rank", "knn")
    }
    curves["loss"] = [(line["step"], round(line["loss"], 5)) for line in lines if "loss" in line] if trained else []
    return {
        **{measure: score for measure, score in scores.items() if score is not None},
        "seconds": max((line["seconds"] for line in lines if "loss" in line), default=0.0),
        "test_images": found["test_images"],
        "train_images": found["train_images"],
        "verdict": looks[-1]["held_out/verdict"] if looks else None,
        "unlabelled": without_labels(place, labelled or data, columns=(column,))[column],
        **curves,
        "versions": run.facts["versions"],
        "threads": run.facts["threads"],
    }
