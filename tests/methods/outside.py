"""The method of docs/add-a-method.md as a module, for tests."""

import re
import sys
from pathlib import Path

from byol.methods import get
from byol.names import method_arguments

DOCS = Path(__file__).parents[2] / "docs/add-a-method.md"
NAME = "align_uniform:AlignUniform"


def write(folder):
    code = re.search(r"<!-- snippet: method -->\n```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL).group(1)
    (folder / "align_uniform.py").write_text(code, "utf-8")


def forget(*modules):
    for name in ("align_uniform", *modules):
        sys.modules.pop(name, None)
    get.cache_clear()
    method_arguments.cache_clear()
