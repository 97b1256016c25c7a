"""What a person sees in the terminal: progress bars and tables, all on stderr but the final result.

Rich decides about colours (none where nobody looks, or where NO_COLOR is set); bars move only in a real terminal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from byol.evaluate.unlabelled import worth
from byol.experiments.paper import Experiment
from byol.experiments.verdicts import MEASURES, percent, points
from byol.journal import Progress as Step
from byol.names import METRICS
from byol.online import ADVICE
from byol.pipeline import duration
from byol.quiet import is_quiet
from byol.run import Run


class Lines(Console):
    """A console whose lines are never broken, for scripts and logs, and hold no markup: names may have brackets."""

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, markup=False, **how)

    def print(self, *objects: Any, **how: Any) -> None:
        """As Rich's; on stderr nothing where only warnings are asked for."""
        if self.stderr and is_quiet():
            return
        if all(isinstance(each, (str, Text)) for each in objects):
            how.setdefault("soft_wrap", True)
        super().print(*objects, **how)


stderr = Lines(stderr=True)
stdout = Lines()

_WORDS = {
    "early": "[dim]early[/]",
    "healthy": "[green]healthy[/]",
    "narrow": "[yellow]narrow[/]",
    "collapsed": "[bold red]collapsed[/]",
}


class Terminal:
    """Shows a run as it goes. Use as a context manager."""

    def __init__(self, console: Console = stderr, *, plan: bool = True) -> None:
        self._console = console
        self._plan = plan
        self._moves = console.is_interactive and console.file.isatty()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            disable=not self._moves or is_quiet(),
        )
        self._tasks: dict[str, Any] = {}
        self._word = "-"
        self._detail = ""
        self._collapsed = False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # one that never began would print an empty line
            self._bar.stop()

    def say(self, line: str) -> None:
        self._console.print(line)

    def warn(self, line: str | Text) -> None:
        # Rich's own: what `Lines` leaves out is what is no warning.
        Console.print(self._console, line, soft_wrap=True, markup=False)

    def loading(self, done: int, total: int) -> None:
        self._update("loading images", done, total, "")

    def working(self, what: str, done: int, total: int) -> None:
        self._update(what, done, total, "")

    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None:
        if not self._plan:
            return
        self._console.print(grid(lines))

    def begun(self, *_: object) -> None: ...

    def progress(self, step: Step) -> None:
        if step.probe is not None:
            collapsed = step.probe.word == "collapsed"
            if collapsed and not self._collapsed:
                self.warn(Text.assemble((f"step {step.step}", "bold red"), f": {ADVICE}"))
            self._collapsed = collapsed
            self._word = _WORDS[step.probe.word]
            if self._moves:
                self._update("training", step.step, step.total_steps, self._detail + self._word)
            else:  # a log gets a line a look
                self.say(f"step {step.step:,} of {step.total_steps:,}: {self._detail}{step.probe.word}")
        if step.metrics:
            parts = [f"{step.images_per_second:,.0f} images/s", f"loss {step.metrics['loss']:.3f}"]
            if "tau" in step.metrics:
                parts.append(f"tau {step.metrics['tau']:.4f}")
            self._detail = "  ".join([*parts, ""])
            self._update("training", step.step, step.total_steps, self._detail + self._word)

    def _update(self, name: str, done: int, total: int, detail: str) -> None:
        self._bar.start()
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, detail=detail)
        self._bar.update(self._tasks[name], completed=done, total=total, detail=detail)


def grid(lines: list[tuple[str, str]]) -> Table:
    """Names and what they say, side by side."""
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(Text(name, "dim"), value)
    return table


def evaluation_tables(found: list[dict[str, Any]]) -> list[Table | str]:
    """All that was found: of one source a row a protocol, of several a row a source; then what needs no labels."""
    shown: list[Table | str] = []
    labelled = [each for each in found if "rows" in each]
    if len(labelled) > 1:
        shown.append(_transfer_table(labelled))
        shown += [table for each in labelled for table in _differences(each, f"{each['data']}: ")]
        shown += [table for each in labelled for table in _beside(each, f" of {each['data']}")]
    elif labelled:
        shown += [evaluation_table(labelled[0]), *_differences(labelled[0]), *_beside(labelled[0])]
    for each in labelled:
        shown += [f"{each['data']}: {warning}" for warning in each["warnings"]]
    for each in found:
        if "unlabelled" in each:
            shown.append(unlabelled_table(each))
        if "suggested" in each:
            names = each["suggested"]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            shown.append(f"Worth labelling first: {', '.join(names[:5])}{more}; {each['suggested_as']} holds all.")
    return shown


