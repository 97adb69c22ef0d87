"""The paper's numbers: against its text where that is at hand, and against their own arithmetic everywhere."""

import re

import nbformat
import pandas as pd
import pytest

from ltcam import files
from ltcam.paper import tables as paper

ALL = (1, 2, 3, 4)


@pytest.fixture
def text():
    path = files.ROOT.parent / "shared" / "paper.md"
    if not path.is_file():
        pytest.skip(f"the paper's text is not at {path.name} in a folder `shared` beside the checkout")
    return path.read_text(encoding="utf-8")


def cells(text, number):
    """{(row, metric): the cell as printed} of a table whose cells stand between tabs below its caption."""
    below = text.split(f"**Table {number}.**")[1].splitlines()
    first = next(i for i, line in enumerate(below) if "\t" in line)
    lines = []
    while first < len(below) and "\t" in below[first]:
        lines.append(below[first].split("\t"))
        first += 1
    if number == 1:  # lies on its side: a column a stage
        lines = [["", "mIoU"], *zip(*(line[1:] for line in lines), strict=True)]
    names = {re.sub(r"[$ ]", "", line[0]).replace(r"\delta", "δ").replace(",", ", "): line[1:] for line in lines[1:]}
    return {(row, metric): cell for row, line in names.items() for metric, cell in zip(lines[0][1:], line, strict=True)}


@pytest.mark.parametrize("number", ALL)
def test_every_value_and_style_is_that_of_the_text(text, number):
    printed = cells(text, number)
    values, styles = paper.published(number).stack(), paper.emphasis(number).stack()
    assert set(values.index) == set(styles.index) == set(printed)
    for where, cell in printed.items():
        tag = re.match(r"<([bu])>(.*)</\1>$", cell)
        assert values[where] == float(tag[2] if tag else cell)
        assert styles[where] == {"b": "bold", "u": "underline", None: ""}[tag and tag[1]]


@pytest.mark.parametrize(
    "words",
    [
        r"\mathbb{I}(\frac{\partial y^c}{\partial Z} \geq \delta) \otimes \frac{\partial y^c}{\partial Z}), \quad (9)",
        r"\mathbb{I}(\frac{\partial y^{cl}}{\partial Z} > \delta)) \otimes \frac{\partial y^{cl}}{\partial Z}). \quad (10)",
        r"\sum_l \psi(\sum_k ((\frac{1}{Z_l} \sum_i \sum_j \frac{\partial y^c}{\partial A_{ij}^{kl}} \otimes "
        r"\mathbb{I}(\frac{\partial y^c}{\partial A_{ij}^{kl}} > \delta))) \cdot \mathbf{A}^{kl}). \quad (11)",
        r"M_{\text{Grad-CAM}}^{cl} = \text{ReLU}\left(\sum_k",
        r"M_{\text{Layer-CAM}}^{cl} = \text{ReLU}(\mathbf{w}_{kl}^c \otimes \mathbf{A}^{kl}), \quad (5)",
        r"$\delta$ is a hyperparameter that is set to the $\delta$ -th percentile",
        r"We set the hyperparameters $\alpha$ to 0 and 20",
        "use pixel recall, accuracy, and Mirco-F1 metrics",
        "Inspired by GradFull and Layer-CAM",
    ],
)
def test_what_notebook_06_says_of_the_text_is_there(text, words):
    assert words in re.sub(r"\s+", " ", text)


def test_the_values_are_complete():
    assert [paper.published(number).shape for number in ALL] == [(7, 1), (5, 4), (7, 4), (7, 4)]
    for number in ALL:
        assert paper.published(number).index.tolist() == list(paper.TABLES[number])
        assert paper.emphasis(number).isin(["bold", "underline", ""]).all(axis=None)
    shared = ["Grad-CAM++", "Grad-CAM", "FullGrad"]
    assert paper.published(2).loc[shared].equals(paper.published(3).loc[shared])
    assert paper.published(1).loc["S5", "mIoU"] == paper.published(3).loc["Grad-CAM", "mIoU"]


def test_the_styles_are_as_printed_where_that_is_odd():
    two, four = paper.emphasis(2), paper.emphasis(4)
    assert two[two == "bold"].count().tolist() == [2, 2, 2, 2]  # the best of each half
    recall = paper.published(4)["Recall"]
    assert four.index[four["Recall"] == "underline"].tolist() == ["Grad-CAM"]
    assert recall.nlargest(2).index.tolist() == ["FullGrad", "Layer-CAM(l=1, δ=0)"]
    assert (paper.emphasis(3) == "underline").sum().tolist() == [1, 1, 1, 1]
    assert (four == "underline").sum().tolist() == [0, 0, 1, 1]


