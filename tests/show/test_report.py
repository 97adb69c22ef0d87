"""The site of made-up results: what it shows, that it needs nothing else, and, in headless Chromium, that it works."""

import base64
import json
import re
import shutil
from dataclasses import asdict
from io import BytesIO
from urllib.parse import unquote, urlsplit

import nbformat.v4 as nb
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

import ltcam
from ltcam import data as datasets
from ltcam import files
from ltcam.experiment import checkpoints, recipe
from ltcam.experiment.segmentation import otsu_masks
from ltcam.experiment.vgg16 import vgg16
from ltcam.paper import tables as paper
from ltcam.show import explorer, front, plotting, report

EVIL = "<script>document.title = 'taken'; console.error('taken')</script>"
NUMBERS = "2 of 4, least S2 over S1: 17.54 at δ=10 against 17.55 at δ=0 (paper 4 of 4, least S4: 21.57 against 14.03)"
CLAIMS = {
    "claim": [EVIL, "Depth helps", "Fusing helps", "Truncation helps", "Nobody tried"],
    "section": ["3.2"] * 5,
    "quote": [EVIL, "the deeper the better", "all are better", "less noise", "far better"],
    "verdict": ["holds", "does not hold", "holds", "tie", "not measured"],
    "numbers": [NUMBERS, *["gain 1.76 against 1.17 (paper prints none)"] * 3, "not measured (paper 30.00 against 20.00)"],
    "paper": ["does not hold", "no numbers", "no numbers", "no numbers", "holds"],
    "paper_on": ["VOC 2012"] * 5,
    "margin": [-0.0094, 1, 2, 3, None],
    "ci_low": [-0.113, 0, 1, -1, None],
    "ci_high": [0.0214, 2, 3, 5, None],
    "trainings": ["1 of 2", "0 of 2", "2 of 2", "2 of 2", ""],
}
RECIPE = recipe.Recipe(weights=None, width=16, hidden=16, size=(64, 64), frozen=5)


def checkpoint(path):
    torch.manual_seed(0)
    model, classes = vgg16(4, weights=None, width=16, hidden=16), ("<script>x</script>", "spot", "stain", "crack")
    record = {"recipe": asdict(RECIPE), "classes": classes, "size": (64, 64)}
    torch.save({"model": model.state_dict(), "record": record}, path)


def notebook(path):
    picture = BytesIO()
    Image.new("RGB", (1500, 20), "red").save(picture, "PNG")
    outputs = [
        nb.new_output("stream", text=EVIL),
        nb.new_output("display_data", {"text/html": f"<style>th {{color: red}}</style><table><th>{EVIL}</th></table>"}),
        nb.new_output(
            "display_data",
            {"text/markdown": f"**Found** {EVIL} [x](javascript:alert(1)) [t](../demo/runs/b/t.csv)", "text/plain": ""},
        ),
        nb.new_output("display_data", {"application/javascript": "console.error('taken')", "text/plain": "plain"}),
        nb.new_output("display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()}),
    ]
    cells = [
        nb.new_markdown_cell(f"# 4. {EVIL} compared\n\n{EVIL}"),
        nb.new_markdown_cell("$\\delta$ and $$S^c = \\sum_l \\psi(M^{cl}) " + "+ x" * 60 + "$$"),
        nb.new_code_cell("raise RuntimeError('executed')", outputs=outputs, execution_count=1),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb.new_notebook(cells=cells)))