def evaluation_table(found: dict[str, Any]) -> Table:
    """A row a protocol; a column each for the backbone and what stands beside it, and by how much it beats each."""
    table = Table(
        title=f"{found['test_images']:,} test images, {found['train_images']:,} labelled training images",
        title_justify="left",
        caption="± is half the 95 % interval, over test images or repeated fits"
        + (", whole groups resampled" if found["groups"] else ""),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column(METRICS[found["metric"]])
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["columns"]))
    for name in names:
        title = "backbone (used labels)" if name == "backbone" and found.get("used_labels") else name
        table.add_column(title, justify="right", style="bold" if name == "backbone" else "")
    for row in found["rows"]:
        cells = [_score(row["columns"][name]) if name in row["columns"] else "-" for name in names]
        table.add_row(row["name"], *cells)
    return table


def _differences(found: dict[str, Any], of: str = "") -> list[Table]:
    """By how much the first column beats each of the others."""
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["differences"]))
    if not names:
        return []
    first = next(iter(found["rows"][0]["columns"]))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(f"{of}{first} minus (paired)")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        gains = row["differences"]
        table.add_row(row["name"], *(_gain(gains[name]) if name in gains else "-" for name in names))
    return [table]


def _beside(found: dict[str, Any], of: str = "") -> list[Table]:
    """Of skewed classes, what accuracy hides."""
    if not found["skewed"]:
        return []
    title = f"The classes{of} are of unequal size: beside accuracy"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("backbone", "accuracy", "balanced accuracy", "macro-F1"):
        table.add_column(head, justify="left" if head == "backbone" else "right")
    for row in found["rows"]:
        numbers = next(iter(row["columns"].values()))
        if "macro_f1" in numbers:
            table.add_row(row["name"], *(f"{numbers[m]:.3f}" for m in ("accuracy", "balanced_accuracy", "macro_f1")))
    return [table]


