"""A run's page, in a real browser: all of it is there, readable by everybody, and asks nothing of any network."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, needs_chromium, opened, violations
from PIL import Image

from byol.evaluate.protocols import Settings
from byol.evaluation import evaluate_run
from byol.options import Options
from byol.pipeline import Silent, pretrain
from byol.report import Watching, report, write_page

SECTIONS = ("verdict", "training", "views", "neighbours", "map", "labels", "load", "skipped", "settings")
HOSTILE = "<img src=x onerror=alert(1)>&\"'"
OPTIONS = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=24,
    batch_size=8,
    steps=6,
    precision="32",
    workers=0,
    hold_out=0.2,
    method_args={"hidden": 16, "out": 8},
)


class Listening(Silent):
    def __init__(self):
        self.lines = []

    def warn(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two finished runs on a folder of two classes, one of hostile name, with an unusable file; one run evaluated."""
    root = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(0)
    for i in range(60):
        folder = root / "images" / ("cat", HOSTILE.replace("/", ""))[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (24, 24, 3), dtype=np.uint8)
        pixels[..., 2 * (i % 2)] += 100
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (root / "images" / "cat" / "broken.png").write_bytes(b"nothing")
    for name, seed in (("run", 0), ("other", 1)):
        watching = Watching(root / name, Silent())
        pretrain(str(root / "images"), root / name, Options(**{**vars(OPTIONS), "seed": seed}), observer=watching)
        watching.done()
    settings = Settings(protocols=("knn", "linear", "fewshot"))
    evaluate_run(root / "run", str(root / "images"), settings=settings).whole()
    report([root / "run"])
    return root


def url(path):
    return path.resolve().as_uri()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_is_there_and_everybody_can_read_it(place, scheme):
    page_file = place / "run/report.html"
    assert page_file.stat().st_size < 3e6
    with opened(url(page_file), color_scheme=scheme) as page:
        for section in SECTIONS:
            text = page.locator(f"#{section}").inner_text()
            assert len(text.splitlines()) > 1 and "when the training is done" not in text, section
        assert page.locator("#views .row").count() == 6
        assert page.locator("#views .row").first.locator("img").count() == 1 + 2 * 2
        assert page.locator("#neighbours .row").count() == 8
        assert page.locator("#neighbours .mark").count() == 64
        widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
        assert min(widths) > 0
        assert page.locator("#training figure path").count() >= 6
        assert "broken.png" in page.locator("#skipped").inner_text()
        assert violations(page) == []


@needs_chromium
def test_the_verdict_says_what_the_files_say(place):
    found = json.loads((place / "run/evaluation.json").read_text())
    linear = next(row for row in found["rows"] if row["protocol"] == "linear")
    with opened(url(place / "run/report.html")) as page:
        text = page.locator("#verdict").inner_text()
        assert f"{linear['columns']['backbone']['score'] * 100:.1f} %" in text
        assert "raw pixels" in text and "the untrained network" in text
        cells = page.locator("#labels table").first.locator("td.own").all_inner_texts()
        assert len(cells) == len(found["rows"])
        for cell, row in zip(cells, found["rows"], strict=True):
            assert cell.startswith(f"{row['columns']['backbone']['score'] * 100:.1f} %")
        counts = found["confusion"]["counts"]
        cells = page.locator("table.confusion tbody td").all_inner_texts()
        assert [int(cell or 0) for cell in cells] == np.array(counts).ravel().tolist()
        steps = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
        loss = [line["loss"] for line in steps if "loss" in line][-1]
        shown = page.locator("#training figure", has_text="Loss").first.locator("output").inner_text()
        assert float(shown) == pytest.approx(loss, rel=5e-3)


@needs_chromium
def test_a_pointer_reads_curves_and_the_map(place):
    with opened(url(place / "run/report.html"), viewport={"width": 1200, "height": 900}) as page:
        figure = page.locator("#training figure").nth(3)
        figure.scroll_into_view_if_needed()
        figure.locator("svg").hover(position={"x": 60, "y": 60})
        assert re.match(r"step 0, 0 s: \d", figure.locator("output").inner_text())
        page.locator("[data-axis=time]").click()
        assert re.search(r"\d (s|min)$", figure.locator("svg text", has_text=re.compile(r" (s|min)$")).text_content())
        canvas = page.locator("#map canvas")
        canvas.scroll_into_view_if_needed()
        data = json.loads(page.locator("#map-run0").inner_text())
        xy = np.frombuffer(__import__("base64").b64decode(data["xy"]), "<f4").reshape(-1, 2)
        box = canvas.bounding_box()
        scale = min((box["width"] - 30) / np.ptp(xy[:, 0]), (box["height"] - 30) / np.ptp(xy[:, 1]))
        centre = (xy.max(0) + xy.min(0)) / 2
        at = [box["width"] / 2 + scale * (xy[5, 0] - centre[0]), box["height"] / 2 - scale * (xy[5, 1] - centre[1])]
        canvas.hover(position={"x": float(at[0]), "y": float(at[1])})
        tip = page.locator("#map .tip")
        assert data["paths"][5] in tip.inner_text()
        assert "data:image/jpeg" in tip.locator(".picture").evaluate("(each) => getComputedStyle(each).backgroundImage")
        key = page.locator("#map .legend button").nth(data["group"][5])
        key.click()
        assert key.get_attribute("aria-pressed") == "false"
        page.mouse.move(0, 0)
        canvas.hover(position={"x": float(at[0]), "y": float(at[1])})
        assert data["paths"][5] not in tip.inner_text() or not tip.is_visible()