def results():
    """Table 3 of two data sets, one of them all hostile names; of the demo claims, figures, a notebook and a model too."""
    ours = pd.DataFrame({"row": list(paper.SEVEN)})
    for name in (*paper.CLASS_MEANS.values(), *paper.POOLED.values()):
        ours[name] = [10.0, 20, 30, 40, 70, 60, 50]
    for data, title in (("demo", "demo (generated)"), ("a <b>&#%", EVIL)):
        folder = files.results("demo", data)
        folder.mkdir(parents=True)
        ours.to_csv(folder / "table3.csv", index=False)
        about = {"commit": "0123456789abcdef", "dirty": True, "recipe": {"seed": 7}, "images": {"scored": 40}, "device": EVIL}
        (folder / "table3.json").write_text(json.dumps({"data": title, **about}))
        files.figures("demo", data).mkdir(parents=True)
        for name in ("fig2", "<i> 100% #1?"):
            Image.new("RGB", (900, 30)).save(files.figures("demo", data) / f"{name}.png")
    folder = files.results("demo", "demo")
    pd.DataFrame(CLAIMS).to_csv(folder / "claims.csv", index=False)
    checkpoint(folder / "checkpoint.pt")
    (folder / "trainings.csv").write_text("name,seed,fold,mAP\n,,,0.5\n")
    (files.results("demo", "demo") / "runs" / "b").mkdir(parents=True)
    (files.results("demo", "demo") / "runs" / "b" / "t.csv").write_text("a\n1\n")
    notebook(files.results("demo") / "notebooks" / "04_comparison.demo.ipynb")
    notebook(files.results("demo") / "notebooks" / "05_delta_sweep.demo.failed.ipynb")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The results and the site, made once; tests that change them take a copy: `site`."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_OUTPUT", str(root))
        patch.setattr(report, "PICTURES", 1)
        results()
        report.report("demo", root / "site")
    return root


@pytest.fixture
def site(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "made"))
    monkeypatch.setattr(report, "PICTURES", 1)
    return tmp_path / "made" / "site"


def parsed(page):
    return BeautifulSoup(page.read_text(), "html.parser")


def text(element):
    return " ".join(element.text.split())


def test_the_first_screen_says_what_is_claimed_and_what_came_of_it(site):
    main = parsed(site / "index.html").main
    claimed, outcome = main.select(".lead > p:not(.note)")
    assert text(claimed).startswith(
        "The claim. The paper (arXiv 2308.02118) says that class activation maps segment better with"
    )
    assert text(outcome) == "What came of it. On demo (generated), 2 of the 4 claims that we measured held."
    assert [text(li) for li in main.select(".counts li")] == ["demo (generated) 2 held 1 tied 1 failed"]
    canvas, tabs = main.find("canvas"), main.select_one(".tabs")
    assert canvas in main.select_one(".explore").descendants and tabs in canvas.find_all_next("div")
    assert main.select("#controls input[type=range]") and main.noscript


def test_each_data_set_is_a_tab_that_needs_no_script(site):
    (tabs,) = parsed(site / "index.html").select(".tabs")
    parts = tabs.find_all(recursive=False)
    assert [part.name for part in parts] == ["input", "label", "section"] * 2
    radios, labels, sections = (parts[k::3] for k in range(3))
    assert {(radio["type"], radio["name"]) for radio in radios} == {("radio", "data")}
    assert [radio.has_attr("checked") for radio in radios] == [True, False]
    assert [label["for"] for label in labels] == [radio["id"] for radio in radios]
    assert [label.text for label in labels] == [section["aria-label"] for section in sections] == ["demo (generated)", EVIL]
    assert [section["id"] for section in sections] == ["demo", "a <b>&#%"]
    style = (site / "style.css").read_text()
    assert ".tabs > input:checked + label + section { display: block; }" in style
    assert ".tabs > input { position: absolute; opacity: 0; }" in style  # so the keyboard reaches them
    for section in sections:
        assert section.find_all("h2")[-1].text == "Downloads and provenance"