def test_the_arithmetic_by_hand():
    """KSDD2's Grad-CAM: 2 * 27.79 * 77.63 / 105.42 = 40.928, 40.93 / 1.5907 = 25.731."""
    row = paper.arithmetic(4).loc["Grad-CAM"]
    assert row["F1 - 2PR/(P+R)"] == pytest.approx(40.93 - 40.928, abs=0.001)
    assert row["IoU - F1/(2-F1)"] == pytest.approx(25.73 - 25.731, abs=0.001)
    row = paper.arithmetic(3).loc["FullGrad"]  # 2 * 48.72 * 42.52 / 91.24 = 45.409, 42.84 / 1.5716 = 27.259
    assert row["F1 - 2PR/(P+R)"] == pytest.approx(42.84 - 45.409, abs=0.001)
    assert row["IoU - F1/(2-F1)"] == pytest.approx(28.2 - 27.259, abs=0.001)


def test_table_4_is_pooled_within_rounding_and_the_others_are_not():
    assert [paper.arithmetic(number)["pooled"].tolist() for number in (2, 3, 4)] == [[False] * 5, [False] * 7, [True] * 7]
    deviations = ["F1 - 2PR/(P+R)", "IoU - F1/(2-F1)"]
    assert paper.arithmetic(4)[deviations].abs().max().max() < 0.01
    for number in (2, 3):  # what means over classes do: harmonic means fall, the convex IoU rises
        assert (paper.arithmetic(number)[deviations[0]] < -1).all() and (paper.arithmetic(number)[deviations[1]] > 0.5).all()


@pytest.fixture
def ours():
    """A Table 4 with pooled scores a point below the paper's, and class means that must not be read."""
    four = paper.published(4)
    columns = {paper.POOLED[metric]: four[metric] - 1 for metric in four}
    return pd.DataFrame({**columns, **dict.fromkeys(paper.CLASS_MEANS.values(), 0.0)}).reset_index()


def test_ours_stand_beside_with_the_difference(ours):
    wide = paper.compare(4, ours)
    assert wide.columns.tolist()[:3] == [("mIoU", "paper"), ("mIoU", "ours"), ("mIoU", "difference")]
    assert wide.loc["FullGrad", "Recall"].tolist() == [80.25, 79.25, -1.0]
    long = paper.tidy(4, ours)
    assert long.columns.tolist() == ["table", "row", "metric", "paper", "ours", "difference"] and len(long) == 28
    assert long.iloc[0].tolist() == [4, "Grad-CAM++", "mIoU", 25.87, 24.87, -1.0]
    assert long.iloc[-1].tolist() == [4, "LTGrad-CAM(l=5, δ=20)", "Micro-F1", 52.26, 51.26, -1.0]
    assert len(paper.tidy(1, ours.assign(row=list(paper.TABLES[1]), mIoU=1.0))) == 7


def test_the_page_has_the_papers_styles_and_our_marks(ours):
    style = paper.styled(4, ours, "tiles")
    assert style.caption == "Table 4: the paper's on KSDD2, ours on tiles"
    one = paper.styled(1, ours.assign(row=list(paper.TABLES[1]), mIoU=1.0), "photographs")
    assert one.caption == "Table 1: the paper's on VOC 2012, ours on photographs"
    css = {cell: dict(pairs) for cell, pairs in style._compute().ctx.items() if pairs}
    marked = {(style.index[i], *style.columns[j]): pairs for (i, j), pairs in css.items()}
    assert marked["Grad-CAM", "Recall", "paper"] == {"text-decoration": "underline"}
    assert marked["LTGrad-CAM(l=5, δ=20)", "mIoU", "paper"] == {"font-weight": "bold"}
    assert marked["FullGrad", "Recall", "ours"]["background-color"] == "#b7e1c0"
    assert marked["Layer-CAM(l=1, δ=0)", "Recall", "ours"]["background-color"] == "#bcd4f0"
    assert len(marked) == 6 + 2 * 4 and "-1.00" in style.to_html()


@pytest.mark.parametrize("notebook", sorted(files.NOTEBOOKS.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_what_a_notebook_quotes_is_in_the_text(text, notebook):
    """Between omissions and apart from typesetting, word for word."""

    def words(passage):
        return re.findall(r"[a-z0-9]+", re.sub(r"\[\d[\d, -]*\]|\\delta", "", passage).lower())  # without citations

    running = [line for line in text.splitlines() if "\t" not in line and not line.startswith(("**Table", "**Fig"))]
    printed = " ".join(words("\n".join(running)))
    cells = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "markdown"]
    quoted = [block for cell in cells for block in re.findall(r'\*"(.+?)"\*', cell.replace("\n> ", " "), re.DOTALL)]
    for passage in (part for block in quoted for part in block.split("[...]")):
        assert " ".join(words(passage)) in printed, passage
    assert quoted or notebook.stem[:2] in ("00", "07")
