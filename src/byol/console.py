"""What a person sees in the terminal: progress bars and tables, all on stderr but the final result."""

from __future__ import annotations

import re
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from byol.online import ADVICE
from byol.run import Run
from byol.train import Progress as Step

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)

_WORDS = {
    "healthy": "[green]healthy[/]",
    "narrow": "[yellow]narrow[/]",
    "collapsed": "[bold red]collapsed[/]",
}


class Terminal:
    """Shows a run as it goes. Use as a context manager."""

    def __init__(self, console: Console = stderr, *, plan: bool = True) -> None:
        self._console = console
        self._plan = plan
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}
        self._word = "-"
        self._collapsed = False

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(line)

    def loading(self, done: int, total: int) -> None:
        self._update("loading images", done, total, "")

    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None:
        if not self._plan:
            return
        table = Table.grid(padding=(0, 2))
        for name, value in lines:
            table.add_row(f"[dim]{name}[/]", value)
        self._bar.console.print(table)

    def progress(self, step: Step) -> None:
        if step.probe is not None:
            # At step 0 batch norm's running statistics say nothing yet.
            collapsed = step.probe.word == "collapsed" and step.step > 0
            if collapsed and not self._collapsed:
                self.say(f"[bold red]step {step.step}[/]: {ADVICE}")
            self._collapsed = collapsed
            self._word = _WORDS[step.probe.word] if step.step > 0 else "-"
        if step.metrics:
            parts = [f"{step.images_per_second:,.0f} images/s", f"loss {step.metrics['loss']:.3f}"]
            if "tau" in step.metrics:
                parts.append(f"tau {step.metrics['tau']:.4f}")
            self._update("training", step.step, step.total_steps, "  ".join([*parts, self._word]))

    def _update(self, name: str, done: int, total: int, detail: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, detail=detail)
        self._bar.update(self._tasks[name], completed=done, detail=detail)


def evaluation_table(found: dict[str, Any]) -> Table:
    """Results as a table: a row a protocol, a column each for the backbone, raw pixels and the untrained network."""
    table = Table(
        title=f"{found['test_images']:,} test images, {found['train_images']:,} labelled training images",
        title_justify="left",
    )
    table.add_column("top-1 accuracy")
    names = list(next(iter(found["results"].values())))
    for name in names:
        title = "backbone (used labels)" if name == "backbone" and found.get("used_labels") else name
        table.add_column(title, justify="right", style="bold" if name == "backbone" else "")
    for label, row in evaluation_rows(found):
        table.add_row(label, *(row[name] for name in names))
    return table


def comparison_table(title: str, heads: dict[str, str], rows: list[tuple[str, dict[str, str]]]) -> Table:
    """A row a method. heads: measure -> heading. rows: (name, measure -> text)."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    for head in heads.values():
        table.add_column(head, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(name, *(re.sub(r"\b0\.(?=\d{3})", ".", cells[measure]).replace(" +- ", "±") for measure in heads))
    return table


def evaluation_rows(found: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """(protocol in words, {column: text}) for the terminal and the pictures."""
    rows: list[tuple[str, dict[str, str]]] = []
    for protocol, columns in found["results"].items():
        if protocol == "knn":
            for k in next(iter(columns.values())):
                rows.append((f"kNN, {k}", {name: f"{r[k]:.3f}" for name, r in columns.items()}))
        elif protocol == "linear":
            rows.append(("linear, all labels", {name: f"{r['accuracy']:.3f}" for name, r in columns.items()}))
        else:
            shown = {
                name: f"{r['accuracy']:.3f} +- {(r['interval_95'][1] - r['interval_95'][0]) / 2:.3f}"
                for name, r in columns.items()
            }
            shots = next(iter(columns.values()))["shots"]
            rows.append((f"few-shot, {shots} per class", shown))
    return rows
