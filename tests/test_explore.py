"""The explorer, driven in a real browser; and what it answers to those who ask for something else."""

import contextlib
import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import colourful, eventually, needs_chromium, opened, violations
from PIL import Image

from byol import embeddings
from byol.embed import embed
from byol.explore import Explorer, Server
from byol.options import Options
from byol.pipeline import pretrain

NUM = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images that differ, a run, and what it makes of them."""
    root = tmp_path_factory.mktemp("explore")
    generator = np.random.default_rng(0)
    for i in range(NUM):
        folder = root / "images" / ("bird", "fish")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        image_size=32,
        batch_size=8,
        steps=1,
        precision="32",
        workers=0,
        method_args={"hidden": 16, "out": 8},
    )
    pretrain(str(root / "images"), root / "run", options)
    embed(root / "run", str(root / "images"), root / "e.parquet")
    return root


@contextlib.contextmanager
def serving(explorer):
    with Server(explorer, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(place):
    with serving(Explorer(embeddings.read(place / "e.parquet"))) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body, {"Host": f"127.0.0.1:{server.server_port}", **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@needs_chromium
def test_points_appear_and_a_click_shows_the_picture_and_its_neighbours(server):
    with opened(server.url, viewport={"width": 1200, "height": 800}) as page:
        page.wait_for_selector("body[data-ready]")
        canvas = page.locator("canvas")
        explorer = server.explorer
        eventually(lambda: colourful(canvas) > 20 * NUM)  # each point covers tens of pixels
        row = 7
        xy = explorer.found.positions
        box = canvas.bounding_box()
        scale = min((box["width"] - 30) / np.ptp(xy[:, 0]), (box["height"] - 30) / np.ptp(xy[:, 1]))
        middle = (xy.max(0) + xy.min(0)) / 2
        x = float(box["width"] / 2 + scale * (xy[row, 0] - middle[0]))
        y = float(box["height"] / 2 - scale * (xy[row, 1] - middle[1]))
        canvas.hover(position={"x": x, "y": y})
        eventually(lambda: page.evaluate("document.querySelector('.tip img')?.naturalWidth > 0"))
        assert page.locator(".tip img").get_attribute("src") == f"thumbnail/{row}"
        canvas.click(position={"x": x, "y": y})
        eventually(
            lambda: page.evaluate("document.querySelector('#picked img').naturalWidth") == 72
        )  # the file's own size
        assert explorer.found.path(row) in page.locator("#picked").inner_text()
        near = page.locator("#found button").evaluate_all("(all) => all.map((each) => Number(each.dataset.row))")
        assert near == explorer.found.neighbours[0][row].tolist()
        page.locator("#found button").first.click()
        eventually(lambda: explorer.found.path(near[0]) in page.locator("#picked .name").inner_text())
        assert violations(page) == []


@needs_chromium
def test_a_search_finds_the_image_itself_first(server, place):
    with opened(server.url) as page:
        page.wait_for_selector("body[data-ready]")
        name = server.explorer.found.path(11)
        page.set_input_files("#query", place / "images" / name)
        page.wait_for_selector("#found button")
        first = page.locator("#found button").first
        assert first.get_attribute("data-row") == "11"
        assert re.search(r"distance 0\.000", first.locator("img").get_attribute("alt"))


@needs_chromium
def test_a_lasso_selects_and_its_list_is_saved(server, tmp_path):
    with opened(server.url, viewport={"width": 1200, "height": 800}) as page:
        page.wait_for_selector("body[data-ready]")
        box = page.locator("canvas").bounding_box()
        half = box["x"] + box["width"] / 2
        corners = [(box["x"] + 2, box["y"] + 60), (half, box["y"] + 60), (half, box["y"] + box["height"] - 2)]
        corners.append((box["x"] + 2, box["y"] + box["height"] - 2))
        page.locator("[data-do=select]").click()
        page.mouse.move(*corners[0])
        page.mouse.down()
        for corner in corners[1:]:
            page.mouse.move(*corner, steps=4)
        page.mouse.up()
        page.wait_for_selector("#chosen:not([hidden])")
        with page.expect_download() as download:
            page.locator("#export").click()
        download.value.save_as(tmp_path / "list.csv")
        lines = list(csv.DictReader((tmp_path / "list.csv").read_text().splitlines()))
        xy = server.explorer.found.positions
        middle = (xy[:, 0].max() + xy[:, 0].min()) / 2
        left = np.flatnonzero(xy[:, 0] < middle).tolist()
        assert 0 < len(left) < NUM
        assert {int(line["row"]) for line in lines} <= set(left) and len(lines) >= 0.8 * len(left)
        assert all(line["path"] == server.explorer.found.path(int(line["row"])) for line in lines)
        assert lines[0]["label"] in ("bird", "fish") and download.value.suggested_filename == "e-selected.csv"


@needs_chromium
def test_labels_filter_the_points(server):
    with opened(server.url) as page:
        page.wait_for_selector("body[data-ready]")
        canvas, keys = page.locator("canvas"), page.locator(".legend button")
        assert [" ".join(key.split()) for key in keys.all_inner_texts()] == ["bird (20)", "fish (20)"]
        eventually(lambda: colourful(canvas) > 20 * NUM)
        whole = colourful(canvas)
        page.locator("#none").click()
        eventually(lambda: colourful(canvas) == 0)
        keys.first.click()
        eventually(lambda: 0.3 * whole < colourful(canvas) < 0.7 * whole)  # half of them


def test_it_serves_its_own_set_and_nothing_else(server):
    assert ask(server, "GET", "/row/0")[0] == 200
    for path in (
        "/row/40",
        "/row/-1",
        "/row/../../etc/passwd",
        "/thumbnail/x",
        "/picture/",
        "/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/static/../run/run.json",
    ):
        status, body = ask(server, "GET", path)
        assert status == 404 and b"\n" in body and len(body) < 200, path
    assert server.server_address[0] == "127.0.0.1"


def test_a_set_that_says_nothing_of_itself_is_shown_too(place, tmp_path):
    table = pq.read_table(place / "e.parquet").drop_columns(["neighbors", "label", "class"])
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    with serving(Explorer(embeddings.read(tmp_path / "bare.parquet"))) as server:
        status, body = ask(server, "GET", "/")
        assert status == 200 and b"coloured by cluster" in body
        assert json.loads(ask(server, "GET", "/row/3")[1])["neighbours"] == []
        assert b"with --run" in ask(server, "POST", "/search", b"an image")[1]


def test_other_sites_are_not_answered(server):
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        assert ask(server, "GET", "/row/0", **headers)[0] == 403, headers
        assert ask(server, "POST", "/list", "[0]", **headers)[0] == 403, headers
    assert ask(server, "GET", "/row/0", Origin=server.url.rstrip("/"))[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "line"),
    [
        ("/search", b"no image", 400, b"the image"),
        ("/search", b"", 400, b"the image"),
        ("/list", b"[0, 99]", 404, b"no row 99"),
        ("/list", b"{}", 400, b"a list of rows"),
        ("/list", b"[" * 100_000, 400, b"a list of rows"),
        ("/list", b'["../../etc/passwd"]', 404, b"no row"),
        ("/other", b"", 404, b"nothing"),
    ],
)
def test_what_cannot_be_done_is_one_line(server, path, body, status, line):
    found = ask(server, "POST", path, body)
    assert found[0] == status and line in found[1] and found[1].count(b"\n") == 1


def test_large_uploads_are_refused_unread(server):
    found = ask(server, "POST", "/search", b"x", **{"Content-Length": str(1 << 40)})
    assert found[0] == 413


def test_no_path_leads_out_of_the_folder(place, tmp_path):
    (tmp_path / "images").mkdir()
    outside = tmp_path / "secret.png"
    Image.new("RGB", (90, 90)).save(outside)
    (tmp_path / "images/link.png").symlink_to(outside)
    Image.new("RGB", (80, 80)).save(tmp_path / "images/own.png")
    table = pq.read_table(place / "e.parquet").slice(0, 4)
    paths = pa.array(["../secret.png", str(outside), "link.png", "own.png"])
    table = table.set_column(table.schema.get_field_index("path"), "path", paths).drop_columns(["neighbors"])
    about = json.dumps({"data": str(tmp_path / "images")})
    pq.write_table(table.replace_schema_metadata({"byol": about}), tmp_path / "e.parquet")
    explorer = Explorer(embeddings.read(tmp_path / "e.parquet"))
    assert [explorer.file_of(row) for row in range(4)] == [None, None, None, tmp_path / "images/own.png"]
    assert explorer.picture(0) == explorer.found.thumbnail(0)


def test_a_search_needs_the_backbone_that_embedded(place, tmp_path):
    found = embeddings.read(place / "e.parquet")
    with pytest.raises(ValueError, match="with --run"):
        Explorer(found, tmp_path).search(place / "images/bird/00.png")
    options = Options(backbone="resnet18", image_size=32, batch_size=8, steps=1, precision="32", workers=0, seed=3)
    pretrain(str(place / "images"), tmp_path / "other", options)
    with pytest.raises(ValueError, match="another backbone"):
        Explorer(found, tmp_path / "other").search(place / "images/bird/00.png")


def byol(*arguments, **how):
    return subprocess.run([sys.executable, "-m", "byol", *map(str, arguments)], capture_output=True, text=True, **how)


def test_the_command_line_searches_and_says_what_is_wrong(place):
    query = place / "images" / "fish" / "13.png"
    ended = byol("explore", place / "e.parquet", "--query", query, "--json")
    assert ended.returncode == 0, ended.stderr
    nearest = json.loads(ended.stdout)["nearest"]
    assert nearest[0]["path"] == "fish/13.png" and nearest[0]["distance"] < 1e-5
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = byol("explore", place / "e.parquet", "--port", taken.getsockname()[1])
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1) and "is in use" in ended.stderr
    ended = byol("explore", place / "e.parquet", "--atlas", env={**os.environ, "PATH": ""})
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1) and "pip install embedding-atlas" in ended.stderr


def test_the_command_line_serves_until_it_is_interrupted(place):
    command = [sys.executable, "-m", "byol", "explore", str(place / "e.parquet"), "--port", "0", "--json"]
    # Jobs of a shell in the background begin with the signal ignored.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **heard) as process:
        port = int(json.loads(process.stdout.readline())["url"].rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        assert b"byol explore" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
