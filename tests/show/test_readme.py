import pkgutil
import re
from dataclasses import fields
from inspect import signature
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
from torchvision.models import resnet18
from typer.testing import CliRunner

import ltcam
from ltcam import files
from ltcam.__main__ import app
from ltcam.engine.cam import Options
from ltcam.engine.stages import stages
from ltcam.experiment import training
from ltcam.experiment.recipe import Recipe
from ltcam.paper import findings, judging
from ltcam.paper import tables as paper
from ltcam.show import readme
from tests.paper.test_sentences import ladder

TEXTS = {page: (files.ROOT / page).read_text() for page in readme.PAGES}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Pages with empty sections, in a checkout without results; docs/results.md is returned."""
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for page, names in readme.PAGES.items():
        marks = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\nafter {name}\n" for name in names)
        (tmp_path / page).write_text("by hand, δ\n" + marks)
    return tmp_path / "docs" / "results.md"


def results(page, data, name, table):
    folder = page.parents[1] / "results" / readme.HOMES[data] / data
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)


def section(page, title):
    return TEXTS[page].split(f"# {title}\n")[1].split("\n#")[0]


def test_the_readmes_python_runs(output):
    """On a tiny model where `make reproduce` leaves the demo's."""
    recipe = Recipe(data="demo", weights=None, width=16, hidden=16, frozen=5, epochs=1)
    training.train(recipe, files.results("demo", "demo"))
    ten_lines, own_model = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    names: dict[str, object] = {}
    exec(ten_lines, names)
    assert names["heatmaps"].shape == names["plain"].shape == (2, 160, 160)
    names |= {"model": resnet18(num_classes=3), "images": torch.randn(2, 3, 64, 64), "targets": [0, 2]}
    exec(own_model, names)
    assert names["heatmaps"].shape == names["sharp"].shape == (2, 64, 64) and names["heatmaps"].max() == 1


def test_it_is_what_the_committed_files_give():
    assert readme.stale() == [], "run ltcam readme"


def test_every_file_of_the_map_is_committed():
    listed = [file for item in readme.SOURCES for file in readme.files(item)]
    notebooks = [f"notebooks/{notebook}.ipynb" for notebook, _, _ in readme.SOURCES.values()]
    missing = sorted({file for file in [*listed, *notebooks] if not (files.ROOT / file).is_file()})
    assert not missing, "\n".join(missing)


def test_the_map_names_every_table_and_figure_of_the_paper():
    assert list(readme.SOURCES) == [f"Table {i}" for i in range(1, 5)] + [f"Fig. {i}" for i in range(1, 6)] + ["Claims"]
    assert list(readme.SHOWN) == list(paper.TABLES)
    rows = readme.outputs().splitlines()
    assert rows[8] == (
        "| Fig. 3 | [04_comparison](notebooks/04_comparison.ipynb) | `ltcam reproduce --profile demo --only 04` "
        "| [figures/real/ksdd/fig3.png](figures/real/ksdd/fig3.png)"
        "<br>[figures/real/magnetic_tile/fig3.png](figures/real/magnetic_tile/fig3.png) |"
    )


def test_what_is_not_there_is_not_linked(page):
    assert readme.files("Table 1") == [] and readme.outputs().splitlines()[2].endswith("| not measured yet |")
    results(page, "magnetic_tile", "table1", pd.DataFrame({"row": []}))
    assert readme.files("Table 1") == ["results/real/magnetic_tile/table1.csv"]


