"""The figures of notebook 09 show what their tables and maps hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ltcam import data as datasets
from ltcam.experiment import checkpoints
from ltcam.experiment.configs import Config, Protocol
from ltcam.paper.beyond import Way
from ltcam.show import beyond, plotting
from tests.paper.test_sentences import ladder
from tests.show.test_report import checkpoint


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_step_is_a_bar_with_its_interval():
    table = pd.concat([ladder(2, 1, 3, "holds"), ladder(2, 1, 3, "holds").assign(cut="argmax")])
    figure = beyond.steps(table, "VOC")
    assert len(figure.axes) == 2
    for panel in figure.axes:
        assert [bar.get_width() for bar in panel.patches] == [30, 35]
        assert [label.get_text() for label in panel.get_yticklabels()] == ["Grad-CAM at S5", "stages: S3-S5"]
        (intervals,) = panel.collections
        assert [line[:, 0].tolist() for line in intervals.get_segments()] == [[29, 31], [34, 36]]


def test_a_curve_has_a_dot_at_its_best():
    curve = pd.Series([10.0, 30.0, 20.0], pd.Index([0.0, 0.5, 1.0], name="t"))
    (axes,) = beyond.curves({"a": curve}, "VOC").axes
    line, dot = axes.lines
    assert line.get_ydata().tolist() == [10, 30, 20] and (dot.get_xdata()[0], dot.get_ydata()[0]) == (0.5, 30)


def test_pictures_are_the_maps_of_each_way(tmp_path):
    checkpoint(tmp_path / "checkpoint.pt")
    trained, data = checkpoints.load_checkpoint(tmp_path / "checkpoint.pt"), datasets.load("demo", "test")
    chosen = plotting.examples(data, 2)
    ways = {"first": Way(Config("gradcam")), "views: two": Way(Config("layercam", "S4-S5"), Protocol(flip=True))}
    figure = beyond.pictures(trained, data, chosen, ways)
    axes = np.array(figure.axes).reshape(2, 3)
    assert [panel.get_title() for panel in axes[0]] == ["image", "first", "views:\ntwo"]
    for row, (i, c) in enumerate(chosen):
        for column, (config, views) in enumerate(ways.values(), 1):
            found = [(m, k) for s, _, m, k in beyond.heatmaps(trained, data, [config], views, [i])]
            ((maps, keys),) = found
            shown = axes[row, column].images[1].get_array()
            expected = F.resize(maps[keys == c], list(shown.shape), antialias=True)[0]
            torch.testing.assert_close(torch.from_numpy(np.asarray(shown)), expected)
