"""The package's docstrings are prose; this makes reStructuredText of them, which is what autodoc wants.

Arguments stand in paragraphs of "name: what it is. other, names: what they are." They become a list, where the names
are the signature's, and everything else is text as it stands, with `names` in backticks as code.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from pathlib import Path
from typing import Any

PUBLIC = "<!-- public names -->"
"""Of a page: what is replaced by all that `byol` itself has."""
DOCS = Path(__file__).resolve().parent
_PAGE = re.compile(r"\bdocs/([\w-]+)\\?\.md\b")
_CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
_DOTTED = re.compile(r"[A-Za-z_][\w.]*$")


def filled(page: str) -> str:
    """The page, with the public names where it asks for them."""
    return page.replace(PUBLIC, _public()) if PUBLIC in page else page


def _public() -> str:
    import byol

    lines = []
    for name in sorted(byol.__all__):
        if inspect.isclass(getattr(byol, name)):
            lines += [f".. autoclass:: byol.{name}()", ""]
        else:
            lines += [f".. autofunction:: byol.{name}", ""]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, written: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature that Sphinx can read: a field that is made anew each time has a default, and that is all."""
    return (written and written.replace("<factory>", "...")), returned


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring, for autodoc."""
    lines[:] = rest("\n".join(lines), arguments(what, obj))


def arguments(what: str, obj: Any) -> set[str]:
    """The names that a docstring may explain: arguments, and of a class its fields too."""
    found: set[str] = set()
    if what == "class":
        for each in inspect.getmro(obj):
            found |= set(vars(each).get("__annotations__", {}))
    with contextlib.suppress(TypeError, ValueError):  # what has no signature
        found |= set(inspect.signature(obj).parameters)
    return found


def rest(text: str, names: set[str]) -> list[str]:
    """The lines of a docstring in reStructuredText."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith(">>>"):
            lines += [*block.splitlines(), ""]
        elif block.startswith(" "):
            lines += ["::", "", *("    " + line for line in block.splitlines()), ""]
        elif block.startswith("- "):
            items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
            lines += [*("- " + _inline(" ".join(item.split())) for item in items), ""]
        else:
            lines += _paragraph(block, names)
    return lines


def _paragraph(block: str, names: set[str]) -> list[str]:
    text = " ".join(block.split())
    if not names:
        return [_inline(text), ""]
    name = rf"(?:{'|'.join(sorted(map(re.escape, names), key=len, reverse=True))})(?:\.\w+)?"
    entry = re.compile(rf"(?:^|(?<=[.;\])] ))({name}(?:, {name})*): ")
    pieces = entry.split(text)
    lines = [_inline(pieces[0].strip()), ""] if pieces[0].strip() else []
    for i, (heads, said) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        said, result = _result(said.strip()) if 2 * i + 3 == len(pieces) else (said.strip(), "")
        head = ", ".join(f"**{_escaped(each)}**" for each in heads.split(", "))
        lines += [f"- {head}: {_inline(said)}"]
        if result:
            lines += ["", _inline(result)]
    return [*lines, ""] if lines and lines[-1] else lines


def _result(said: str) -> tuple[str, str]:
    """What is said of the last argument, and what of the result or of errors."""
    at = re.search(r"(?<=[.\])] )(?:Returns? |Scalar|Gives |(?:Value|FileNotFound)Error)", said)
    return (said[: at.start()].strip(), said[at.start() :]) if at else (said, "")


def _inline(text: str) -> str:
    """Text in which nothing but code in backticks is markup."""
    found, at = "", 0
    for match in _CODE.finditer(text):
        code = match[1] or match[2]
        role = f":py:obj:`{code}`" if _DOTTED.match(code) else f"``{code}``"
        # A role needs something that is no word on both sides.
        found += f"{_escaped(text[at : match.start()])}\\ {role}\\ "
        at = match.end()
    return found + _escaped(text[at:])


def _escaped(text: str) -> str:
    return _PAGE.sub(_linked, re.sub(r"([\\*`|_])", r"\\\1", text))


def _linked(match: re.Match[str]) -> str:
    return f"\\ :doc:`/{match[1]}`\\ " if (DOCS / f"{match[1]}.md").is_file() else match[0]