def test_a_claim_is_a_row_that_folds_its_details(site):
    first, second = parsed(site / "index.html").find_all("section")
    rows = first.select("details.claim")
    assert [[text(span) for span in row.summary.find_all("span")] for row in rows] == [
        [EVIL, "held", "ours 17.54 against 17.55", "paper 21.57 against 14.03"],
        ["Depth helps", "failed", "ours gain 1.76 against 1.17", "paper prints none"],
        ["Fusing helps", "held", "ours gain 1.76 against 1.17", "paper prints none"],
        ["Truncation helps", "tied", "ours gain 1.76 against 1.17", "paper prints none"],
    ]
    assert [row.select_one(".chip")["class"] for row in rows] == [["chip", w] for w in ("held", "failed", "held", "tied")]
    assert [row.q.text for row in rows] == CLAIMS["quote"][:4] and not first.select("summary q")
    assert [text(p) for p in rows[0].find_all("p")] == [
        f"The paper says: {EVIL} (Sec. 3.2).",
        "Ours, in percent: 2 of 4 comparisons, the closest: S2 over S1: 17.54 at δ=10 against 17.55 at δ=0. "
        "The paper's, on VOC 2012: 4 of 4 comparisons, the closest: S4: 21.57 against 14.03. "
        "The paper's own numbers do not support the claim.",
        "Margin: -0.01 points, 95% interval -0.11 to 0.02. Above zero in 1 of 2 trainings.",
    ]
    (folded,) = (d for d in first.select("details.more") if "not measured" in d.summary.text)
    assert text(folded.summary) == "1 more claim is not measured on this data set"
    assert [li.text for li in folded.find_all("li")] == ["Nobody tried"] and "Nobody tried" not in str(rows)
    assert not first.select("details[open]")
    assert text(second.h2.find_next("p")) == "No claim is measured here yet."


def test_a_table_stands_beside_the_papers(site):
    first, _ = parsed(site / "index.html").find_all("section")
    (table,) = first.select("table.beside")  # of the tables 1 and 2 a line
    assert (
        text(table.caption) == "Table 3: Seven methods. The paper on PASCAL VOC 2012, ours on demo (generated) (class means)."
    )
    top, below = (tr.find_all("th") for tr in table.thead.find_all("tr"))
    assert [(th.text, th["colspan"]) for th in top] == [(metric, "2") for metric in paper.CLASS_MEANS]
    assert [th.text for th in below] == ["paper", "ours"] * 4
    rows = {tr.th.text: [td.text for td in tr.find_all("td")] for tr in table.tbody.find_all("tr")}
    assert list(rows) == list(paper.SEVEN)
    assert rows["FullGrad"] == ["28.20", "30.00", "48.72", "30.00", "42.52", "30.00", "42.84", "30.00"]
    marks = [tr.find_all("td")[1].get("class", []) for tr in table.tbody.find_all("tr")]  # of 10, 20, 30, 40, 70, 60, 50
    assert marks == [[], [], [], [], ["best"], ["second"], []]
    assert first.find(string="Not measured here: Table 1, Table 2, Table 4.".__eq__)


def test_figures_and_provenance(site):
    first, _ = parsed(site / "index.html").find_all("section")
    assert [c.text for c in first.find_all("figcaption")] == [front.FIGURES["fig2"], "<i> 100% #1?"]
    table = first.find_all("table")[-1]
    names = [th.text for th in table.thead.find_all("th")]
    (row,) = ([text(td) for td in tr.find_all("td")] for tr in table.tbody.find_all("tr"))
    assert dict(zip(names, row, strict=True)) == {
        "files": "table3.csv table3.json", "commit": "0123456789 with changes", "device": EVIL, "seed": "7",
        "images scored": "40",
    }  # fmt: skip
    assert [td["data-label"] for td in table.tbody.find_all("td")] == names  # on a phone a row is a list


def test_a_column_without_news_is_not_shown():
    table = pd.DataFrame({"data": ["x", "x"], "value": [1.23456, np.nan], "none": [None, None], "ci_low": [1, 2]})
    assert front.listed(table) == {
        "columns": ["value", "95% from"], "rows": [["1.235", "1"], ["", "2"]], "constant": {"data": "x"},
    }  # fmt: skip


