"""The command line. Thin, and quick to answer: nothing heavy is imported before the options are known to be right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from byol.cli.classify import classify
from byol.cli.export import export
from byol.cli.help import Command
from byol.cli.importing import import_weights
from byol.cli.listing import list_names
from byol.cli.look import explore, report
from byol.cli.measure import ablate, compare, evaluate
from byol.cli.shared import app, fail
from byol.cli.train import demo, estimate, pretrain, views
from byol.cli.use import embed
from byol.launch import is_first_here, launched, launched_rank

SHARED = ("pretrain", "embed")
"""Commands that several processes do together."""

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Train": {"demo": demo, "pretrain": pretrain, "estimate": estimate, "views": views},
    "Measure": {"evaluate": evaluate, "compare": compare, "ablate": ablate},
    "Look": {"report": report, "embed": embed, "explore": explore},
    "Use": {"classify": classify, "export": export, "import": import_weights},
    "Look up": {"list": list_names},
}
"""Section of the help -> name of the command -> what it does."""

for _section, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_section)(_command)


def main() -> None:
    """Run the command line; what a person can set right is one line on stderr and exit code 2."""
    try:
        command = next((each for each in sys.argv[1:] if not each.startswith("-")), "")
        if launched()[0] > 1 and command not in SHARED:
            fail(
                f"only `byol {'` and `byol '.join(SHARED)}` run in several processes; start this one without a launcher"
            )
        code = app(sys.argv[1:] or ["--help"], prog_name="byol", standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except _UsageError as error:
        if launched_rank() > 0:  # the first of the processes says it
            sys.exit(2)
        _exit(_one_line(error))
    except (ValueError, FileNotFoundError) as error:
        if not _for_people(error):
            raise
        _exit(str(error))
    except OSError as error:  # a place that cannot be written, a full disk
        if error.filename is None:
            raise
        _exit(f"{error.strerror}: {error.filename}")
    except RuntimeError as error:
        from byol.train import TrainingStopped

        if not isinstance(error, TrainingStopped):
            raise
        print(f"byol: {error}", file=sys.stderr)
        sys.exit(error.code)
    sys.exit(code if isinstance(code, int) else 0)


_UsageError: Any = typer.BadParameter.__base__  # Typer carries a Click of its own in some versions


def _one_line(error: Any) -> str:
    """An option error's own text, without Click's "Invalid value" where the text is this module's."""
    command = error.ctx.command_path if error.ctx is not None else ""
    where = f"`{command} --help` lists what there is" if command else ""
    text = error.message if type(error) is typer.BadParameter and error.param is None else error.format_message()
    return f"{text.rstrip('.')}; {where}" if where else text


def _for_people(error: Exception) -> bool:
    """Whether the error was raised by this package, whose messages are written for people."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("byol.")


def _exit(line: str) -> None:
    if not is_first_here():
        from byol.parallel import world_size

        if world_size() == 1:  # they have not met, and all of this machine have the same trouble
            sys.exit(2)
    print(f"byol: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
