"""The generated sections are what the committed files give, and what is written by hand beside them is true of these files."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torchvision.models import VGG16_Weights, resnet18, vgg16
from typer.main import get_command

import ltcam
from docs import sections
from ltcam.__main__ import app
from ltcam.data import sets
from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.files import ROOT
from ltcam.paper import tables

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def text(page):
    return (ROOT / page).read_text()


def test_the_pages_are_what_the_committed_files_give(capsys):
    assert sections.main(check=True) == 0, capsys.readouterr().out


def test_a_stale_section_is_named_and_written_anew(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "a.md"
    page.write_text("by hand, δ\n<!-- begin x -->\nold\n<!-- end x -->\nafter")
    monkeypatch.setattr(sections, "ROOT", tmp_path)
    monkeypatch.setattr(sections, "pages", lambda: {"docs/a.md": {"x": "[t](results/a/t.csv)"}})
    assert sections.main(check=True) == 1 and capsys.readouterr().out == "docs/a.md: stale, run make docs\n"
    assert "old" in page.read_text()
    assert sections.main(check=False) == 0 and capsys.readouterr().out == "docs/a.md: written anew\n"
    assert page.read_text() == "by hand, δ\n<!-- begin x -->\n\n[t](../results/a/t.csv)\n\n<!-- end x -->\nafter"
    assert sections.main(check=True) == 0 and [path.name for path in page.parent.iterdir()] == ["a.md"]


@pytest.mark.parametrize(
    "marks",
    ["<!-- end x -->", "<!-- begin x -->", "<!-- begin x --><!-- end x --><!-- begin x --><!-- end x -->", "",
     "<!-- end x --><!-- begin x -->", "<!-- begin x --><!-- end x --><!-- begin y --><!-- end y -->"],
)  # fmt: skip
def test_markers_in_disorder_are_refused(marks):
    expected = r"a.md has the marks .*: expected <!-- begin NAME --> .* for each of x and nothing else"
    with pytest.raises(InputError, match=expected):
        sections.renewed("a.md", marks, {"x": "text"})


def test_a_table_stands_beside_the_papers():
    names = [*tables.CLASS_MEANS.values(), *tables.POOLED.values()]
    ours = pd.DataFrame({"row": [*tables.SEVEN], **{name: range(7, 0, -1) for name in names}})  # the first row is best
    ours.loc[2, "mIoU"] = 6.0  # two second best
    ours["IoU"] += 50
    caption, _, header, rule, *lines = sections.compared(3, "Photographs", ours).splitlines()
    assert caption.startswith("**Table 3.** ") and caption.endswith(
        "the paper on PASCAL VOC 2012, ours on Photographs (class means; one training)."
    )
    assert header.startswith("| | mIoU: paper | mIoU: ours | Precision: paper |") and rule == "|:---|" + "---:|" * 8
    assert lines[0] == "| Grad-CAM++ | 20.32 | **7.00** | 47.75 | **7.00** | 27.43 | **7.00** | 33.06 | **7.00** |"
    assert lines[2] == "| FullGrad | 28.20 | <ins>6.00</ins> | <ins>48.72</ins> | 5.00 | 42.52 | 5.00 | 42.84 | 5.00 |"
    assert lines[4].startswith("| Layer-CAM(l=5, δ=0) | **30.83** | 3.00 | **52.07** |")
    pooled = sections.compared(4, "Photographs", ours.assign(**{f"{name}_std": 0.25 for name in names})).splitlines()
    assert pooled[4].startswith("| Grad-CAM++ | 25.87 | **57.00** ± 0.25 |") and "(pooled pixels; mean and" in pooled[0]


def test_a_claim_says_what_decides_it(monkeypatch):
    about = {"section": "3.4", "claim": "A | B", "paper": "holds", "numbers": "2 of 2"}
    table = pd.DataFrame([
        about | {"verdict": "fails", "holm": "fails", "margin": -0.5, "ci_low": -1, "ci_high": -0.254, "trainings": "0 of 3"},
        about | {"verdict": "holds", "holm": "open", "margin": 1, "ci_low": 0.5, "ci_high": 2, "trainings": "one training"},
        about | {"verdict": "not measured", "holm": "not measured"},
    ])  # fmt: skip
    monkeypatch.setattr(sections, "kept", lambda name: {"Photographs": table.copy()})
    header, rule, *rows = sections.claims().splitlines()
    assert header == "| Sec. | claim | the paper's own numbers | Photographs |" and rule == "|:---|:---|:---|:---|"
    decided = "**fails**, margin -0.50 (-1.00 to -0.25), above zero in 0 of 3 trainings: 2 of 2"
    alone = "**holds (with Holm open)**, margin +1.00 (+0.50 to +2.00), one training: 2 of 2"
    assert rows == [rf"| 3.4 | A \| B | holds | {said} |" for said in (decided, alone, "not measured")]
    assert sections.claims(numbers=False).splitlines()[3] == r"| 3.4 | A \| B | holds | holds (with Holm open) |"
    assert sections.verdicts().splitlines()[2] == "| Photographs | 1 | 0 | 0 | 0 | 0 | 1 | 1 |"


def test_steps_end_with_the_best_row_of_each_view():
    numbers = ["value", "ci_low", "ci_high", "change", "change_low", "change_high", "verdict"]
    rows = [
        ["otsu", "step", "Grad-CAM at S5", "one view", 30, 29, 31, None, None, None, None],
        ["otsu", "step", "stages: S3-S5", "one view", 35, 34, 36, 5, 4, 6, "holds"],
        ["otsu", "row", "Grad-CAM", "one view", 30, 29, 31, 5, 4, 6, "holds"],
        ["otsu", "row", "Layer-CAM", "one view", 33, 32, 34, 2, 1, 3, "holds"],
        ["argmax", "step", "Grad-CAM at S5", "one view", 40, 39, 41, None, None, None, None],
    ]
    found = sections.steps(pd.DataFrame(rows, columns=["cut", "kind", "name", "views", *numbers]))
    assert found.to_numpy().tolist() == [
        ["otsu", "Grad-CAM at S5", "30.00 (29.00 to 31.00)", "", ""],
        ["otsu", "stages: S3-S5", "35.00 (34.00 to 36.00)", "+5.00 (+4.00 to +6.00)", "holds"],
        ["otsu", "best, against Layer-CAM, one view", "33.00 (32.00 to 34.00)", "+2.00 (+1.00 to +3.00)", "holds"],
        ["argmax", "Grad-CAM at S5", "40.00 (39.00 to 41.00)", "", ""],
    ]


def test_settings_are_the_profiles():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in sections.settings().splitlines()]
    cells = {name: dict(zip(lines[0][1:], values, strict=True)) for name, *values in lines[2:]}
    assert cells["test"]["`paper.voc2012`"] == "val" and cells["frozen"]["`demo.demo`"] == "5"
    assert [cells["measured"][name] for name in ("`paper.voc2012`", "`paper.ksdd2`", "`real.ksdd`")] == ["3", "0", "3"]
    assert cells["trainings planned"] == {
        "`demo.demo`": "1", "`paper.ksdd2`": "3", "`paper.voc2012`": "3", "`real.ksdd`": "9", "`real.magnetic_tile`": "3",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = {(ROOT / page).parent / unquote(link) for link in re.findall(r"\]\((?!http)([^)#]+)\)", text(page))}
    assert not [link for link in links if not link.is_file()]


def test_the_front_page_is_short():
    assert len(text("README.md").splitlines()) <= 150 and len(text("README.md").split()) <= 1600


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/tables.md", "docs/replication.md", "docs/article.md"])
def test_every_number_written_by_hand_is_in_a_table_that_its_paragraph_links(page):
    """Of each paragraph and point: what it says with decimals, as rounded there."""
    by_hand = re.sub(r"(?s)<!-- begin (\S+) -->.*?<!-- end \1 -->|```.*?```", "", text(page))
    points = [point for point in re.split(r"\n\n|\n- ", by_hand) if point[:1] not in ("|", "#")]
    said = 0
    for point in points:
        links = re.findall(r"\]\((?:\.\./)?((?:results|data|benchmarks)/[^)]+\.csv)\)", point)
        tables = [pd.read_csv(ROOT / unquote(link), dtype=str).to_csv() for link in links]
        known = [abs(float(n)) for table in tables for n in re.findall(r"-?\d+\.?\d*", table)]
        for number in re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)|(?:Python|or|arXiv) \d\S*|\d\.\d GB", "", point)):
            places, said = len(number.split(".")[1]), said + 1
            assert any(f"{value:.{places}f}" == number for value in known), f"{number} is in none of {links}: {point}"
    assert said


VOC, KSDD = "results/paper/voc2012", "results/real/ksdd"
MARGIN, VALUE, CHANGE = (
    f"{name} {low}_low {low}_high".split() for name, low in (("margin", "ci"), ("value", "ci"), ("change", "change"))
)
INSTEAD = "factor == 'trick' and level == 'LTGrad-CAM instead of Layer-CAM{}'"
TRUNCATED = "row == 'truncation at S5' and by == 'classes' and group == '{}'"
REPEATED = {  # what a sentence says: the words that it has, in any order, and the cell and interval that its number is
    ("it is open:", "points"): (f"{VOC}/claims.csv", "claim == 'Objects: LTGrad-CAM (l=5) beats Grad-CAM'", MARGIN),
    ("ltgrad-cam", "beats grad-cam", "points", "paper's"): (
        f"{VOC}/softmax/claims.csv", "claim == 'Objects: LTGrad-CAM (l=5) beats Grad-CAM'", MARGIN,
    ),
    ("at s5", "truncation", "gains"): (f"{VOC}/claims.csv", "claim.str.startswith('Truncation alone')", MARGIN),
    ("layerization alone costs",): (f"{VOC}/claims.csv", "claim == 'Fusing all stages costs against S5 alone'", MARGIN),
    ("changes ltgrad-cam by",): (f"{VOC}/claims.csv", "claim == 'Objects: δ=20 beats δ=0'", MARGIN),
    ("of the largest gradient", "points"): (f"{VOC}/eq9.csv", "reading == 'fraction of the maximum'", CHANGE),
    ("gains", "images of one class"): (f"{VOC}/breakdown.csv", TRUNCATED.format(1), VALUE),
    ("costs", "images of two"): (f"{VOC}/breakdown.csv", TRUNCATED.format(2), VALUE),
    ("training images choose",): (f"{VOC}/delta_choice.csv", "method == 'gradcam'", ["test"]),
    ("s3 to s5 alone", "same miou"): (f"{VOC}/table1.csv", "row == 'S3+S4+S5'", ["mIoU"]),
    ("at the relu before", "ltgrad-cam is"): (f"{VOC}/ablations.csv", INSTEAD.format(", outputs = relu"), CHANGE),
    ("kolektorsdd", "points", "below layer-cam"): (f"{KSDD}/ablations.csv", INSTEAD.format(""), CHANGE),
}  # fmt: skip


def sentences(page):
    """Of what is written by hand: in lower case, without marks and links."""
    by_hand = re.sub(r"(?s)<!-- begin (\S+) -->.*?<!-- end \1 -->|```.*?```", "", text(page))
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", by_hand).replace("δ = ", "δ=")
    parts = re.split(r"(?<=[.?])\s+(?=[A-Z])|\n\n|\n- |\n\d\. ", re.sub(r"[*`]", "", plain))
    return [" ".join(part.lower().split()) for part in parts]


@pytest.mark.parametrize("words", REPEATED, ids=lambda words: " ".join(words))
def test_what_is_said_on_several_pages_is_the_same_number_of_one_table(words):
    """And so is each interval behind it."""
    path, row, columns = REPEATED[words]
    value, *span = pd.read_csv(ROOT / path).query(row)[columns].iloc[0]
    ends = [tuple(sorted(sign * round(end, 2) for end in span)) for sign in (1, -1)]
    found = {(page, own) for page in PAGES for own in sentences(page) if all(word in own for word in words)}
    assert len({page for page, _ in found}) >= 2, found
    for page, own in found:
        number = re.search(rf"(?<![\d.]){abs(value):.2f}(?!\d)", own)
        assert number, (page, own, value)
        if behind := re.match(r"\D{0,70}?\(?(-?\d+\.\d+) to (-?\d+\.\d+)", own[number.end() :]):
            assert tuple(map(float, behind.groups())) in ends, (page, own, span)


@pytest.mark.parametrize(("said", "expected"), [
    (r"(\d+) of the (\d+) pairs of (?:rows of )?table 3|in table 3, (\d+) of the (\d+) pairs", ("13", "21")),
    (r"(?:makes|list) (\d+) claims", ("22",)),
    (r"([\d,]+) training and ([\d,]+) validation images", ("1,464", "1,449")),
    (r"(\d\.\d) gb(?: of disk|, most of it)", ("6.3",)),
    (r"kolektorsdd (?:is|has) (.*) training of each fold", ("one",)),
])  # fmt: skip
def test_counts_that_several_pages_name_are_the_same(said, expected):
    found = {
        page: [tuple(filter(None, m.groups())) for own in sentences(page) for m in re.finditer(said, own)] for page in PAGES
    }
    assert sum(map(bool, found.values())) >= 2 and {own for each in found.values() for own in each} == {expected}, found


def test_counts_of_claims_and_pairs_are_those_of_the_tables():
    orders = pd.read_csv(ROOT / VOC / "orders.csv").set_index("table")
    assert tuple(orders.loc[3, ["agree", "pairs"]]) == (13, 21) and len(pd.read_csv(ROOT / VOC / "claims.csv")) == 22
    assert (sets.VOC2012.official["train"], sets.VOC2012.official["val"]) == (1464, 1449)


@pytest.mark.parametrize("page", PAGES)
def test_costs_of_views_and_refinement_stand_in_one_place(page):
    """Only in docs/speed.md, from benchmarks/results; times only in docs/running.md."""
    said = " ".join(sentences(page))
    assert page == "docs/speed.md" or not re.search(
        r"refine`?[^.]*costs? \d[\d.]* ?%|took [\d.]+ times as long|takes? [\d.]+ times", said
    )
    assert page == "docs/running.md" or not re.search(r"make (?:test|reproduce)[^.]*\d+ min", said)


def test_speed_says_what_was_measured():
    table = pd.read_csv(ROOT / "benchmarks/results/scale_cpu.csv").set_index("of")["median"]
    said = " ".join(sentences("docs/speed.md"))
    assert f"refine costs {table['refine, % of the floor']:.1f}% of the floor" in said
    assert f"take {table['views of 6.5 times the pixels, over one']:.2f} times as long" in said


DIFFS = re.findall(r"```diff\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL)


def test_contributing_draws_the_house_and_names_its_words():
    page, diffs = text("CONTRIBUTING.md"), DIFFS
    drawing = page.split("```")[1].strip()
    assert len(drawing.splitlines()) <= 15 and len(diffs) == 5
    for diff in diffs:
        assert len(diff.splitlines()) <= 15
        assert len({line for line in diff.splitlines() if line.startswith(" # ltcam/") and line.endswith(".py")}) <= 2
    assert len(re.findall(r"^- \*\*(\w+)\*\*: ", page, re.MULTILINE)) == 8


def patched(lines, diff):
    """The lines of a file with those of a diff: at its context, or at the end if it has none."""
    place = len(lines)
    for number, (kind, line) in enumerate((line[0], line[1:]) for line in diff):
        if kind == "+":
            if number == 0 and (after := [lines.index(own[1:]) for own in diff if own[0] in " -"]):
                place = after[0]
            lines = [*lines[:place], line, *lines[place:]]
        else:
            assert lines.count(line) == 1, f"{line!r} is not in the file once"
            place = lines.index(line)
            lines = lines[:place] + [line] * (kind == " ") + lines[place + 1 :]
        place += kind in "+ "
    return lines


CHECKS = """
import torch
from ltcam import METHODS, Config
from ltcam.data import load, sets
from ltcam.engine.config import READINGS
from ltcam.paper import RESULTS, SEVEN, ablations, claims
from ltcam.show.figures import FIGURES