@pytest.mark.parametrize("page", [*readme.PAGES, "docs/running.md", "docs/speed.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    text = (files.ROOT / page).read_text()
    links = {(files.ROOT / page).parent / unquote(link) for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)}
    assert not [link for link in links if not link.is_file()]


def test_the_front_page_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 180 and len(TEXTS["README.md"].split()) <= 2000


def test_a_table_stands_beside_the_papers(page):
    columns = ["mIoU", "mPrecision", "mRecall", "mF1", "IoU", "Precision", "Recall", "F1"]
    rows = [*paper.SEVEN]
    ours = pd.DataFrame({"row": rows, **{name: range(7, 0, -1) for name in columns}})  # the first row is best
    ours.loc[2, "mIoU"] = 6.0  # two second best
    ours["IoU"] += 50
    results(page, "voc2012", "table3", ours)
    results(page, "magnetic_tile", "table4", ours)
    first, second, third, fourth, fifth = re.split(r"\n\n(?=\*\*Table)", readme.tables())
    assert first == "**Table 1.** Grad-CAM by stage on PASCAL VOC 2012: not measured yet." and second.startswith("**Table 2.**")
    assert third.startswith("**Table 3.** Seven methods; the paper on PASCAL VOC 2012, ours on PASCAL VOC 2012 (class means;")
    assert fourth == "**Table 4.** Seven methods on KolektorSDD: not measured yet."
    lines = third.splitlines()
    assert lines[2:4] == [
        "|  | mIoU: paper | ours | Precision: paper | ours | Recall: paper | ours | Micro-F1: paper | ours |",
        "| --- |" + " ---: |" * 8,
    ]
    assert lines[4] == "| Grad-CAM++ | 20.32 | **7.00** | 47.75 | **7.00** | 27.43 | **7.00** | 33.06 | **7.00** |"
    assert lines[5] == (
        "| Grad-CAM | 25.31 | <ins>6.00</ins> | 40.93 | <ins>6.00</ins> | 42.02 | <ins>6.00</ins> | 39.50 | <ins>6.00</ins> |"
    )
    assert lines[6] == "| FullGrad | 28.20 | <ins>6.00</ins> | <ins>48.72</ins> | 5.00 | 42.52 | 5.00 | 42.84 | 5.00 |"
    assert lines[8].startswith("| Layer-CAM(l=5, δ=0) | **30.83** | 3.00 | **52.07** |")
    assert fifth.splitlines()[4].startswith("| Grad-CAM++ | 25.87 | **57.00** |")  # pooled


def test_a_table_of_several_trainings_has_their_spread(page):
    scores = ["mIoU", "mPrecision", "mRecall", "mF1", "IoU", "Precision", "Recall", "F1"]
    ours = pd.DataFrame({"row": [*paper.SEVEN], **{name: range(7, 0, -1) for name in scores}})
    results(page, "voc2012", "table3", ours.assign(**{f"{name}_std": 0.25 for name in scores}))
    third = re.split(r"\n\n(?=\*\*Table)", readme.tables())[2]
    assert "(class means; mean and standard deviation of the trainings)" in third
    assert third.splitlines()[4].startswith("| Grad-CAM++ | 20.32 | **7.00** ± 0.25 | 47.75 | **7.00** ± 0.25 |")


def test_claims(page):
    assert readme.claims() == readme.claims(numbers=False) == readme.verdicts() == "not measured yet"
    judged = pd.DataFrame(
        [["Fusing helps", "3.2", "a | b", "holds", "2 of 2 | least 1.00", "does not hold"],
         ["Objects: more", "3.4", "c", "not measured", "not measured (paper 3)", "no numbers"]],
        columns=["claim", "section", "quote", "verdict", "numbers", "paper"],
    )  # fmt: skip
    results(page, "voc2012", "claims", judged)
    assert readme.claims().splitlines() == [
        "| Sec. | claim | the paper's own numbers | PASCAL VOC 2012 |",
        "| --- | --- | --- | --- |",
        "| 3.2 | Fusing helps | does not hold | **holds**: 2 of 2 \\| least 1.00 |",
        "| 3.4 | Objects: more | no numbers | not measured |",
    ]
    assert readme.verdicts().splitlines()[2:] == ["| PASCAL VOC 2012 | 1 | 0 | 0 | 1 |"]
    assert readme.claims(numbers=False).splitlines()[2:] == [
        "| 3.2 | Fusing helps | does not hold | holds |",
        "| 3.4 | Objects: more | no numbers | not measured |",
    ]
    sure = {"margin": -0.5, "ci_low": -1, "ci_high": -0.254, "trainings": "0 of 3"}
    results(page, "magnetic_tile", "claims", judged.assign(verdict="does not hold", **sure))
    said = "**does not hold**, margin -0.50 (-1.00 to -0.25), above zero in 0 of 3 trainings: 2 of 2 \\| least 1.00"
    assert readme.claims().splitlines()[2].endswith(f"| **holds**: 2 of 2 \\| least 1.00 | {said} |")


def test_claims_are_read_as_they_are_judged(page):
    judged = judging.judge(judging.read(files.ROOT / "results" / "real" / "magnetic_tile", "magnetic_tile"), "magnetic_tile")
    results(page, "magnetic_tile", "claims", judged)
    lines = readme.claims().splitlines()[2:]
    assert len(lines) == len(judged) > 10 and {line.count(" | ") for line in lines} == {3}
    for row, line in zip(judged.itertuples(), lines, strict=True):
        assert row.claim in line and row.verdict in line


def test_beyond_is_listed_for_each_data_set(page):
    assert readme.beyond() == "not measured yet"
    results(page, "voc2012", "best", ladder(2, 1, 3, "holds"))
    assert readme.beyond().splitlines() == [
        "**PASCAL VOC 2012**",
        "",
        "| protocol | step | IoU (%) | points |  |",
        "| --- | --- | --- | --- | --- |",
        "| otsu | Grad-CAM at S5 | 30.00 (29.00 to 31.00) |  |  |",
        "| otsu | stages: S3-S5 | 35.00 (34.00 to 36.00) | +5.00 (+4.00 to +6.00) | holds |",
        "| otsu | best, against Layer-CAM(l=5, δ=0), one view | 33.00 (0.00 to 50.00) | +2.00 (+1.00 to +3.00) | holds |",
    ]


def test_findings_are_the_summarys(page):
    assert readme.found() == "not measured yet"
    rows = [
        (findings.SUMMARY[1], 1.5, 1, 2, "points", "better", "ablations.csv"),
        (findings.SUMMARY[2], 0.25, 0.1, 0.5, "", "", "x"),
        ("else", 9, 9, 9, "times", "", "x"),
    ]
    results(page, "voc2012", "findings", pd.DataFrame(rows, columns=findings.Finding._fields))
    results(page, "magnetic_tile", "findings", pd.DataFrame(rows[2:], columns=findings.Finding._fields))
    lines = readme.found().splitlines()
    number = "[+1.50 points (+1.00 to +2.00)](results/paper/voc2012/ablations.csv)"
    assert lines[0] == "|  | PASCAL VOC 2012 | Magnetic tile |" and len(lines) == 2 + len(findings.SUMMARY) <= 13
    assert "[+0.25 (+0.10 to +0.50)](" in lines[4]
    assert lines[3] == f"| {findings.SUMMARY[1]} | {number} | not measured |" and "else" not in readme.found()


@pytest.mark.parametrize("path", sorted((files.ROOT / "results").glob("[pr]*/*/findings.csv")), ids=lambda p: p.parent.name)
def test_findings_are_of_the_tables_that_they_name(path):
    """Collected anew from the committed tables they are what is committed."""
    again = findings.collect(findings.read(path.parent))
    committed = pd.read_csv(path)
    pd.testing.assert_frame_equal(committed[[*again]].fillna({"verdict": "", "unit": ""}), again, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/replication.md"])
def test_every_number_written_by_hand_is_in_a_table_that_its_paragraph_links(page):
    """Of each paragraph and point: what it says with decimals, as rounded there."""
    text = re.sub(r"(?s)<!-- begin (\S+) -->.*?<!-- end \1 -->|```.*?```", "", TEXTS[page])
    points = [point for point in re.split(r"\n\n|\n- ", text) if point[:1] not in ("|", "#")]
    said = 0
    for point in points:
        links = re.findall(r"\]\((?:\.\./)?((?:results|data)/[^)]+\.csv)\)", point)
        tables = [pd.read_csv(files.ROOT / unquote(link), dtype=str).to_csv() for link in links]
        known = [abs(float(n)) for table in tables for n in re.findall(r"-?\d+\.?\d*", table)]
        for number in re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)|(?:Python|or|arXiv) \d\S*", "", point)):
            places, said = len(number.split(".")[1]), said + 1
            assert any(f"{value:.{places}f}" == number for value in known), f"{number} is in none of {links}: {point}"
    assert said > 2


def test_settings_are_the_profiles():
    lines = readme.settings().splitlines()
    assert lines[0] == "|  | `demo.demo` | `real.ksdd` | `real.magnetic_tile` | `paper.ksdd2` | `paper.voc2012` |"
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert cells["trained on, held out"][2:] == ["train, test", "train, test", "train, val"]
    assert cells["... of the convolutions"][0] == "none" and cells["... of the convolutions"][4] == "3e-05"
    assert cells["trainings"] == ["1", "9", "3", "3", "3"] and cells["images are"][::4] == ["as they are", "mirrored"]


def test_only_stale_sections_are_written_anew(page):
    everything = [(name, section) for name, sections in readme.PAGES.items() for section in sections]
    assert readme.stale() == everything == readme.write()
    text = page.read_text()
    assert text.startswith("by hand, δ\n<!-- begin tables -->\n\n**Table 1.**")
    assert "\n\nnot measured yet\n\n<!-- end claims -->\nafter claims\n" in text and text.endswith("after map\n")
    assert readme.stale() == readme.write() == []
    page.write_text(text.replace("Table 1", "Table 9"))
    assert readme.write() == [("docs/results.md", "tables"), ("docs/results.md", "map")] and page.read_text() == text
    assert sorted(file.name for file in page.parent.iterdir()) == ["replication.md", "results.md", "settings.md"]


def test_links_of_a_page_in_docs_go_up(page):
    results(page, "voc2012", "table1", pd.read_csv(files.ROOT / "results/paper/voc2012/table1.csv"))
    readme.write()
    assert "](../results/paper/voc2012/table1.csv)" in page.read_text() and "](../notebooks/02_" in page.read_text()


def test_the_command_names_what_is_stale(page):
    assert CliRunner().invoke(app, ["readme"]).exit_code == 0
    assert CliRunner().invoke(app, ["readme", "--check"]).exit_code == 0
    changed = page.read_text().replace("Fig. 1", "Fig. 9")
    page.write_text(changed)
    done = CliRunner().invoke(app, ["readme", "--check"])
    assert (done.exit_code, done.output) == (1, "docs/results.md, section map: stale, run ltcam readme\n")
    assert page.read_text() == changed
    done = CliRunner().invoke(app, ["readme"])
    assert (done.exit_code, done.output) == (0, "docs/results.md, section map: written anew\n")


def test_the_small_tables_have_the_headline_score_of_each_data_set(page):
    assert readme.summary().splitlines()[0] == "| Grad-CAM of | paper, VOC 2012 |"
    scores = {name: float(i) for i, name in enumerate([*paper.CLASS_MEANS.values(), *paper.POOLED.values()], 1)}
    results(page, "voc2012", "table3", pd.DataFrame({"row": [*paper.SEVEN], **scores}))
    results(page, "magnetic_tile", "table4", pd.DataFrame({"row": [*paper.SEVEN], **scores, "IoU_std": 0.5}))
    _, methods = readme.summary().split("\n\n")
    assert methods.splitlines()[0] == (
        "| method | paper, VOC 2012 | ours, PASCAL VOC 2012 | paper, KSDD2 | ours, Magnetic tile |"
    )
    assert methods.splitlines()[3] == f"| Grad-CAM | 25.31 | {scores['mIoU']:.2f} | 25.73 | {scores['IoU']:.2f} ± 0.50 |"


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("<!-- begin map -->", "", "map"),
        ("<!-- end map -->", "", "map"),
        ("<!-- end map -->", "<!-- end map -->\n<!-- begin map -->\n<!-- end map -->", "map"),
        ("<!-- begin map -->\n<!-- end map -->", "<!-- end map -->\n<!-- begin map -->", "map"),
        ("<!-- end beyond -->\nafter beyond\n<!-- begin map -->", "<!-- begin map -->\n<!-- end beyond -->", "map"),
        ("by hand", "<!-- begin speed -->\n<!-- end speed -->", "speed"),
    ],
)
def test_markers_in_disorder_are_named(page, old, new, culprit):
    page.write_text(page.read_text().replace(old, new))
    before = page.read_text()
    with pytest.raises(ValueError, match=f"docs/results.md, section '{culprit}': expected <!-- begin NAME -->"):
        readme.write()
    assert page.read_text() == before


def test_every_equation_names_what_exists():
    text = section("README.md", "Equations and functions")
    names = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", text.split("|---|---|---|")[1])
    assert len(names) >= 10 and {"engine.tracing.trace", "engine.methods.gradcam", "engine.tricks.truncate"} <= set(names)
    for name in names:
        found = pkgutil.resolve_name(f"ltcam.{name}")
        assert callable(found) or name == "engine.biases"
    numbers = [set(map(int, re.findall(r"\d+", row))) for row in re.findall(r"\| Eqs?\. ([\d, ]+) \|", text)]
    assert set.union(*numbers) == set(range(1, 12))  # the paper's equations


def test_every_setting_names_a_parameter_that_exists():
    text = section("docs/settings.md", "Settings the paper omits, and ours")
    known = {f.name for kind in (Options, Recipe) for f in fields(kind)}
    known |= {*signature(ltcam.trace).parameters, *signature(stages).parameters}
    used = {name for code in re.findall(r"`([^`]*=[^`]*)`", text) for name in re.findall(r"(\w+)=", code)}
    assert {"per", "compare", "head", "outputs", "size"} <= used <= known
