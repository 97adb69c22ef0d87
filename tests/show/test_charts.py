"""What is drawn is what the tables say."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ltcam.files import ROOT
from ltcam.show import charts


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_change_is_a_dot_in_its_rows_panel():
    columns = ["factor", "level", "row", "change", "change_low", "change_high", "verdict"]
    table = pd.DataFrame([
        ["defaults", "as they are", "A", np.nan, np.nan, np.nan, np.nan], ["trick", "both", "A", 9.0, 8.0, 10.0, "better"],
        ["per", "channel", "A", 1.0, 0.5, 2.0, "better"], ["per", "channel", "B", -2.0, -3.0, -1.0, "worse"],
        ["fuse", "max", "B", 0.1, -1.0, 1.0, "open"],
    ], columns=columns)  # fmt: skip
    figure = charts.changes(table, ["A", "B"], "title")
    first, second = figure.axes
    assert labels(first.yaxis) == ["percentile of each channel", "largest map, not the sum"] and first.yaxis_inverted()
    lines, dots = second.collections
    assert dots.get_offsets().tolist() == [[-2, 0], [0.1, 1]]
    assert [line.tolist() for line in lines.get_segments()] == [[[-3, 0], [-1, 0]], [[-1, 1], [1, 1]]]
    orange, gray = dots.get_facecolors()
    assert orange[0] > orange[2] + 0.5 and np.ptp(gray[:3]) < 0.01
    assert [line.get_xdata() for line in second.lines] == [[0, 0]]
    assert first.collections[1].get_offsets().tolist() == [[1, 0]]
    assert (first.get_title(), second.get_title(), figure.get_suptitle()) == ("A", "B", "title")


def test_the_cross_is_a_row_for_each_scope_and_scale():
    rows = [{"normalize": scale, "per": "layer", "delta": None, "value": v} for v, scale in enumerate(("none", "max"))]
    ways = [(per, scale, delta) for per in ("layer", "channel") for scale in ("none", "max") for delta in (0.0, 20.0)]
    rows += [{"normalize": scale, "per": per, "delta": delta, "value": 10 + v} for v, (per, scale, delta) in enumerate(ways)]
    (axes,) = charts.cross(pd.DataFrame(rows), "title").axes
    scopes, scales = (
        ("percentile of the whole layer", "percentile of each channel"),
        ("maps as they are", "maps over their maximum"),
    )
    assert labels(axes.yaxis) == [f"{scope}, {scale}" for scope in scopes for scale in scales]
    assert labels(axes.xaxis) == ["no truncation", "0", "20"]
    texts = np.array([text.get_text() for text in axes.texts]).reshape(4, 3).astype(float)
    assert texts.tolist() == [[0, 10, 11], [1, 12, 13], [0, 14, 15], [1, 16, 17]]


@pytest.mark.parametrize("by", ["area", "overlap"])
def test_gains_are_over_the_amount(by):
    """Fifths of two pairs each: their interval stands over the middle of the two."""
    each = pd.DataFrame({by: range(1, 11), "gain": [5.0, -5.0] * 5, "group": [f"fifth {n // 2}" for n in range(10)]})
    grouped = pd.DataFrame([
        {"by": kind, "group": f"fifth {value}", "row": row, "value": value, "ci_low": value - 2, "ci_high": value + 3}
        for kind, row in ((by, "gain"), ("kind", "gain"), (by, "other"))
        for value in range(5)
    ])  # fmt: skip
    (axes,) = charts.gains(each, grouped, ["gain"], "title", by).axes
    dots, line, low, high = axes.lines[:4]
    assert dots.get_xydata().tolist() == each[[by, "gain"]].to_numpy().tolist()
    assert line.get_xydata().tolist() == [[1.5 + 2 * n, n] for n in range(5)]
    assert (low.get_ydata()[1], high.get_ydata()[1]) == (-1, 4)
    assert axes.get_xscale() == "log" and axes.get_xlabel() == charts.LABELS[by]


def test_signs_are_two_boxes_for_each_stage():
    table = pd.DataFrame({"stage": ["S1", "S2"] * 3, "positive": [1.0, 2, 3, 4, 5, 6], "negative": [0.5] * 6})
    (axes,) = charts.signs(table, "title").axes
    assert labels(axes.yaxis) == ["S1, positive", "S1, negative", "S2, positive", "S2, negative"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 1.8] == [3, 0.5, 4, 0.5]


def test_stages_are_bars_and_curves():
    rows = [[stage, delta, 50.0 + n, 10.0, 100.0 - n] for n, delta in enumerate((None, 0.0)) for stage in ("S1", "S2")]
    energy, half, kept = charts.stages(pd.DataFrame(rows, columns=["stage", "delta", "energy", "half", "kept"]), "title").axes
    assert [bar.get_height() for bar in energy.patches] == [50.0, 51.0] * 2
    assert labels(half.xaxis) == labels(energy.xaxis) == ["none", "0"]
    assert kept.lines[0].get_ydata().tolist() == [100, 99]


def test_lines_are_those_of_the_columns():
    wide = pd.DataFrame({"a": [1.0, 5.0, 7.0], "b": [2.0, 4.0, 4.0]}, index=[0.0, 50.0, 90.0])
    (axes,) = charts.lines(wide, "δ", "IoU (%)", "title").axes
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[0, 1], [50, 5], [90, 7]] and second.get_ydata().tolist() == [2, 4, 4]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_xticks().tolist() == [0, 50, 90] and axes.get_title() == "title"
    (plain,) = charts.lines(wide[["a"]], "t", "y", marker="").axes
    assert len(plain.lines) == 1 and plain.lines[0].get_marker() == "" and plain.get_legend() is None


def test_a_step_is_a_dot_with_its_interval():
    """On an axis that need not start at zero, since the gain is the point."""
    rows = [
        ["step", "Grad-CAM at S5", 30, 29, 31, np.nan],
        ["step", "stages: S4-S5", 35, 34, 36, "holds"],
        ["row", "A", 3, 0, 50, "open"],
    ]
    table = pd.DataFrame(rows, columns=["kind", "name", "value", "ci_low", "ci_high", "verdict"])
    figure = charts.steps(pd.concat([table.assign(cut="otsu"), table.assign(cut="argmax")]), "title")
    assert [panel.get_title() for panel in figure.axes] == [*charts.CUTS.values()]
    assert labels(figure.axes[0].yaxis) == ["Grad-CAM at S5", "S4 and S5 summed"]
    for panel in figure.axes:
        intervals, dots = panel.collections
        assert dots.get_offsets().tolist() == [[30, 0], [35, 1]]
        assert [line[:, 0].tolist() for line in intervals.get_segments()] == [[29, 31], [34, 36]]
        assert panel.get_xlim()[0] > 20 and not panel.lines


def test_a_claim_is_its_margin_with_its_verdict_in_each_setting():
    rows = [["A: x, a bound made", 5.0, 4, 6, "holds"], ["B", -0.2, -0.4, -0.1, "fails, negligible"], ["C", 0.1, -9, 2, "open"]]
    table = pd.DataFrame(
        [*rows, ["D", *[np.nan] * 3, "not measured"]], columns=["claim", "margin", "ci_low", "ci_high", "verdict"]
    )
    figure = charts.claims({"sigmoid": table, "softmax": table.assign(verdict="equal")}, "title")
    first, second = figure.axes
    assert labels(first.yaxis) == ["A: x", "B", "C"] and (first.get_title(), second.get_title()) == ("sigmoid", "softmax")
    intervals, dots = first.collections
    assert dots.get_offsets().tolist() == [[5, 0], [-0.2, 1], [0.1, 2]]
    assert [line[:, 0].tolist() for line in intervals.get_segments()] == [[4, 6], [-0.4, -0.1], [-9, 2]]
    blue, orange, gray = dots.get_facecolors()
    assert blue[2] > blue[0] + 0.5 and orange[0] > orange[2] + 0.5 and np.ptp(gray[:3]) < 0.01
    assert [text.get_text() for text in first.texts] == ["holds", "fails, negligible", "open"]
    assert [text.xy[1] for text in first.texts] == ["A: x", "B", "C"] and first.get_xlim()[0] < -9
    assert (np.ptp(second.collections[1].get_facecolors()[:, :3], axis=1) < 0.01).all()


def test_better_and_worse_differ_to_a_color_blind_eye():
    """By their contrast (WCAG), and by blue, which nearly all see. Red and green would have a contrast of 1.48."""
    colors = np.array([to_rgb(charts.COLORS[word]) for word in ("better", "worse")])
    dark, light = sorted(((colors + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722])
    assert (light + 0.05) / (dark + 0.05) > 1.6 and abs(np.subtract(*colors[:, 2])) > 0.5
    assert (charts.COLORS["holds"], charts.COLORS["fails"]) == (charts.COLORS["better"], charts.COLORS["worse"])


def test_names_are_words():
    """Those of every committed table; the demo's too."""
    paths = {name: ROOT.glob(f"results/[pr]*/*/{name}.csv") for name in ("best", "ablations")}
    best, ablations = (pd.concat(map(pd.read_csv, found)) for found in paths.values())
    changed = ablations.query("factor not in ('trick', 'defaults')")
    steps, changes = {*best.query("kind == 'step'")["name"]}, {*(changed["factor"] + " = " + changed["level"])}
    assert len(steps) >= 6 and len(changes) >= 12
    for name in steps | changes:
        said = charts.words(name)
        assert said != name or name == "Grad-CAM at S5", name
        assert not re.search(r"[:=_]|minmax|xgradcam|relu|gap|S\d-S\d", said.replace("δ = 0", "")), said


def test_a_distribution_is_a_row_of_points_and_a_box():
    rows = {"toy (3)": np.array([5.0, 5, 20]), "b (1)": np.array([20.0])}
    (axes,) = charts.boxes(rows, "area").axes
    assert labels(axes.yaxis) == ["toy (3)", "b (1)"] and axes.get_xscale() == "log" and axes.yaxis_inverted()
    assert [sorted(line.get_xdata()) for line in axes.lines[:2]] == [[5, 5, 20], [20]]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 1.8] == [5, 20]
    assert set(axes.xaxis.get_major_formatter().format_ticks([0.3, 1, 10])) == {"0.3", "1", "10"}
    (axes,) = charts.boxes(rows, "area", "title", ["red", "blue"]).axes  # no dots
    assert [box.get_facecolor()[:3] for box in axes.patches] == [(1, 0, 0), (0, 0, 1)]
    assert not any(line.get_marker() == "." for line in axes.lines) and axes.get_title() == "title"
