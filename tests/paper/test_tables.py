"""The paper's numbers: against its text where that is at hand, and against their own arithmetic everywhere."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltcam import files
from ltcam.data import load
from ltcam.experiment.scores import ALWAYS, scores
from ltcam.paper import tables as paper
from ltcam.paper.registry import make
from tests.paper import made

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
    values, styles = paper.published(number).stack(), paper.published(number, "style").stack()
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
        assert paper.published(number).index.tolist() == list(paper.ROWS[number])
        assert paper.published(number, "style").isin(["bold", "underline", ""]).all(axis=None)
    shared = ["Grad-CAM++", "Grad-CAM", "FullGrad"]
    assert paper.published(2).loc[shared].equals(paper.published(3).loc[shared])
    assert paper.published(1).loc["S5", "mIoU"] == paper.published(3).loc["Grad-CAM", "mIoU"]


def test_the_styles_are_as_printed_where_that_is_odd():
    two, four = (paper.published(number, "style") for number in (2, 4))
    assert two[two == "bold"].count().tolist() == [2, 2, 2, 2]  # the best of each half
    recall = paper.published(4)["Recall"]
    assert four.index[four["Recall"] == "underline"].tolist() == ["Grad-CAM"]
    assert recall.nlargest(2).index.tolist() == ["FullGrad", "Layer-CAM(l=1, δ=0)"]
    assert (paper.published(3, "style") == "underline").sum().tolist() == [1, 1, 1, 1]
    assert (four == "underline").sum().tolist() == [0, 0, 1, 1]


def test_table_4_is_pooled_within_rounding_and_the_others_are_not():
    """F1 = 2PR / (P + R) and IoU = F1 / (2 - F1) hold for pooled pixels: the headline scores rest on this. By hand, KSDD2's
    Grad-CAM: 2 * 27.79 * 77.63 / 105.42 = 40.928, 40.93 / 1.5907 = 25.731."""
    for number in (2, 3, 4):
        p, r, f1, iou = (paper.published(number)[metric] for metric in ("Precision", "Recall", "Micro-F1", "mIoU"))
        off, under = f1 - 2 * p * r / (p + r), iou - 100 * f1 / (200 - f1)
        if number == 4:
            assert off.abs().max() < 0.01 and under.abs().max() < 0.01
            assert (off["Grad-CAM"], under["Grad-CAM"]) == pytest.approx((40.93 - 40.928, 25.73 - 25.731), abs=0.001)
        else:  # what means over classes do: harmonic means fall, the convex IoU rises
            assert (off < -1).all() and (under > 0.5).all()


@pytest.fixture
def ours(monkeypatch):
    """Tables with scores a point below the paper's, under the columns that must be read, and 0 under all others."""

    def table(name, study=None):
        number = int(name[-1])
        printed, columns = paper.published(number), paper.COLUMNS[number]
        own = dict.fromkeys({*paper.CLASS_MEANS.values(), *paper.POOLED.values()}, 0.0)
        own |= {columns[metric]: printed[metric] - 1 for metric in printed}
        return pd.DataFrame(own, index=printed.index).rename_axis("row").reset_index()

    monkeypatch.setattr(paper, "make", table)
    return table


def test_ours_stand_beside_with_the_difference(ours):
    wide = paper.compared(4, ours("table4"))
    assert wide.columns.tolist()[:3] == [("mIoU", "paper"), ("mIoU", "ours"), ("mIoU", "difference")]
    assert wide.loc["FullGrad", "Recall"].tolist() == [80.25, 79.25, -1.0]


def test_every_printed_number_has_a_row_and_the_interval_of_ours(ours, few):
    configs = dict.fromkeys(config for rows in paper.ROWS.values() for config in rows.values())
    long = paper.comparison(made.study(dict.fromkeys(configs, 25), data="ksdd2"))
    assert list(long) == ["table", "row", "metric", "paper", "ours", "difference", "low", "high", "inside"]
    assert long["table"].value_counts().to_dict() == {4: 28, 2: 20, 1: 7} and set(long["difference"]) == {-1.0}
    four = long[long["table"] == 4].reset_index(drop=True)
    assert four.iloc[0, :6].tolist() == [4, "Grad-CAM++", "mIoU", 25.87, 24.87, -1.0]
    assert four.iloc[-1, :6].tolist() == [4, "LTGrad-CAM(l=5, δ=20)", "Micro-F1", 52.26, 51.26, -1.0]
    has = long["metric"].isin(["mIoU", "Micro-F1"])  # precision and recall have no interval
    assert (long["low"].notna() == has).all() and (long["inside"].notna() == has).all()
    assert (four.loc[four["metric"] == "mIoU", ["low", "high"]] == 25).all(axis=None)
    assert (four.loc[four["metric"] == "Micro-F1", ["low", "high"]] == 40).all(axis=None)  # 2 * 25 / 125