Config.parse("rootcam:S1-S5:20")
assert METHODS["rootcam"](torch.tensor([[[[4.0]], [[-4.0]]]]), torch.tensor([[[[9.0]], [[1.0]]]])).item() == 6
assert READINGS["above the mean"](None, torch.tensor([[[[1.0, 3.0]]]]), 20).tolist() == [[[[False, True]]]]
assert ablations.EQ9["above the mean"] == Config.parse("gradcam:S1-S5:20,by=above the mean")
assert RESULTS["objects"].caption == FIGURES["objects"].caption == "The IoU of every object"
assert len(load("leaves", "train")) == 3 and sets.KSDD2.name in sets.SETS
assert claims.CLAIMS[0].claim == "Layer-CAM beats Grad-CAM"
((margin, _, numbers),) = claims.CLAIMS[0].over({"test": {SEVEN["Layer-CAM(l=5, δ=0)"]: 5.0, SEVEN["Grad-CAM"]: 3.0}})
assert margin == 2 and numbers == (5, 3)
"""


def test_the_recipes_of_contributing_do_what_they_say(tmp_path):
    """All five at once, in a copy of this checkout."""
    shutil.copytree(ROOT / "ltcam", tmp_path / "ltcam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path, diff in re.findall(r"^ # (ltcam/\S+)\n(.*?)(?=^ # ltcam|\Z)", "\n".join(DIFFS), re.DOTALL | re.MULTILINE):
        file, lines = tmp_path / path, [line for line in diff.splitlines() if line]
        file.write_text("\n".join(patched(file.read_text().splitlines(), lines)) + "\n")
    for part in ("train", "test"):
        (tmp_path / "leaves" / part).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "leaves" / part / f"{n}.jpg").touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LTCAM_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, "data/README.md"])
def test_modules_files_targets_and_options_that_a_page_names_exist(page):
    """But for what was removed."""
    said = text(page).split("## What was removed")[0]
    assert all(pkgutil.resolve_name(name) for name in re.findall(r"`(ltcam(?:\.\w+)+)", said))
    paths = {path if (ROOT / path).exists() else f"ltcam/{path}" for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", said)}
    assert not [path for path in paths if not path.startswith("ltcam/benchmarks") and not (ROOT / path).exists()]
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", said, re.MULTILINE)) <= targets
    for words, options in re.findall(
        r"(?:^|`|/bin/|-m )ltcam ([a-z-]+(?: (?:list|get|check|show))?)([^`\n]*)", said, re.MULTILINE
    ):
        command = get_command(app)
        for word in words.split():
            assert word in command.commands, words
            command = command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--[\w-]+", options)) <= known, (words, options)


def test_every_equation_names_what_exists():
    table = text("docs/api.md").split("## Equations and functions\n")[1].split("\n#")[0]
    names = re.findall(r"`(ltcam\.[\w.]+)", table)
    assert {"ltcam.trace", "ltcam.METHODS", "ltcam.truncate", "ltcam.layerize", "ltcam.explain"} <= set(names)
    assert all(pkgutil.resolve_name(name) for name in names)
    assert set(re.findall(r'METHODS\["(\w+)"\]', table)) <= set(ltcam.METHODS)
    numbers = [set(map(int, re.findall(r"\d+", row))) for row in re.findall(r"\| Eqs?\. ([\d, ]+) \|", table)]
    assert set.union(*numbers) == set(range(1, 12))  # the paper's equations


def test_every_setting_names_a_parameter_that_exists():
    table = text("docs/settings.md").split("# Settings the paper omits, and ours\n")[1].split("\n#")[0]
    known = {field.name for kind in (ltcam.Config, Recipe, Protocol) for field in fields(kind)}
    known |= {*signature(ltcam.trace).parameters, *signature(ltcam.stages).parameters}
    used = {name for code in re.findall(r"`([^`]*=[^`]*)`", table) for name in re.findall(r"(\w+)=", code)}
    assert {"per", "compare", "head", "outputs", "size"} <= used <= known


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """With a loader that gives random weights, since tests reach no host; and the lines for users of other libraries."""
    loaded, (ten_lines, others) = [], re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **how: loaded.append(self) or vgg16().state_dict())
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    torch.manual_seed(0)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save("photograph.jpg")
    names: dict[str, object] = {}
    exec(ten_lines, names)
    assert loaded == [VGG16_Weights.DEFAULT] and len(ten_lines.strip().splitlines()) <= 11
    assert names["heatmap"].shape == (224, 224) and names["heatmap"].max() > 0
    names |= {"model": resnet18(num_classes=3).eval(), "images": torch.randn(2, 3, 224, 224), "targets": [0, 2], "target": 1}
    first, second = others.split("# captum")
    exec(first, names)
    assert names["heatmaps"].shape == (2, 224, 224) and names["heatmaps"].max() == 1
    exec("# captum" + second, names)
    assert names["heatmaps"].shape == (2, 7, 7)
    plain = ltcam.explain(
        names["ltcam"].trace(names["model"], names["images"], 1, [names["model"].layer4]), "gradcam", size=(7, 7)
    )
    theirs = LayerGradCam(names["model"], names["model"].layer4).attribute(names["images"], 1, relu_attributions=True)
    torch.testing.assert_close(plain[:, None], theirs.detach(), rtol=1e-4, atol=1e-6)
