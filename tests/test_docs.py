"""The documentation: its links lead somewhere, its site is built strictly, and its commands are the program's."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from byol.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    if not {"_build", "notebooks"} & set(page.relative_to(ROOT).parts)
)
WITH_COMMANDS = [ROOT / "README.md", DOCS / "index.md", DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
LARGEST_PICTURE = 250_000


def name(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_project_lead_to_what_is_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    for link in links:
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def build(docs, out):
    """As `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(a copy of docs, the site made of it)"""
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(DOCS, root / "docs", ignore=shutil.ignore_patterns("_build", "notebooks", "__pycache__"))
    for each in ROOT.iterdir():
        if each.suffix == ".md":  # these become pages: as a link they would be read where they lie
            shutil.copy(each, root)
        elif each.name != "docs" and not each.name.startswith("."):
            (root / each.name).symlink_to(each)
    made = build(root / "docs", root / "site")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    return root / "docs", root / "site"


def pages(site):
    return sorted(site[1].rglob("*.html"))


def test_every_page_is_in_the_site(site):
    made = {str(page.relative_to(site[1]).with_suffix(".md")) for page in pages(site)}
    written = {str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)}
    results = {page for page in written if page.startswith("experiments/")}  # tables of runs, as `ablate` wrote them
    assert written - results <= made


class Asked(HTMLParser):
    """What a browser fetches for a page by itself: links to follow are not among it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "link" and given.get("rel") not in ("next", "prev", "index", "search", "canonical"):
            self.found.append(given["href"])
        if tag in ("script", "img", "source", "iframe", "video", "audio", "embed"):
            self.found += [given[key] for key in ("src", "srcset") if given.get(key)]
        if "style" in given:
            self.found += of_style(given["style"])


def of_style(text):
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", text)


def test_no_page_asks_another_host_for_anything(site):
    asked = {}
    for page in pages(site):
        reader = Asked()
        text = page.read_text("utf-8")
        reader.feed(text)
        inline = [url for style in re.findall(r"<style.*?</style>", text, re.DOTALL) for url in of_style(style)]
        asked[page] = reader.found + inline
    asked |= {style: of_style(style.read_text("utf-8")) for style in site[1].rglob("*.css")}
    found = {url for urls in asked.values() for url in urls}
    assert any(url.endswith("furo.css") or "furo.css?" in url for url in found)  # the check does see what is asked for
    assert [url for url in found if re.match(r"(\w+:)?//", url) and not url.startswith("data:")] == []
    assert not list(site[1].rglob("*.woff*"))


def test_every_command_and_option_is_in_the_reference(site):
    text = (site[1] / "reference" / "commands.html").read_text("utf-8")
    plain = re.sub(r"<[^>]+>", "", text)
    for command, found in typer.main.get_command(app).commands.items():
        assert f"byol {command}" in plain
        for param in found.params:
            assert all(option in plain for option in param.opts if option.startswith("--")), (command, param.opts)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("python", ["pretrain", "load", "Options", "report", "embed", "estimate", "predict", "Embedder"]),
        ("methods", ["BYOL", "SimSiam", "BarlowTwins", "VICReg", "SimCLR", "MoCo", "MoCoV3", "InstDisc", "Supervised"]),
        ("losses", ["regression", "barlow_twins", "nt_xent", "target_decay", "warmup_cosine"]),
        ("evaluation", ["evaluate_sources", "weighted_knn", "effective_rank", "verdict"]),
        ("recipes", ["digits_demo", "byol_imagenet_300", "byol_cifar10", "augmentations"]),
        ("views", ["View", "BYOL_T", "draw", "threefry2x32"]),
        ("parts", ["LARS", "Target", "Queue", "mlp", "gather", "Encoder"]),
    ],
)
def test_the_reference_has_the_public_names(site, page, names):
    text = (site[1] / "reference" / f"{page}.html").read_text("utf-8")
    described = set(re.findall(r'<dt class="sig[^>]*id="(?:[\w.]+\.)?(\w+)"', text))
    assert set(names) <= described


def test_a_dead_link_fails_the_build(site):
    docs, out = site
    page = docs / "tutorial.md"
    before = page.read_text("utf-8")
    dead = ("[a](no-such-page.md)", "[a](data.md#no-such-heading)", "[a](../src/no_such_file.py)", "![a](no-such.png)")
    page.write_text("\n\n".join([before, *dead]), "utf-8")
    try:
        made = build(docs, out)
    finally:
        page.write_text(before, "utf-8")
    assert made.returncode != 0
    for what in ("no-such-page.md", "no-such-heading", "no_such_file.py", "no-such.png"):
        assert what in made.stderr, made.stderr


def commands(page):
    """The command lines of `byol` in a page's blocks of code, without launchers and comments."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|[ /]|-m )byol ([a-z].*)", line)
        if found and re.match(r"(\S*/)?byol |torchrun |srun |acc=", line):
            yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_are_the_programs(page):
    known = typer.main.get_command(app).commands
    for command, *arguments in commands(page):
        assert command in known, command
        try:
            known[command].make_context(command, arguments)
        except typer.BadParameter.__base__ as error:
            pytest.fail(f"byol {command} {' '.join(arguments)}: {error.format_message()}")


def test_the_tutorial_goes_from_views_to_export():
    done = [command for command, *_ in commands(DOCS / "tutorial.md")]
    wanted = ["views", "estimate", "pretrain", "embed", "explore", "evaluate", "classify", "export"]
    assert [each for each in done if each in wanted] == wanted


def test_a_command_that_is_none_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\n.venv/bin/byol pretrain X --out RUN --no-such   # a comment\n```\n`byol nothing`\n", "utf-8")
    assert list(commands(page)) == [["pretrain", "X", "--out", "RUN", "--no-such"]]
    with pytest.raises(typer.BadParameter.__base__, match="no-such"):
        typer.main.get_command(app).commands["pretrain"].make_context("pretrain", ["X", "--no-such"])


def docstrings():
    spec = importlib.util.spec_from_file_location("docstrings_of_the_site", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_in_prose_become_a_list():
    text = """The loss || p - z ||^2 of `rows_`, see `byol.losses`.

    p, z: [B, D], so much. alpha: a * b_ to come. beta: no argument. Returns [B] in [0, 4].
    """
    assert docstrings().rest(text, {"p", "z", "alpha"}) == [
        r"The loss \|\| p - z \|\|^2 of \ :py:obj:`rows_`\ , see \ :py:obj:`byol.losses`\ .",
        "",
        "- **p**, **z**: [B, D], so much.",
        r"- **alpha**: a \* b\_ to come. beta: no argument.",
        "",
        "Returns [B] in [0, 4].",
        "",
    ]


def test_lists_and_code_of_a_docstring_stay_what_they_are():
    text = """Columns:

    - one (int64): its place
      in the listing;
    - two.

        w = w - lr * m
    """
    lines = docstrings().rest(text, set())
    assert "- one (int64): its place in the listing;" in lines
    assert lines[lines.index("::") + 2] == "        w = w - lr * m"


@pytest.mark.parametrize("picture", ["views", "report", "explore", "race"])
def test_pictures_of_the_front_pages_are_small(picture):
    assert 10_000 < (DOCS / "images" / f"{picture}.png").stat().st_size <= LARGEST_PICTURE