def _transfer_table(found: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Transfer",
        title_justify="left",
        caption="± is half the 95 % interval",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    names = list(dict.fromkeys(name for each in found for row in each["rows"] for name in row["columns"]))
    for head in ("data", "protocol", "metric", *names):
        table.add_column(head, justify="right" if head in names else "left")
    for each in found:
        for row in each["rows"]:
            cells = [_score(row["columns"][name]) if name in row["columns"] else "-" for name in names]
            table.add_row(each["data"], row["name"], METRICS[each["metric"]], *cells)
    return table


def unlabelled_table(found: dict[str, Any]) -> Table:
    """Numbers that need no labels; docs/evaluation.md says what they are worth."""
    columns = found["unlabelled"]
    any_column = next(iter(columns.values()))
    table = Table(
        title=f"{found['data']}: without labels, {any_column['num_images']:,} images",
        title_justify="left",
        caption=f"view retrieval by chance: {any_column['chance']:.4f}; rank corr.: with kNN accuracy, over the "
        "runs of docs/experiments.md",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", style="bold" if name == "backbone" else "")
    known = worth()
    for data in known:
        table.add_column(f"rank corr., {data}", justify="right")
    rows = {
        "view_retrieval": "view retrieval (higher is better)",
        "effective_rank": "effective rank (higher)",
        "alignment": "alignment (lower)",
        "uniformity": "uniformity (lower)",
    }
    for key, head in rows.items():
        digits = 1 if key == "effective_rank" else 3
        cells = [f"{numbers[key]:.{digits}f}" for numbers in columns.values()]
        correlations = [each.get(key) for each in known.values()]
        cells += [f"{rho[0]:+.2f}" if rho else "-" for rho in correlations]
        table.add_row(head, *cells)
    return table


def _score(numbers: dict[str, Any]) -> str:
    low, high = numbers["interval_95"]
    return f"{numbers['score']:.3f}±{(high - low) / 2:.3f}"


def _gain(difference: dict[str, Any]) -> str:
    low, high = difference["interval_95"]
    return f"{difference['difference']:+.3f}±{(high - low) / 2:.3f}"


def learned_lines(found: dict[str, Any]) -> list[str]:
    """What `byol classify` says before it classifies: how good it is, what its probabilities are worth, from which on
    it answers."""
    beside = [f"the largest class alone {found['majority']:.3f}"]
    if found["raw_pixels"] is not None:
        beside.insert(0, f"raw pixels {_with_interval(found['raw_pixels'])}")
    about = (
        f"on {found['held_out_images']:,} labelled images of {len(found['classes'])} classes, {found['folds']} folds"
    )
    about += "" if found["groups"] is None else f" of {found['groups']:,} groups"
    lines = [f"Cross-validated accuracy {_with_interval(found)} {about}; {', '.join(beside)}."]
    if found["skewed"]:
        lines.append(f"The classes are of unequal size: mean over classes {found['balanced_accuracy']:.3f}.")
    before, after = found["calibration"]["before"], found["calibration"]["after"]
    named = {"expected_calibration_error": "calibration error", "log_loss": "log loss", "brier_score": "Brier score"}
    numbers = ", ".join(f"{name} {after[key]:.3f} (without {before[key]:.3f})" for key, name in named.items())
    lines.append(f"Temperature {found['temperature']:.2f}; out of fold, with temperatures: {numbers}.")
    lines.append(_threshold_line(found["threshold"]))
    return lines + [f"Mind that {warning}." for warning in found["warnings"]]


def _with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval_95"]
    return f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _threshold_line(chosen: dict[str, Any]) -> str:
    seen = f"{chosen['answered']:,} of the labelled images, of which out of fold {chosen['wrong']:,} were wrong"
    line = f"Answers from probability {chosen['value']:.3f} on: {seen}"
    if chosen["by"] == "hand":
        low, high = chosen["error_interval_95"]
        return f"{line} (95 % interval of the error {low:.3f} to {high:.3f})."
    if chosen["by"] == "promise":
        return (
            f"{line}; with {chosen['confidence']:.0%} confidence at most {chosen['error_rate']:.1%} of the answers "
            "are wrong, on images like the labelled ones."
        )
    few = chosen["chosen_on"] < chosen["fewest"]
    why = f"{chosen['fewest']} labels, all right, are the fewest" if few else "too many of the surest are wrong"
    return (
        f"{line}. No threshold can promise at most {chosen['error_rate']:.1%} wrong answers here ({why}): this one "
        "keeps to it if the probabilities are right. Label more, or give a larger --error-rate."
    )


def predicted_lines(found: dict[str, Any]) -> list[str]:
    """What `byol classify` found in the new images."""
    new = found["new_images"]
    lines = [f"{new['images']:,} new images: {new['answered']:,} answered, {new['images'] - new['answered']:,} unsure."]
    if new["images"]:
        lines[0] += f" Their mean probability is {new['mean_probability']:.3f}: the accuracy of all, if it is right."
    lines += [f"Mind that {warning}." for warning in new["warnings"]]
    decided = sorted(new["decided"].items(), key=lambda each: -each[1])
    more = f" and {len(decided) - 12} classes more" if len(decided) > 12 else ""
    if new["answered"]:
        lines.append("Answered: " + ", ".join(f"{name} {count:,}" for name, count in decided[:12]) + f"{more}.")
    if new["labelled"]:
        lines.append(f"{new['labelled']:,} of the images are labelled ones: predicted too, marked, and not counted.")
    if new["unusable"]:
        name, reason = new["unusable_first"][0]
        lines.append(f"{new['unusable']:,} images cannot be read, the first {name} ({reason}).")
    return [
        *lines,
        f"Written to {found['out']}; beside it {Path(found['summary']).name}, {Path(found['picture']).name}.",
    ]


def comparison_table(title: str, heads: dict[str, str], rows: list[tuple[str, dict[str, str]]]) -> Table:
    """A row a method. heads: measure -> heading. rows: (name, measure -> text)."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    for head in heads.values():
        table.add_column(head, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(name, *(re.sub(r"\b0\.(?=\d{3})", ".", cells[measure]).replace(" +- ", "±") for measure in heads))
    return table


def plan_table(experiment: Experiment, rows: list[tuple[str, int, float, bool]], left: float) -> Group:
    """What an experiment will do. rows: (arm, runs, seconds a run, done). left: seconds of training in all."""
    table = Table(title=f"{experiment.name}: {experiment.question}", title_justify="left", box=box.SIMPLE_HEAD)
    for head, right in (("run", False), ("seeds", True), ("training of each", True)):
        table.add_column(head, justify="right" if right else "left")
    for name, runs, seconds, done in rows:
        table.add_row(name, str(runs), "done" if done else duration(seconds) if seconds else "-")
    claims = "\n".join(f"  {claim.words}" for claim in experiment.claims) or "  no order"
    text = f"Tested, each by its paired 95 % interval over seeds:\n{claims}"
    return Group(table, text, f"About {duration(left)} of training are left, and the evaluations.")


def ablation_tables(result: dict[str, Any]) -> list[Table]:
    """The arms, and the verdicts on the claims."""
    arms = Table(title=result["question"], title_justify="left", box=box.SIMPLE_HEAD)
    arms.add_column("run")
    for head in (*MEASURES.values(), "paper"):
        arms.add_column(head, justify="right", no_wrap=True)
    for arm in result["arms"]:
        cells = (percent(arm["measures"].get(measure)) for measure in MEASURES)
        arms.add_row(arm["name"], *cells, "-" if arm["paper"] is None else f"{arm['paper']:.1f}")
    verdicts = Table(box=box.SIMPLE_HEAD)
    verdicts.add_column("claim")
    for head in ("points [95 %]", "paper", "verdict"):
        verdicts.add_column(head, justify="right")
    for each in result["verdicts"]:
        theirs = "-" if each["paper"] is None else f"{each['paper']:+.1f}"
        verdicts.add_row(each["words"], points(each), theirs, each["verdict"])
    return [arms, verdicts] if result["verdicts"] else [arms]
