"""The paper's experiments on a person's data: lists of runs, one table and one plot, and a verdict on each claim."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import queue
import shutil
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from byol import pictures
from byol.apart import Apart
from byol.evaluate.columns import BACKBONE, UNTRAINED
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.labelled import Parts, digest, labelled_of
from byol.evaluate.protocols import score_of
from byol.evaluation import evaluate_run, open_images, open_parts, without_labels
from byol.experiments.paper import PAPER_STEPS, Arm, Experiment
from byol.export import DESCRIPTION
from byol.methods import get
from byol.options import Options
from byol.pipeline import Observer, Silent, duration, open_for_training, pretrain
from byol.plan import plan
from byol.run import Run
from byol.train import Training, TrainingStopped

MEASURES = {"linear": "linear", "knn": "kNN", "fewshot": "few-shot"}
"""What is measured of each run, top-1 on test images as a share, and its heading; verdicts are on the first."""
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


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim. difference: in points of top-1; interval: 95 % over seeds, paired; None with fewer
    than two seeds."""

    words: str
    paper: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str


def verdict(differences: Sequence[float]) -> tuple[tuple[float, float] | None, str]:
    """(95 % interval of the mean, "held" where it lies above 0, "reversed" below, else "too small to tell").

    differences: of each seed, claimed to be positive. Paired by seed: both arms see the same images in the same order,
    and start from the same weights where their networks are the same.
    """
    if len(differences) < 2:
        return None, "one seed tells nothing"
    low, high = mean_interval(differences)
    return (low, high), "held" if low > 0 else "reversed" if high < 0 else "too small to tell"


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
    (out / f"{experiment.name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (out / f"{experiment.name}.md").write_text(markdown(result), "utf-8")
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
    source, pixels = open_for_training(data, Silent(), base.labels)
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
            shape = json.dumps([run.method, run.backbone_args, run.batch_size, run.views], sort_keys=True)
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
    source, pixels = open_for_training(data, Silent(), base.labels)
    # Says what is missing before the first run has trained.
    known = labelled_of(source if labelled in (None, data) else open_images(labelled, labels=base.labels))
    others: dict[str, Any] = {"labelled": labelled, "test": test}
    if base.labels is not None or labelled is not None or test is not None:
        on = None if test is None else open_images(test, part="all").fingerprint
        others["content"] = [known.fingerprint, digest(known.labels, known.targets), on]
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
            jobs.append(Job(arm, seed, options, key, teacher, run.total_steps))
    return jobs, experiment


def _key(run: Run, teacher: str | None, **others: Any) -> str:
    """Of all that determines a run's result and its evaluation."""
    values = asdict(run)
    facts = values.pop("facts")
    for name in ("evaluate_every_steps", "checkpoint_every_steps", "stop_on_collapse", "workers"):
        values.pop(name)
    # What is at its default is the same as what did not exist yet.
    for each in fields(Run):
        if each.name in values and each.default is not MISSING and values[each.name] == each.default:
            values.pop(each.name)
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
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(run) + "\n" for run in record.values()), "utf-8")
    temporary.replace(path)


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
                if job.teacher is not None and not _network(out, job.teacher).is_dir():
                    waiting.remove(job)
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
                    observer.say(f"{done} of {total}: {name} failed: {failed[name]}")
                if not _awaited(job.key, waiting, running.values()):
                    shutil.rmtree(_network(out, job.key), ignore_errors=True)
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
        channels = run.channels if run.channels in (1, 3) else None
        _PARTS[where] = open_parts(labelled or data, test, channels=channels, labels=run.labels)
    column = BACKBONE if trained else UNTRAINED
    found = evaluate_run(
        place, labelled or data, test=test, parts=_PARTS[where], look_for_duplicates=False, columns=(column,)
    ).found
    scores = {measure: score_of(found, measure, column) for measure in MEASURES}
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text("utf-8").splitlines()]
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


