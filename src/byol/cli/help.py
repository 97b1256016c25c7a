"""What `--help` prints: a screen a command, from its signature and its docstring, with examples that a test parses."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from byol.quiet import quieted

SELDOM = "Seldom needed"
"""Of `rich_help_panel`: options that only `--help-all` shows."""
EXAMPLES = "Examples:"
WIDEST = 100
_WORDS = {"int": "N", "integer": "N", "float": "X", "path": "PATH", "str": "TEXT", "text": "TEXT"}


class Command(TyperCommand):
    """A command. Its docstring says what it does, and after a line "Examples:" gives whole command lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        seldom = any(map(_is_seldom, self.params))
        self.params = [*self.params, *(param for param in _EVERYWHERE if seldom or param.name != "help_all")]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write it, without options that are seldom needed unless all were asked for."""
        width, every = _width(), ctx.meta.get("byol.help_all", False)
        pieces = " ".join(f"{_name(p)}" if p.required else f"[{_name(p)}]" for p in _arguments(self))
        described, _, examples = (self.help or "").partition(f"\n{EXAMPLES}\n")
        text = [f"Usage: {ctx.command_path} {pieces} [OPTIONS]".replace("  ", " "), "", *_wrapped(described, width)]
        options = [param for param in self.get_params(ctx) if param.param_type_name == "option"]
        sections = {
            "Arguments": _arguments(self),
            "Options": [param for param in options if not _is_seldom(param)],
            SELDOM: [param for param in options if _is_seldom(param) and every],
        }
        for section, params in sections.items():
            if params:
                rows = [(_left(param, ctx), _right(param)) for param in params]
                text += ["", f"{section}:", *_rows(rows, width)]
        if examples:
            text += ["", EXAMPLES, *textwrap.indent(textwrap.dedent(examples).strip("\n"), "  ").splitlines()]
        formatter.write("\n".join(text) + "\n")

    def invoke(self, ctx: Any) -> Any:
        """Run it, with less on stderr where `--quiet` asks for that."""
        if not ctx.meta.get("byol.quiet", False):
            return super().invoke(ctx)
        with quieted():
            return super().invoke(ctx)


class Group(TyperGroup):
    """The commands, in the sections that `rich_help_panel` names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write it: a line a command, none of them cut."""
        width = _width()
        text = [f"Usage: {ctx.command_path} COMMAND ...", "", *_wrapped(self.help or "", width)]
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            rows = panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", [])
            rows.append((name, summary(command.help or "")))
        first = max(len(name) for name in self.commands) + 2
        for panel, rows in panels.items():
            text += ["", f"{panel}:", *_rows(rows, width, first)]
        options = [(_left(param, ctx), _right(param)) for param in self.get_params(ctx)]
        formatter.write("\n".join([*text, "", "Options:", *_rows(options, width)]) + "\n")


def summary(described: str) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=\.)\s", " ".join(described.partition("\n\n")[0].split()))[0]


def examples(command: Any) -> list[str]:
    """The command lines that a command's help gives."""
    found = (command.help or "").partition(f"\n{EXAMPLES}\n")[2]
    return [line.strip() for line in found.splitlines() if line.strip()]


def _everywhere(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            expose_value=False,
            callback=lambda context, value: be_quiet(context, value),
            help="Nothing on stderr but warnings and errors.",
        ),
    ] = False,
    help_all: Annotated[
        bool,
        typer.Option(
            "--help-all",
            expose_value=False,
            is_eager=True,
            callback=lambda context, value: _help_all(context, value),
            help="Show the options that are seldom needed too, and exit.",
        ),
    ] = False,
) -> None:
    """Options of every command."""


def be_quiet(context: typer.Context, value: bool) -> None:
    """Remember it for `Command.invoke`."""
    if value:
        context.meta["byol.quiet"] = True


def _help_all(context: typer.Context, value: bool) -> None:
    if value:
        context.meta["byol.help_all"] = True
        typer.echo(context.get_help())
        raise typer.Exit


def _own_options() -> list[Any]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_everywhere)
    return typer.main.get_command(app).params


def _width() -> int:
    return max(40, min(WIDEST, shutil.get_terminal_size().columns))


def _arguments(command: Any) -> list[Any]:
    return [param for param in command.params if param.param_type_name == "argument"]


def _is_seldom(param: Any) -> bool:
    return getattr(param, "rich_help_panel", None) == SELDOM


def _name(param: Any) -> str:
    return f"{param.metavar or param.name.upper()}{'' if param.nargs == 1 else '...'}"


def _left(param: Any, ctx: Any) -> str:
    """An option's names and what stands for its value, or an argument's name."""
    if param.param_type_name == "argument":
        return _name(param)
    names = ", ".join(sorted((*param.opts, *param.secondary_opts), key=len))
    if param.is_flag:
        return names
    return f"{names} {param.metavar or _value(param.get_help_record(ctx)[0])}"


def _value(record: str) -> str:
    """A word for the kind of value that Typer writes after an option's names."""
    kind = re.sub(r"^[-\w, /]*--?[\w-]+ ", "", record).strip("<>[].").lower()
    kind = re.sub(r"^list\[(.*?)\]?$", r"\1", kind).removesuffix(" range")
    return _WORDS.get(kind, kind)


def _right(param: Any) -> str:
    """What an option is for, and what it is by default."""
    found = [param.help] if param.help else []
    shown, default = param.show_default, param.default
    if isinstance(shown, str):
        found.append(f"[default: {shown}]")
    elif shown and default is not False and default not in (None, "") and not callable(default):
        found.append(f"[default: {default.value if isinstance(default, Enum) else default}]")
    elif param.required and param.param_type_name == "option":
        found.append("[required]")
    return " ".join(found)


def _wrapped(text: str, width: int) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n") if paragraph.strip()]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += [*([""] if lines else []), *textwrap.wrap(paragraph, width)]
    return lines


def _rows(rows: list[tuple[str, str]], width: int, first: int = 0) -> Iterator[str]:
    """Two columns; a name too long for its column stands above what is said of it."""
    widest = min(28, max(len(left) for left, _ in rows) + 2)
    column = first or widest
    for left, right in rows:
        lines = textwrap.wrap(right, width - column - 2, break_on_hyphens=False) or [""]
        if len(left) > column - 2:
            yield f"  {left}"
        else:
            yield f"  {left.ljust(column)}{lines.pop(0)}".rstrip()
        yield from (f"  {'':{column}}{line}" for line in lines)


_EVERYWHERE = _own_options()
