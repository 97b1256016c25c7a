"""The command line's reference, from the commands themselves."""

from __future__ import annotations

import re
from collections import Counter
from enum import Enum
from typing import Any

HERE = "<!-- every command -->"
"""Of a page: what is replaced by all commands."""


def filled(page: str) -> str:
    """The page, with every command where it asks for them."""
    return page.replace(HERE, markdown()) if HERE in page else page


_KINDS = {"int": "N", "float": "X", "path": "PATH"}


def _group() -> Any:
    import typer

    from byol.cli import app

    return typer.main.get_command(app)


def registered() -> dict[str, Any]:
    """Every command by its name."""
    return dict(_group().commands)


def markdown() -> str:
    """Every command: how it is called, what it does, its arguments and options."""
    commands = registered()
    counts = Counter(_names(param) for command in commands.values() for param in command.params)
    common = {names for names, count in counts.items() if count == len(commands) and names.startswith("-")}
    shared = {_names(p): p for command in commands.values() for p in command.params if _names(p) in common}
    pages = [_command(name, command, common) for name, command in commands.items()]
    if shared:
        pages.append("## Every command\n\n" + _table("option", list(shared.values())))
    return "\n\n".join(pages)


def _command(name: str, command: Any, common: set[str]) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and _names(p) not in common]
    usual = [param for param in options if not _seldom(param)]
    seldom = [param for param in options if _seldom(param)]
    said, _, examples = (command.help or "").partition("\nExamples:\n")
    called = " ".join(["byol", name, *map(_called, arguments), "[OPTIONS]"])
    parts = [f"## byol {name}", f"```\n{called}\n```", *_paragraphs(said)]
    if examples.strip():
        lines = [line.strip() for line in examples.strip().splitlines()]
        parts.append("```\n" + "\n".join(lines) + "\n```")
    parts += [_table("argument", arguments), _table("option", usual), _table("seldom needed", seldom)]
    return "\n\n".join(part for part in parts if part)


def _paragraphs(text: str) -> list[str]:
    return [_text(" ".join(part.split())) for part in text.strip().split("\n\n") if part.strip()]


def _table(head: str, params: list[Any]) -> str:
    if not params:
        return ""
    rows = [f"| `{_left(param)}` | {_right(param)} |" for param in params]
    return "\n".join([f"| {head} | |", "| --- | --- |", *rows])


def _seldom(param: Any) -> bool:
    return bool(getattr(param, "rich_help_panel", None))


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return _called(param)
    return ", ".join(sorted((*param.opts, *param.secondary_opts), key=len))


def _called(param: Any) -> str:
    name = f"{param.metavar or param.name.upper()}{'' if param.nargs == 1 else '...'}"
    return name if param.required else f"[{name}]"


def _left(param: Any) -> str:
    if param.param_type_name == "argument" or param.is_flag:
        return _names(param)
    return f"{_names(param)} {param.metavar or _kind(param)}".replace("|", "\\|")


def _kind(param: Any) -> str:
    """A word for the kind of value, of what Typer's own help writes after an option's names, such as `<int range>`."""
    import typer

    written = param.get_help_record(typer.Context(_group()))[0]
    kind = written.rpartition("<")[2].rstrip(">").removesuffix(" range")
    return _KINDS.get(kind, kind.strip("[]") if "|" in kind else "TEXT")


def _right(param: Any) -> str:
    said = [_text(param.help)] if param.help else []
    shown, default = param.show_default, param.default
    if isinstance(shown, str):
        said.append(f"By default {_text(shown)}.")
    elif shown and not callable(default) and default not in (None, False, True, "", ()):
        said.append(f"By default `{default.value if isinstance(default, Enum) else default}`.")
    return " ".join(said)


def _text(text: str) -> str:
    """Text of which nothing is markup but code in backticks; option names are code."""
    pieces = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([\\*_<>|\[\]])", r"\\\1", pieces[i])
        pieces[i] = re.sub(r"(?<![\w-])(--[a-z][\w-]*)", lambda m: f"`{m[1]}`", pieces[i])
    return "".join(piece.replace("|", "\\|") if piece.startswith("`") else piece for piece in pieces)