def test_links_resolve_and_nothing_comes_from_elsewhere(site):
    pages = {page: parsed(page) for page in site.glob("*.html")}
    assert {page.name for page in pages} == {"index.html", "explore.html", "04_comparison.demo.html"}
    for page, tree in pages.items():
        for tag, name in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")):
            for element in tree.find_all(tag):
                url = urlsplit(element[name])
                assert url.scheme in ("", "data") or (tag == "a" and url.scheme == "https"), element
                if not url.scheme and url.fragment != "harmful-link":  # what a javascript: link became
                    target = site / unquote(url.path) if url.path else page
                    assert target.is_file(), element
                    assert not url.fragment or pages[target].find(id=unquote(url.fragment)), element
    for path in [*site.glob("*.css"), *site.glob("*.js"), *site.glob("*.html")]:
        assert not re.search(r"@import|url\(\s*['\"]?http|fetch\(|XMLHttp|cdn", re.sub('base64,[^"]*', "", path.read_text())), (
            path
        )


def test_what_is_shown_is_escaped(site):
    for page in site.glob("*.html"):
        scripts = ["data.js", "explore.js"] if page.name in ("index.html", "explore.html") else []
        tree = parsed(page)
        assert [s.get("src") for s in tree.find_all("script")] == scripts
        assert not tree.find_all(href=re.compile("^javascript")) and not tree.find_all("i")
        policy = tree.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
        assert policy.endswith("script-src 'self' file:" if scripts else "script-src 'none'")
    assert "taken" in parsed(site / "04_comparison.demo.html").find("h1").text


def test_notebooks_are_rendered_as_they_are(site):
    page = parsed(site / "04_comparison.demo.html")
    assert [m.get("display") for m in page.find_all("math")] == ["inline", "block"] and page.find("math").text == "δ"
    assert page.find("img")["alt"].startswith("4. <script>") and page.find("style") and "executed" in page.find("pre").text
    assert "console.error" not in "".join(pre.text for pre in page.find_all("pre")[2:])  # the JavaScript output is gone