@needs_chromium
def test_it_fits_a_phone(place):
    with opened(url(place / "run/report.html"), **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        sizes = page.evaluate(
            "[...document.querySelectorAll('main p')].map((p) => parseFloat(getComputedStyle(p).fontSize))"
        )
        assert min(sizes) >= 12
        assert violations(page) == []


@needs_chromium
def test_several_runs_stand_side_by_side(place):
    written = report([place / "run", place / "other"], place / "both.html")
    assert written.stat().st_size < 3e6
    with opened(url(written)) as page:
        table = page.get_by_role("region", name="Runs side by side")
        assert table.locator("thead th").all_inner_texts() == ["measure", "run", "other"]
        differs = page.get_by_role("region", name="Settings that differ").locator("tbody tr").all_inner_texts()
        assert [line.split() for line in differs] == [["seed", "0", "1"]]
        assert page.locator("#training figure").first.locator("path").count() == 2
        assert page.locator("#map canvas").count() == 2
        assert violations(page) == []


@needs_chromium
def test_the_page_follows_a_run_while_it_trains(place, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.report.watch.REFRESH_SECONDS", 0)
    monkeypatch.setattr("byol.report.watch.COST", 1e9)
    pages = []

    class Looking(Watching):
        def progress(self, progress):
            super().progress(progress)
            pages.append((tmp_path / "run/report.html").read_text())

    pretrain(str(place / "images"), tmp_path / "run", OPTIONS, observer=Looking(tmp_path / "run", Silent()))
    assert len(pages) > 2 and len(set(pages)) > 1
    (tmp_path / "page.html").write_text(pages[-2])
    with opened(url(tmp_path / "page.html")) as page:
        assert "while it trains" in page.locator("header").inner_text()
        assert page.locator("meta[http-equiv=refresh]").count() == 1
        assert page.locator("#views .row").count() == 6
        assert "when the training is done" in page.locator("#neighbours").inner_text()


def test_a_backbone_without_its_run_has_a_page(place, tmp_path):
    for name in ("backbone.json", "backbone.safetensors"):
        shutil.copy(place / "run" / name, tmp_path / name)
    text = write_page([tmp_path], tmp_path / "page.html").read_text()
    assert "came without the run" in text and "feature_dim" in text


def test_a_page_that_cannot_be_written_ends_no_run(place, tmp_path):
    listening = Listening()
    (tmp_path / "run/report.html").mkdir(parents=True)
    watching = Watching(tmp_path / "run", listening)
    pretrain(str(place / "images"), tmp_path / "out", OPTIONS, observer=watching)
    watching.done()
    assert (tmp_path / "out/backbone.safetensors").is_file()
    assert len([line for line in listening.lines if "not all that it could be" in line]) == 1


def test_the_sample_belongs_to_the_weights(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    before = (tmp_path / "run/embedding.parquet").read_bytes()
    report([tmp_path / "run"])
    assert (tmp_path / "run/embedding.parquet").read_bytes() == before
    shutil.copy(place / "other/backbone.safetensors", tmp_path / "run/backbone.safetensors")
    report([tmp_path / "run"])
    assert (tmp_path / "run/embedding.parquet").read_bytes() != before


def test_numbers_of_earlier_weights_are_no_verdict(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    page = write_page([tmp_path / "run"], tmp_path / "page.html")
    assert "of earlier weights" not in page.read_text()
    shutil.copy(place / "other/backbone.safetensors", tmp_path / "run/backbone.safetensors")
    assert "of earlier weights" in write_page([tmp_path / "run"], page).read_text()


def test_data_that_are_gone_leave_images_out_and_say_so(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    run = json.loads((tmp_path / "run/run.json").read_text())
    run["data"] = str(tmp_path / "gone")
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    for name in ("views.json", "embedding.parquet"):
        (tmp_path / "run" / name).unlink()
    listening = Listening()
    text = report([tmp_path / "run"], observer=listening).read_text()
    assert "gone" in listening.lines[0] and "draws them where the data still are" in text


DAMAGED = {
    "metrics.jsonl": "[]\n",
    "evaluation.json": '{"rows": [{"protocol": "linear"}]}',
    "views.json": '{"rows": [{}]}',
    "embedding.parquet": "PAR1",
    "run.json": "{}",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_line(place, tmp_path, name):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / name).write_text(DAMAGED[name])
    with pytest.raises(ValueError) as caught:
        write_page([tmp_path / "run"], tmp_path / "page.html")
    assert str(tmp_path / "run") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the --out of a pretrain"):
        report([Path(tmp_path)])