def test_the_orders_of_rows_are_counted_by_table(ours, monkeypatch):
    """All as printed; then with S1 in the place of S5 and S2 beside S3; a tie is not the paper's order."""
    study = made.study(data="ksdd2")
    whole = paper.orders(study).set_index("table")
    assert whole["pairs"].to_dict() == whole["agree"].to_dict() == {1: 21, 2: 10, 4: 21}
    turned = ours("table1").set_index("row")
    turned.loc[["S1", "S5", "S2"], "mIoU"] = turned.loc[["S5", "S1", "S3"], "mIoU"].to_numpy()
    monkeypatch.setattr(paper, "make", lambda name, study: turned.reset_index() if name == "table1" else ours(name))
    # S1 is above the six others in place of S5, S5 below the five others in place of S1: 11 signs; and a tie
    assert paper.orders(study)["agree"].tolist() == [21 - 11 - 1, 10, 21]


def test_the_published_orders_are_those_of_kendalls_tau():
    """Without ties, tau is the agreeing share of all pairs less the others. Table 1 has 19 of 21, Table 2 one of 10."""
    folder = files.ROOT / "results" / "paper" / "voc2012"
    orders = pd.read_csv(folder / "orders.csv").set_index("table")
    assert orders["agree"].to_dict() == {1: 19, 2: 1, 3: 13}
    for number, (pairs, agree) in orders[["pairs", "agree"]].iterrows():
        ours = pd.read_csv(folder / f"table{number}.csv").set_index("row")["mIoU"]
        tau = stats.kendalltau(ours, paper.published(number)["mIoU"][ours.index]).statistic
        assert agree == pytest.approx(pairs * (1 + tau) / 2) and pairs == len(ours) * (len(ours) - 1) / 2


def test_the_best_and_the_second_best_of_each_column_are_marked(ours):
    shown = paper.beside(4, made.study(data="ksdd2"))
    assert shown.caption == "Table 4: the paper's on KSDD2, ours on toy" and "difference" not in shown.to_html()
    marked = {(shown.index[i], *shown.columns[j]): dict(css) for (i, j), css in shown._compute().ctx.items() if css}
    for kind in ("paper", "ours"):
        assert marked["FullGrad", "Recall", kind]["background-color"] == "#b7e1c0"
        assert marked["Layer-CAM(l=1, δ=0)", "Recall", kind]["background-color"] == "#bcd4f0"
    assert len(marked) == 2 * 2 * 4 and "-1.00" in paper.beside(1, made.study(data="ksdd2"), difference=True).to_html()
    assert paper.ranks(pd.Series([3.0, 1, 3, 2])) == [1, 0, 1, 0]


def test_both_settings_stand_beside_each_other_once_they_are_trained(ours, monkeypatch, tmp_path):
    """The softmax's scores are two points above ours, so one above the paper's."""
    study, other = made.study(data="ksdd2"), made.study(data="ksdd2")
    other.loss, other.out, study.both = "softmax", tmp_path, [study, other]
    more = dict.fromkeys(paper.POOLED.values(), 2.0)

    def table(name, own):
        found = ours(name).set_index("row")
        return (found.add(pd.Series(more)).fillna(found) if own is other else found).reset_index()

    monkeypatch.setattr(paper, "make", table)
    assert [name for _, name in paper.beside(4, study).columns] == ["paper", "ours"] * 4
    (tmp_path / "trainings.csv").touch()
    shown = paper.beside(4, study)
    assert [*shown.columns] == [(m, n) for m in paper.published(4) for n in ("paper", "sigmoid", "softmax")]
    assert shown.data.loc["FullGrad", "Recall"].tolist() == [80.25, 79.25, 81.25]
    whole = paper.beside(4, study, difference=True).data
    assert whole.loc["FullGrad", "Recall"].to_dict() == {
        "paper": 80.25, "sigmoid": 79.25, "sigmoid - paper": -1.0, "softmax": 81.25, "softmax - paper": 1.0,
    }  # fmt: skip
    assert "sigmoid" not in paper.beside(4, other).to_html()  # that of the softmax shows itself alone


