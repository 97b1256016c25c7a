"""The site: Sphinx reads these pages as they are, and makes the reference from docstrings and from the command line."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "src")]

import commands  # noqa: E402
import docstrings  # noqa: E402

project = "byol"
author = "the byol project"
copyright = ""  # noqa: A001
html_title = "byol"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "experiments", "notebooks"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist", "deflist"]
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
default_role = None
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"
highlight_language = "text"
copybutton_exclude = ".linenos, .gp, .go"

REPOSITORY = os.environ.get("BYOL_REPOSITORY", "")
"""Where the project's files can be read, such as https://host/owner/name/blob/main/. Without it they come along."""

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_PAGES = {f"{name.upper()}.md": f"project/{name}.md" for name in ("changelog", "contributing", "security")}


def _outside(text: str, directory: Path) -> str:
    """Markdown whose links to files outside of docs lead to pages made of them, to the project's page, or to copies."""

    def replaced(match: re.Match[str]) -> str:
        words, address = match.groups()
        place, _, anchor = address.partition("#")
        if not place or urlsplit(place).scheme:
            return match[0]
        target = Path(os.path.normpath(directory / place))
        if target.is_relative_to(HERE) or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]  # a page, or a mistake that the build will name
        inside = target.relative_to(ROOT).as_posix()
        if inside in _PAGES:
            page = os.path.relpath(HERE / _PAGES[inside], directory)
            return f"[{words}]({page}{'#' * bool(anchor)}{anchor})"
        if REPOSITORY:
            return f"[{words}]({REPOSITORY}{inside})"
        return f"[{words}](<path:{place}>)" if target.is_file() else f"{words} (`{inside}`)"

    return _LINK.sub(replaced, text)


def _read(app, docname, content):
    text = commands.filled(docstrings.filled(content[0]))
    content[0] = _outside(text, (HERE / docname).parent)


def _include(app, path, parent, content):
    content[0] = _outside(content[0], ROOT / Path(path).parent)


def setup(app):
    app.connect("source-read", _read)
    app.connect("include-read", _include)
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-process-signature", docstrings.signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