def summary(
    experiment: Experiment, runs: dict[tuple[str, int], dict[str, Any]], *, seeds: int, data: str, steps: int
) -> dict[str, Any]:
    """The experiment's result, as plain values for JSON. runs: (arm, seed) -> what was measured."""
    arms = []
    for arm in experiment.arms:
        own = [runs[arm.name, seed] for seed in range(seeds) if (arm.name, seed) in runs]
        measures = {m: _mean([run[m] for run in own if m in run]) for m in MEASURES}
        curves = {
            name: [run[name] for run in own]
            for name in ("loss", "held_out_std_ratio", "held_out_effective_rank", "held_out_knn")
        }
        arms.append(
            {
                "name": arm.name,
                "line": arm.line,
                "x": arm.x,
                "paper": arm.paper,
                "seeds": len(own),
                "measures": {m: found for m, found in measures.items() if found},
                "collapsed": sum(run["verdict"] == "collapsed" for run in own),
                "curves": curves if experiment.picture == "curves" else {},
            }
        )
    paper = {arm.name: arm.paper for arm in experiment.arms}
    verdicts = []
    for claim in experiment.claims:
        pairs = [
            100 * sum(weight * runs[name, seed]["linear"] for name, weight in claim.weights.items())
            for seed in range(seeds)
            if all((name, seed) in runs for name in claim.weights)
        ]
        theirs = [paper[name] for name in claim.weights]
        known = None
        if None not in theirs:
            known = sum(w * (t or 0.0) for w, t in zip(claim.weights.values(), theirs, strict=True))
        interval, word = verdict(pairs) if pairs else (None, "not run")
        verdicts.append(asdict(Verdict(claim.words, known, statistics.fmean(pairs) if pairs else None, interval, word)))
    any_run = next(iter(runs.values()), {})
    return {
        "name": experiment.name,
        "question": experiment.question,
        "source": experiment.source,
        "axis": experiment.axis,
        "picture": experiment.picture,
        "notes": list(experiment.notes),
        "data": data,
        "seeds": seeds,
        "steps": steps,
        "paper_steps": PAPER_STEPS,
        "train_images": any_run.get("train_images"),
        "test_images": any_run.get("test_images"),
        "arms": arms,
        "verdicts": verdicts,
    }


def _mean(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    interval = list(mean_interval(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "interval_95": interval, "values": values}


def markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown: arms, then verdicts."""
    counted = f"{result['seeds']} seeds" if result["seeds"] > 1 else "1 seed"
    lines = [
        f"{result['question']} {result['data']}, {result['steps']:,} steps, {counted}; top-1 in % on "
        f"{result['test_images']:,} test images after {result['train_images']:,} labelled ones.",
        "",
        f"| run | {' | '.join(MEASURES.values())} | collapsed | paper ({result['source']}) |",
        "| --- |" + " --- |" * (len(MEASURES) + 2),
    ]
    for arm in result["arms"]:
        cells = [percent(arm["measures"].get(m)) for m in MEASURES]
        theirs = "-" if arm["paper"] is None else f"{arm['paper']:.1f}"
        lines.append(f"| {arm['name']} | {' | '.join(cells)} | {arm['collapsed']} of {arm['seeds']} | {theirs} |")
    if result["verdicts"]:
        lines += ["", "| claim | ours, points [95 % interval] | paper | verdict |", "| --- | --- | --- | --- |"]
    for each in result["verdicts"]:
        theirs = "-" if each["paper"] is None else f"{each['paper']:+.1f}"
        lines.append(f"| {each['words']} | {points(each)} | {theirs} | {each['verdict']} |")
    lines += ["", *result["notes"]]
    lines += [f"Failed: {name}: {reason}." for name, reason in result.get("failed", {}).items()]
    lines.append(
        "+- is half the 95 % interval of the mean over seeds (Student's t). A claim is held where the paired 95 % "
        "interval over seeds of the difference in linear accuracy lies above 0, reversed where it lies below. "
        "collapsed: by the embedding of held-out images at the end."
    )
    return "\n".join(lines) + "\n"


def percent(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    text = f"{100 * found['mean']:.1f}"
    if found["interval_95"] is None:
        return text
    low, high = found["interval_95"]
    return f"{text} +- {50 * (high - low):.1f}"


def points(found: dict[str, Any]) -> str:
    if found["difference"] is None or not math.isfinite(found["difference"]):
        return "-"
    if found["interval"] is None:
        return f"{found['difference']:+.1f}"
    low, high = found["interval"]
    return f"{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