CURVES = {  # method: (train, test) at delta 0, 20, 60, 90
    "gradcam": ([10, 14, 13, 5], [20, 30, 26, 8]),  # the same order: the choice carries over
    "layercam": ([10, 14, 14, 5], [40, 26, 27, 28]),  # two best ones on the training part; falls and rises on the test part
    "fullgrad": ([9, 9, 9, 9], [20, 21, 22, 22]),  # flat on the training part; two best ones on the test part
}
NONE = {"gradcam": 99.0, "layercam": 1.0, "fullgrad": 2.0}  # a score that would be chosen if it were a candidate


@pytest.fixture
def swept(monkeypatch):
    rows = [
        {"part": part, "method": method, "layers": layers, "delta": delta, "mIoU": score, "IoU": 100 - score}
        for method, layers in paper.SWEPT.items()
        for part, scores in zip(("train", "test"), CURVES[method], strict=True)
        for delta, score in zip((90.0, 20.0, 60.0, 0.0, None), [scores[i] for i in (3, 1, 2, 0)] + [NONE[method]], strict=True)
    ]
    monkeypatch.setattr(paper, "sweep", lambda study: pd.DataFrame(rows))
    return pd.DataFrame(rows)


def test_the_sweep_is_three_methods_over_ten_deltas_and_none():
    assert len(paper.SWEEP) == len(set(paper.SWEEP)) == 33
    found = {(c.method, c.layers, c.per) for c in paper.SWEEP}
    assert found == {("gradcam", "S1-S5", "layer"), ("layercam", "S1-S5", "layer"), ("fullgrad", "all", "layer")}
    assert [c.delta for c in paper.SWEEP[:11]] == [None, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_the_choice_of_the_training_part_its_regret_and_its_rank_correlation(swept):
    chosen = paper.delta_choice(made.study(metric="mIoU")).set_index("method")
    assert list(chosen.index) == ["gradcam", "layercam", "fullgrad"]
    assert chosen["delta"].tolist() == [20, 20, 0]  # of equals the smallest
    assert chosen["test"].tolist() == [30, 26, 20] and chosen["none"].tolist() == [99, 1, 2]
    assert chosen["best_delta"].tolist() == [20, 0, 60] and chosen["best"].tolist() == [30, 40, 22]
    assert chosen["regret"].tolist() == [0, 14, 2]
    rank = chosen["rank_correlation"]
    # Layer-CAM: train ranks 2, 3.5, 3.5, 1, test ranks 4, 1, 2, 3: covariance -3.5 / sqrt(4.5 * 5)
    assert rank["gradcam"] == pytest.approx(1) and rank["layercam"] == pytest.approx(-3.5 / np.sqrt(22.5))
    assert rank["layercam"] == pytest.approx(stats.spearmanr(*CURVES["layercam"]).statistic) and np.isnan(rank["fullgrad"])
    assert paper.delta_choice(made.study(metric="IoU"))["delta"].tolist() == [90, 90, 0]  # 100 - mIoU


def test_both_parts_of_a_study_are_scored_and_kept_apart(study):
    table = make("sweep", study)
    assert table["part"].tolist() == ["test"] * 33 + ["train"] * 33 and list(table)[1:9] == ALWAYS
    for role, images in (("test", 6), ("train", 8)):
        counts = study.counts(paper.SWEEP, role)
        assert counts.pairs["name"].nunique() == images and counts.pairs["training"].unique().tolist() == ["seed0", "seed1"]
        own = table[table["part"] == role]
        assert own["mIoU"].to_numpy() == pytest.approx(scores(counts)["mIoU"].to_numpy(), rel=1e-5)
    assert {"mIoU_std", "IoU_std"} <= set(table)
    study.settings["first"] = 5  # of the training part alone
    first = study.counts(paper.SWEEP[:1], "train")
    assert sorted(first.pairs["name"].unique()) == [entry.name for entry in load("voc2012", "train/5").entries]


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
