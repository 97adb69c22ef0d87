"""What is drawn is what the tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ltcam.paper import ablations, breakdown
from ltcam.show import charts


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_change_is_a_dot_in_its_rows_panel():
    columns = ["factor", "level", "row", "change", "change_low", "change_high", "verdict"]
    table = pd.DataFrame([
        ["defaults", "as they are", "A", np.nan, np.nan, np.nan, np.nan], ["trick", "both", "A", 9.0, 8.0, 10.0, "better"],
        ["per", "channel", "A", 1.0, 0.5, 2.0, "better"], ["per", "channel", "B", -2.0, -3.0, -1.0, "worse"],
        ["fuse", "max", "B", 0.1, -1.0, 1.0, "tie"],
    ], columns=columns)  # fmt: skip
    figure = charts.changes(table, ["A", "B"], "title")
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["per = channel", "fuse = max"]
    dots = [[(line.get_xdata()[0], line.get_ydata()[0], line.get_color()) for line in panel.lines if line.get_marker() == "o"]
            for panel in (first, second)]  # fmt: skip
    assert dots == [[(1.0, 0, "tab:green")], [(-2.0, 0, "tab:red"), (0.1, 1, "tab:gray")]]
    assert (first.get_title(), second.get_title(), figure.get_suptitle()) == ("A", "B", "title")


def test_the_cross_is_a_row_a_scope_and_scale():
    crossed = ablations.cross([0.0, 20.0])
    table = pd.DataFrame(crossed).assign(value=range(len(crossed)))
    (axes,) = charts.cross(table, "title").axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"{per}, {scale}" for per in ("layer", "channel") for scale in ("none", "max", "minmax", "tanh")]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["no truncation", "0", "20"]
    texts = np.array([text.get_text() for text in axes.texts]).reshape(8, 3)
    assert texts[:, 0].tolist() == ["0.0", "1.0", "2.0", "3.0"] * 2
    of = {(c.per, c.normalize, c.delta): f"{value:.1f}" for value, c in enumerate(crossed)}
    assert texts[5].tolist() == ["1.0", of["channel", "max", 0.0], of["channel", "max", 20.0]]


@pytest.mark.parametrize(("high", "labels"), [(9.0, ["1", "2", "5"]), (900.0, ["1", "10", "100", "1000"])])
def test_labels_of_a_logarithmic_axis_do_not_crowd(high, labels):
    axes = plt.figure().add_subplot(xscale="log", xlim=(0.6, high))
    charts._plain(axes.xaxis)
    named = axes.xaxis.get_major_formatter().format_ticks(axes.xaxis.get_major_locator()())
    assert set(labels) <= set(named) and ("5" in named) == (high < 50)


@pytest.mark.parametrize("by", ["area", "overlap"])
def test_gains_are_over_the_amount(by):
    """Fifths of two pairs each: their interval stands over the middle of the two."""
    each = pd.DataFrame({by: range(1, 11), "gain": [5.0, -5.0] * 5})
    names = list(breakdown.fifths(each[by], breakdown.AMOUNTS[by])[::2])
    grouped = pd.DataFrame([
        {"by": kind, "group": group, "row": row, "value": value, "ci_low": value - 2, "ci_high": value + 3}
        for kind, row in ((by, "gain"), ("kind", "gain"), (by, "other"))
        for value, group in enumerate(names)
    ])  # fmt: skip
    (axes,) = charts.gains(each, grouped, ["gain"], "title", by).axes
    dots, line = axes.lines[0], axes.lines[1]
    assert dots.get_xydata().tolist() == each.to_numpy().tolist()
    assert line.get_xydata().tolist() == [[1.5 + 2 * n, n] for n in range(5)]
    low, high = axes.lines[2].get_ydata()[1], axes.lines[3].get_ydata()[1]
    assert (low, high) == (-1, 4) and axes.get_xscale() == "log" and axes.get_xlabel() == charts.LABELS[by]


def test_signs_and_stages_have_a_place_for_each_stage():
    table = pd.DataFrame({"name": "i", "class": 0, "stage": ["S1", "S2"], "positive": [1.0, 2.0], "negative": [0.5, 0.6]})
    axes = charts.signs(table, "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["S1", "S2"]
    rows = [["i", 0, stage, delta, 50.0, 10.0, 100.0] for delta in (None, 0.0) for stage in ("S1", "S2")]
    energy, half, kept = charts.stages(
        pd.DataFrame(rows, columns=["name", "class", "stage", "delta", "energy", "half", "kept"]), "title"
    ).axes
    assert [bar.get_height() for bar in energy.patches] == [50.0] * 4
    assert [label.get_text() for label in half.get_xticklabels()] == ["none", "0"]
    assert kept.lines[0].get_ydata().tolist() == [100, 100]


def test_what_is_dropped_is_a_line_for_each_stage():
    table = pd.DataFrame({"stage": ["S1", "S1", "S5", "S5"], "delta": [10.0, 20.0] * 2, "share": [1.0, 2.0, 3.0, 4.0]})
    (axes,) = charts.dropped(table, "title").axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[1, 2], [3, 4]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["S1", "S5"]