def test_nothing_to_report(output, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to report in .*paper: run `ltcam reproduce --profile paper` first"):
        report.report("paper", tmp_path / "site")
    assert not list(tmp_path.iterdir())


def test_a_failed_build_keeps_the_old_site(site, monkeypatch):
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(explorer, "pictures", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report.report("demo", site)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    (site / "stale.html").touch()
    report.report("demo", site)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before  # and equal again
    assert not [path for path in site.parent.iterdir() if "partial" in path.name]


def test_a_folder_of_something_else_is_left_alone(site, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="mine exists and is not a site of ltcam: expected a new or empty folder"):
        report.report("demo", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_without_a_model_a_sentence_says_so(site):
    assert "No heatmaps of a <b>&#%: the model was not trained here" in parsed(site / "explore.html").text
    (files.results("demo", "demo") / "checkpoint.pt").unlink()
    report.report("demo", site)
    page, start = parsed(site / "explore.html"), parsed(site / "index.html")
    assert page.text.count("No heatmaps of") == 2
    for tree in (page, start):
        policy = tree.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
        assert not tree.find("canvas") and not tree.find("script") and policy.endswith("script-src 'none'")
    assert start.select(".lead .chip") and start.select(".tabs section")


@pytest.mark.parametrize(("method", "refine"), [("layercam", None), ("refined", ltcam.Refine())])
def test_the_pictures_are_what_ltcam_computes(tmp_path, method, refine):
    checkpoint(tmp_path / "checkpoint.pt")
    trained, data = checkpoints.load_checkpoint(tmp_path / "checkpoint.pt"), datasets.load("demo", "test")
    made = explorer.pictures(trained, data, 2)
    assert [set(view) for p in made for view in p["views"].values()] == [set(explorer.LAYERS)] * 6
    index, c = plotting.examples(data, 2)[1]
    sample = data[index]
    traced = ltcam.trace(trained.model, datasets.preprocess(sample.image, trained.size)[None], [c])
    heatmap = ltcam.explain(traced, "layercam", "S3-S5", 40.0, size=(160, 160), refine=refine)[0]
    predicted, truth = otsu_masks(heatmap[None])[0].numpy(), sample.mask.numpy() == c + 1
    view, frame = made[1]["views"][method]["S3-S5"], explorer.DELTAS.index(40.0)
    assert view["iou"][frame] == pytest.approx(100 * (predicted & truth).sum() / (predicted | truth).sum(), abs=0.006)
    sprite = decode(view["sprite"])
    assert made[1]["size"] == [112, 112] and sprite.shape == (11 * 112, 112)
    pixels = sprite[frame * 112 : (frame + 1) * 112]
    small = np.asarray(Image.fromarray(predicted).resize((112, 112), Image.Resampling.NEAREST))
    assert (pixels >= 128).mean() == pytest.approx(small.mean(), abs=0.02) and ((pixels >= 128) == small).mean() > 0.97
    values = np.asarray(Image.fromarray(heatmap.numpy()).resize((112, 112), Image.Resampling.BILINEAR))
    assert np.abs((pixels & 127) / 127 - values / values.max()).max() < 0.02 and (pixels & 127).max() == 127
    assert (decode(made[1]["truth"]) > 0).mean() == pytest.approx(truth.mean(), abs=0.005)


def decode(url):
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_the_browser(site, chromium, width, scheme):
    def command(name, **parameters):
        chromium.execute_cdp_cmd(f"Emulation.{name}", parameters)

    command("setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    command("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for page in sorted(site.glob("*.html")):
        chromium.get(page.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width, page
        color = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", color))) < 60) == (scheme == "dark")
        assert chromium.title != "taken"
        broken = "return [...document.images].filter(i => (i.loading = 'eager') && i.complete && !i.naturalWidth).length"
        assert chromium.execute_script(broken) == 0
    sliders_work(chromium, site)
    tabs_work(chromium, width)
    assert chromium.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and {urlsplit(url).scheme for url in asked} <= {"file", "data"}


def sliders_work(chromium, site):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    chromium.get((site / "index.html").as_uri())
    pictures = json.loads(re.match(r"const PICTURES = (.*);\n", (site / "data.js").read_text())[1])
    views = pictures[0]["views"]["gradcam"]

    def state():
        return chromium.execute_script("return [iou.textContent, picture.toDataURL()]")

    def shown(iou):
        WebDriverWait(chromium, 30).until(lambda _: state()[0] == f"IoU {float(np.format_float_positional(iou)):.1f}%")
        return state()[1]

    seen = [shown(views["S5"]["iou"][0])]
    for key, layers, delta in ((("delta", 4), "S5", 4), (("stages", 2), "S3-S5", 4)):
        slider = chromium.find_element("id", key[0])
        slider.send_keys(Keys.ARROW_RIGHT * key[1])
        seen.append(shown(views[layers]["iou"][delta]))
    assert [chromium.find_element("id", f"{name}-value").text for name in ("delta", "stages")] == ["δ = 30", "S3-S5"]
    chromium.find_element("id", "alone").click()
    seen.append(shown(views["S3"]["iou"][4]))
    chromium.find_element("id", "heat").click()
    WebDriverWait(chromium, 30).until(lambda _: state()[1] != seen[-1])
    assert len({*seen}) == len(seen)


def tabs_work(chromium, width):
    """On the front page: the arrow keys choose a data set; with everything unfolded nothing is wider than its box."""
    from selenium.webdriver.common.keys import Keys

    shown = "return [...document.querySelectorAll('.tabs > section')].map(s => s.checkVisibility())"
    wide = (
        "return [...document.querySelectorAll('main *')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).length"
    )
    assert chromium.execute_script(shown) == [True, False]
    top = "return [...document.querySelectorAll('.counts, canvas')].map(e => e.getBoundingClientRect().top)"
    assert max(chromium.execute_script(top)) < 800
    for _ in range(2):
        chromium.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        assert chromium.execute_script(wide) == 0
        chromium.find_element("css selector", ".tabs > input:checked").send_keys(Keys.ARROW_RIGHT)
    assert chromium.execute_script(shown) == [True, False]
    chromium.find_element("css selector", ".tabs > input:checked").send_keys(Keys.ARROW_RIGHT)
    assert chromium.execute_script(shown) == [False, True]
