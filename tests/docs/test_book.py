"""The book, built once: nothing is missing, nothing is fetched, and, in headless Chromium, the page with sliders works."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from docs import explorer
from ltcam import Config, Refine, files
from ltcam import data as datasets
from ltcam.experiment.otsu import otsu_masks
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.vgg16 import vgg16
from ltcam.files import ROOT
from ltcam.show import heatmaps

SECRET = "s3cret-of-the-environment"
OWN = {".git/objects/ab": "a commit", "CNAME": "example.org", "_static/own.css": "a", "own/page.html": "b", "own/c.png": "c"}
BEFORE = "# Sphinx build info version 1\n# of another configuration\nconfig: 0\ntags: 0\n"
NOTEBOOKS = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("results/[pr]*/notebooks/*.ipynb")]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny network of the demo's classes, one of which has a hostile name."""
    torch.manual_seed(0)
    model = vgg16(4, weights=None, width=16, hidden=16)
    recipe = Recipe(weights=None, width=16, hidden=16, size=(64, 64), frozen=5)
    record = {"recipe": asdict(recipe), "classes": ("</script><script>x", "spot", "stain", "crack"), "size": (64, 64)}
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "record": record}, path)
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def pictures(trained):
    data = datasets.load("demo", "test")
    data.classes = trained.classes
    return explorer.pictures(trained, data, 2)


@pytest.fixture(scope="session")
def book(tmp_path_factory, pictures):
    """The book of this checkout, as `make book` builds it. The pictures with sliders are those of the tiny network."""
    root = tmp_path_factory.mktemp("book")
    for name, text in {**OWN, ".buildinfo": BEFORE, "index.html": "of an earlier build"}.items():
        files.write(root / "book" / name, text)
    files.write(root / "figures" / "demo" / "demo" / "explorer.json", json.dumps(pictures))
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        root / "doctrees",
        "-c",
        "docs",
        ".",
        root / "book",
    ]
    environment = {**os.environ, "LTCAM_OUTPUT": str(root), "LTCAM_TOKEN": SECRET}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root / "book"


def test_a_build_leaves_what_it_did_not_write(book):
    """In a folder that is a user's own repository, with an earlier build of other pages in it."""
    assert {name: (book / name).read_text() for name in OWN} == OWN
    assert (book / ".buildinfo").read_text() != BEFORE and "</html>" in (book / "index.html").read_text()


def parsed(page):
    return BeautifulSoup(page.read_text(), "html.parser")


def test_every_committed_notebook_has_a_page(book):
    assert len(NOTEBOOKS) >= 37
    for path in NOTEBOOKS:
        page = book / path.relative_to(ROOT).with_suffix(".html")
        made = parsed(page)
        title = "".join(json.loads(path.read_text())["cells"][0]["source"]).splitlines()[0].removeprefix("# ")
        assert title.replace("'", "’") in made.h1.text
        assert made.select(".sidebar-tree .current-page")  # the navigation knows it


def test_links_and_pictures_lead_to_files(book):
    broken = []
    for page in book.rglob("*.html"):
        for link in set(re.findall(r'(?:href|src)="([^"#?]+)', page.read_text())):
            if not urlsplit(link).scheme and not (page.parent / unquote(link)).is_file():
                broken.append((page.name, link))
    assert not broken


def test_every_page_names_its_figures_tables_and_functions(book):
    figures = parsed(book / "docs" / "voc2012.html").find_all("img")
    assert len(figures) >= 20 and all(len(image["alt"]) > 20 for image in figures if "_images" in image["src"])
    assert "table1.csv" in parsed(book / "docs" / "voc2012.html").text
    functions = {tag["id"] for tag in parsed(book / "docs" / "api.html").find_all("dt", id=True)}
    assert {"ltcam.trace", "ltcam.explain", "ltcam.CAM", "ltcam.Config", "ltcam.truncate"} <= functions
    assert list((book / "_downloads").rglob("comparison.csv"))


def test_references_of_the_article_hint_at_what_they_lead_to(book):
    """A figure's and a table's caption, a work, and the words before an equation."""
    links = parsed(book / "docs" / "article.html").article.select("a.reference.internal[href^='#']")
    hints = {link["href"][1:]: link.get("title", "") for link in links}
    assert len(hints) >= 14 and min(map(len, hints.values())) > 20, hints
    assert hints["fig-idea"].startswith("The two changes on a photograph")
    assert hints["tab-seven"].startswith("mIoU (%) of the seven methods")
    assert hints["equation-eq-gradcam"].endswith("weighs each channel by its mean gradient:")
    assert any("Rethinking class activation maps" in hint for hint in hints.values())


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium prints the article")
def test_the_article_has_four_pages(book):
    printed = (book / "docs" / "article.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", printed)) == 4


def test_nothing_of_this_machine_is_in_the_book(book):
    private = [str(Path.home()) + "/", str(book.parent), SECRET]
    for path in (path for path in book.rglob("*") if path.suffix in (".html", ".js", ".css", ".csv")):
        assert not [text for text in private if text in path.read_text(errors="ignore")], path


