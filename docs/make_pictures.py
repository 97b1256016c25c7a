"""Makes the README's and the site's pictures by the program itself: `make pictures`.

Trains the demo (minutes), embeds its digits, and takes pictures of what it wrote in Debian's Chromium. race.png and
others of docs/benchmarks.md are made by the scripts of benchmarks/ that the page names.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH = 1200
LARGEST = 250_000
"""Bytes of a picture."""


def byol(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "byol", *arguments], cwd=cwd, check=True)


def save(picture: bytes, name: str, colors: int = 256) -> None:
    """Screens have few colours: with a palette a picture is a third as large."""
    path = IMAGES / name
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(colors).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path} has {size:,} bytes, more than {LARGEST:,}")
    print(f"{path}: {size:,} bytes")


def report(page: Page, directory: Path) -> None:
    """The first two screens: the verdict and the training."""
    page.goto((directory / "report.html").as_uri())
    box = page.locator("#training").bounding_box()
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"]}
    save(page.screenshot(full_page=True, clip=clip), "report.png")


def explore(page: Page, file: Path) -> None:
    """The map, with one image picked and those nearest to it."""
    command = [sys.executable, "-m", "byol", "explore", file.name, "--port", "0", "--no-browser", "--json"]
    with subprocess.Popen(command, cwd=file.parent, stdout=subprocess.PIPE, text=True) as server:
        try:
            page.goto(json.loads(server.stdout.readline())["url"])
            canvas = page.locator("canvas")
            x, y = a_point(canvas.screenshot())
            canvas.click(position={"x": x, "y": y})
            page.locator("#found button img").last.wait_for()
            page.mouse.move(0, 0)
            page.wait_for_load_state("networkidle")
            save(page.screenshot(), "explore.png")
        finally:
            server.terminate()


def a_point(picture: bytes) -> tuple[int, int]:
    """Where an image lies on the map: the pixel with a colour that has most of them around it."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60
    density = Image.fromarray(np.where(coloured, 255, 0).astype(np.uint8)).filter(ImageFilter.BoxBlur(20))
    y, x = np.unravel_index(np.argmax(np.asarray(density) * coloured), coloured.shape)
    return int(x), int(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="A finished `byol demo`, in place of a new one.")
    given = parser.parse_args().run
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no Chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        run = directory / "demo"
        if given is None:
            byol("demo", "--out", "demo", cwd=directory)
        else:
            shutil.copytree(given, run)
            byol("report", "demo", cwd=directory)
        byol("embed", "demo", "digits", "--out", "digits.parquet", cwd=directory)
        shutil.copy(run / "views.png", IMAGES / "views.png")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            screen = {"width": WIDTH, "height": 760}
            page = browser.new_context(viewport=screen, color_scheme="light", reduced_motion="reduce").new_page()
            report(page, run)
            explore(page, directory / "digits.parquet")
            browser.close()


if __name__ == "__main__":
    main()
