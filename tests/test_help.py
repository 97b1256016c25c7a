"""Help that fits a screen and tells the truth, quiet and colour, and the lists."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from byol import names
from byol.cli.help import Command, examples, summary
from byol.cli.shared import app
from byol.experiments import RECIPES
from byol.experiments.paper import EXPERIMENTS
from byol.options import Options
from byol.quiet import is_quiet, quieted

LINES, COLUMNS = 40, 100
"""What a help fits in: less than a laptop's terminal window, in its usual type, has."""
GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands


@pytest.mark.parametrize("columns", [COLUMNS, 60, 200])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_command_s_help_is_a_screen_and_cuts_nothing(run, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, shown, stderr = run(*([name] if name else []), "--help")
    assert (code, stderr) == (0, "")
    lines = shown.splitlines()
    assert all(len(line) <= max(COLUMNS if line.startswith("  byol ") else 0, min(columns, COLUMNS)) for line in lines)
    assert columns < COLUMNS or len(lines) <= LINES
    assert "..." not in shown.replace("DATA...", "").replace("COMMAND ...", "").replace("RUN...", "")
    assert lines[0].startswith(f"Usage: byol {name}".rstrip())
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_says_what_it_does_its_options_defaults_and_examples(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    command = COMMANDS[name]
    assert isinstance(command, Command)
    every = "--help-all" if any(param.name == "help_all" for param in command.params) else "--help"
    said = " ".join(run(name, every)[1].split())
    assert summary(command.help) in said and summary(command.help) in " ".join(run("--help")[1].split())
    for param in command.params:
        assert param.help, param.name
        for option in param.opts if param.param_type_name == "option" else ():
            assert f" {option}" in said
    assert " Examples: byol " in said


def every_example() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for line in examples(command):
            yield name, line


@pytest.mark.parametrize(("name", "line"), [pytest.param(*each, id=each[1]) for each in every_example()])
def test_every_example_is_a_command_line_that_is_understood(name, line):
    program, command, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
    assert (program, command) == ("byol", name)
    context = COMMANDS[name].make_context(
        name, arguments, parent=GROUP.make_context("byol", [name], resilient_parsing=True)
    )
    given = context.params
    known = {"recipe": RECIPES, "method": names.METHODS, "backbone": names.backbones()}
    for option, values in known.items():
        assert given.get(option) is None or given[option] in values
    assert all(each in names.METHODS for each in (given.get("methods") or "").split(",") if each)
    assert name != "ablate" or given["name"] in EXPERIMENTS
    if given.get("settings"):
        Options(method=given.get("method") or "byol").with_settings(given["settings"]).checked()


def test_defaults_that_are_written_out_are_those_that_apply():
    written = {
        param.name: param.show_default
        for param in COMMANDS["pretrain"].params
        if isinstance(getattr(param, "show_default", None), str)
    }
    default = Options()
    for name in ("keep", "hold_out", "max_bad", "method"):
        assert written.pop(name) == str(getattr(default, name))
    for name in written:  # the rest follows from the data or the machine
        assert getattr(default, name) is None
    assert {p.name: p.default for p in COMMANDS["pretrain"].params if p.name in ("seed", "accumulate")} == {
        "seed": default.seed,
        "accumulate": default.accumulate,
    }
    from byol.experiments import digits_demo

    (steps,) = (param for param in COMMANDS["demo"].params if param.name == "steps")
    assert steps.show_default == str(digits_demo().steps)


def test_options_seldom_needed_are_shown_where_all_are_asked_for(run):
    assert "--max-bad" not in run("pretrain", "--help")[1]
    code, said, _ = run("pretrain", "--help-all")
    assert code == 0 and "--max-bad" in said and "--epochs" in said
    code, _, stderr = run("views", "--help-al")
    assert code == 2 and "--help-all" in stderr


def test_lists_are_filtered_by_part_or_pattern(run):
    assert run("list", "backbones", "resnet18")[1].split() == [n for n in names.backbones() if "resnet18" in n]
    matched = run("list", "backbones", "ResNet1?d")[1].split()
    assert matched == [
        name for name in names.backbones() if name.startswith("resnet1") and len(name) == 9 and name[8] == "d"
    ]
    assert "resnet18d" in matched
    code, stdout, stderr = run("list", "backbones", "resnet81")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert "resnet18" in stderr
    assert json.loads(run("list", "methods", "--json")[1])["methods"].keys() == set(names.METHODS)
    assert json.loads(run("list", "recipes", "cifar100", "--json")[1])["recipes"].keys() == {
        name for name in RECIPES if "cifar100" in name
    }
    assert "resnet18" in json.loads(run("list", "backbones", "resnet18", "--json")[1])["backbones"]
    assert json.loads(run("list", "experiments", "tau", "--json")[1])["experiments"].keys() >= {"tau"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    import numpy as np

    path = tmp_path_factory.mktemp("small") / "[bold]small.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 12, 12, 3)).astype(np.uint8)
    np.savez(path, images=pixels, labels=np.arange(60) % 2)
    return path


TINY = ("--steps", "2", "--batch-size", "8", "--backbone", "resnet18", "--set", "hidden=8", "--set", "out=8")
TINY += ("--set", "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 8, 8]}", "--precision", "32")


def test_quiet_says_nothing_but_the_result(run, small, tmp_path):
    code, stdout, stderr = run("pretrain", small, "--out", tmp_path / "run", *TINY, "--json", "-q")
    assert (code, stderr) == (0, "")
    assert json.loads(stdout)["steps"] == 2
    assert not is_quiet()
    asked = ("--protocol", "knn", "--baseline", "none", "--no-cache", "--json")
    code, stdout, stderr = run("-q", "evaluate", tmp_path / "run", small, *asked)
    assert (code, stderr) == (0, "")
    assert json.loads(stdout)["rows"][0]["protocol"] == "knn"
    code, stdout, stderr = run("pretrain", small, "--out", tmp_path / "run", "-q")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)  # a mistake is told


def test_quiet_keeps_warnings(run, small, tmp_path):
    rows = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(50))
    (tmp_path / "labels.csv").write_text("id,label\n" + rows)
    asked = ("--labels", tmp_path / "labels.csv", "-q", "--json")
    code, _, stderr = run("pretrain", small, "--out", tmp_path / "run", *TINY, *asked)
    assert code == 0
    assert stderr.splitlines() == [f"10 of 60 images of {small} have no label in {tmp_path}/labels.csv"]


def test_quiet_holds_in_processes_and_ends_with_its_command(monkeypatch):
    monkeypatch.delenv("BYOL_QUIET", raising=False)
    with quieted():
        asked = "from byol.quiet import is_quiet; print(is_quiet())"
        assert (
            subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "True\n"
        )
    assert not is_quiet() and "BYOL_QUIET" not in os.environ
    monkeypatch.setenv("BYOL_QUIET", "0")
    assert not is_quiet()


def test_views_are_told_as_json(run, small, tmp_path):
    code, stdout, stderr = run("views", small, "--out", tmp_path / "views.png", "--images", 2, "--json")
    assert (code, stderr) == (0, "")
    assert json.loads(stdout) == {"picture": str(tmp_path / "views.png")}


CASES = {
    "pipe": ({}, False),
    "pipe, CI": ({"CI": "true"}, False),
    "pipe, dumb": ({"TERM": "dumb"}, False),
    "pipe, forced": ({"FORCE_COLOR": "1"}, False),
    "terminal": ({}, True),
    "terminal, no colour": ({"NO_COLOR": "1"}, True),
    "terminal, dumb": ({"TERM": "dumb"}, True),
    "terminal, quiet": ({"BYOL_QUIET": "1"}, True),
}


@pytest.fixture(scope="module")
def shown():
    """Case -> what is shown there; see shown.py."""
    import shown

    asked = [sys.executable, shown.__file__, json.dumps(list(CASES.values()))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment)
    return dict(zip(CASES, json.loads(found.stdout), strict=True))


@pytest.mark.parametrize("case", ["pipe", "pipe, CI", "pipe, dumb"])
def test_a_pipe_gets_whole_lines_without_colours_or_bars(shown, case):
    stdout, stderr = shown[case]
    assert stdout == "done\n"
    assert "\x1b" not in stderr and "\r" not in stderr
    assert stderr.splitlines()[0].endswith("not broken: /a/[bold]name")
    assert stderr.splitlines()[1].split() == ["name", "value"] and len(stderr.splitlines()) == 2


def test_colours_may_be_forced_into_a_pipe_and_bars_stay_out(shown):
    _, stderr = shown["pipe, forced"]
    assert "\x1b[2m" in stderr and "\x1b[?25l" not in stderr and "\r" not in stderr


def test_a_terminal_has_colours_and_a_bar(shown):
    said, _ = shown["terminal"]
    assert "\x1b[38" in said or "\x1b[3" in said
    assert "2/2" in said and "\x1b[?25h" in said  # the cursor is back


def test_a_terminal_that_wants_no_colours_has_none(shown):
    said, _ = shown["terminal, no colour"]
    assert "2/2" in said
    assert not any(f"\x1b[{code}" in said for code in ("31", "32", "33", "34", "35", "36", "38", "1;3"))
    assert "\x1b" not in shown["terminal, dumb"][0] and "done" in shown["terminal, dumb"][0]


def test_a_terminal_where_only_warnings_are_wanted_shows_the_result_alone(shown):
    assert shown["terminal, quiet"][0] == "done\r\n"