@pytest.mark.parametrize(("method", "refine"), [("Layer-CAM", None), ("Layer-CAM, refined", Refine())])
def test_the_pictures_are_what_ltcam_computes(trained, pictures, method, refine):
    picture, data = pictures[1], datasets.load("demo", "test")
    index = [entry.name for entry in data.entries].index(picture["name"])
    sample, c = data[index], trained.classes.index(picture["class"])
    config = Config("layercam", "S3-S5", 40.0, refine=refine)
    heat = heatmaps.maps(trained, sample, c, {"": config})[""]
    predicted = otsu_masks(heat[None])[0]
    view, frame = picture["views"][method]["S3-S5"], explorer.DELTAS.index(40.0)
    assert view["iou"][frame] == pytest.approx(float(heatmaps.iou(predicted, sample.mask, c)), abs=0.006)
    side = explorer.SIDE
    assert picture["size"] == [side, side]
    sprite = decoded(view["sprite"])
    assert sprite.shape == (11 * side, side)
    pixels = sprite[frame * side : (frame + 1) * side]
    small = np.asarray(Image.fromarray(heat.numpy()).resize((side, side), Image.Resampling.BILINEAR))
    assert np.abs(pixels / 255 - small / small.max()).mean() < 0.02
    assert (pixels >= view["cut"][frame]).mean() == pytest.approx(float(predicted.float().mean()), abs=0.1)
    truth = (sample.mask == c + 1).float().mean()
    assert (decoded(picture["truth"]) > 127).mean() == pytest.approx(float(truth), abs=0.01)


def decoded(url):
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))


def test_the_first_picture_moves_most_and_all_are_small(pictures):
    spread = [np.ptp(picture["views"]["Grad-CAM"]["S1-S5"]["iou"]) for picture in pictures]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0
    assert len(json.dumps(pictures)) < 150_000 * len(pictures)


def test_without_a_picture_the_page_says_how_to_make_one(output):
    assert "make reproduce" in explorer.page() and "<script>" not in explorer.page()


def test_pictures_of_real_data_stand_before_those_of_the_demo(output):
    for profile in ("demo", "real"):
        files.write(output / "figures" / profile / "data" / "explorer.json", json.dumps([{"data": profile}]))
    assert '[{"data": "real"}]' in explorer.page() and '"demo"' not in explorer.page()


def click(chromium, name):
    """By the page itself: in an emulated phone the driver's own click lands in another place."""
    chromium.execute_script("arguments[0].click()", chromium.find_element("id", name))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_the_browser(book, chromium, pictures, width, scheme):
    def command(name, **parameters):
        chromium.execute_cdp_cmd(f"Emulation.{name}", parameters)

    command("setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    command("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    pages = [*book.glob("*.html"), *(book / "docs").glob("*.html"), *(book / "results").rglob("*.voc2012.html")]
    for page in pages:
        chromium.get(page.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width, page
        color = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", color))) < 60) == (scheme == "dark")
    sliders_work(chromium, book, pictures)
    if width == 1280:  # of a phone, chromedriver takes pictures of another place
        layers_are_drawn(chromium, book)
    chromium.get((book / "search.html").as_uri() + "?q=truncation")
    wait(chromium, "return document.querySelectorAll('#search-results li').length > 3")
    assert chromium.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 100 and {urlsplit(url).scheme for url in asked} <= {"file", "data", "blob"}


def until(chromium, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(chromium, 30).until(lambda _: condition())


def wait(chromium, script):
    return until(chromium, lambda: chromium.execute_script(script))


def sliders_work(chromium, book, pictures):
    from selenium.webdriver.common.keys import Keys

    chromium.get((book / "docs" / "explore.html").as_uri())
    number = max(range(len(pictures)), key=lambda n: np.ptp(pictures[n]["views"]["Grad-CAM"]["S1-S5"]["iou"]))
    views, seen = pictures[number]["views"]["Grad-CAM"], []
    chromium.execute_script(f"image.value = {number}; controls.dispatchEvent(new Event('input'))")

    def shown(layers, delta):
        told = "no truncation" if delta == 0 else f"δ = {explorer.DELTAS[delta]:g}"
        wait(chromium, f"return picture.getAttribute('aria-label').endsWith('Grad-CAM of {layers}, {told}')")
        said = chromium.execute_script("return parseFloat(iou.textContent.slice(4))")
        assert said == pytest.approx(views[layers]["iou"][delta], abs=0.051)
        seen.append(chromium.execute_script("return [iou.textContent, picture.innerHTML]"))

    shown("S1-S5", 0)
    for slider, keys, layers in (("delta", Keys.ARROW_RIGHT * 4, "S1-S5"), ("stages", Keys.ARROW_LEFT * 2, "S3-S5")):
        chromium.find_element("id", slider).send_keys(keys)
        shown(layers, 4)
    assert [chromium.find_element("id", f"{name}-value").text for name in ("delta", "stages")] == ["δ = 30", "S3-S5"]
    click(chromium, "alone")
    shown("S3", 4)
    assert len({tuple(state) for state in seen}) >= 3  # of this network S1 and S2 add next to nothing


def layers_are_drawn(chromium, book):
    """And can be left out, one by one."""
    chromium.get((book / "docs" / "explore.html").as_uri())

    def drawn():
        picture = Image.open(BytesIO(chromium.find_element("id", "picture").screenshot_as_png))
        return np.asarray(picture.convert("RGB"), dtype=int)

    before = until(chromium, lambda: (shown := drawn()).std() > 20 and [shown])[0]
    click(chromium, "heat")
    until(chromium, lambda: np.abs(drawn() - before).mean() > 10)
    for name, color in (("mask", (255, 255, 255)), ("truth", (255, 230, 0))):

        def edge(color=color):
            return (np.abs(drawn() - color).max(axis=2) < 30).mean()

        there = until(chromium, edge)
        assert there < 0.2  # of the picture
        click(chromium, name)
        until(chromium, lambda edge=edge, there=there: edge() < there)
