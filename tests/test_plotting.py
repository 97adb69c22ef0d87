import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ltcam import datasets, plotting
from ltcam.evaluation import Config
from ltcam.models import vgg16
from ltcam.training import Recipe, Trained


@pytest.fixture
def demo():
    return datasets.load("demo", "test")


@pytest.fixture
def figure(demo):
    torch.manual_seed(0)
    trained = Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})
    configs = {"Grad-CAM": Config("gradcam"), "FullGrad": Config("fullgrad", "all")}
    yield plotting.heatmap_figure(trained, demo, plotting.examples(demo, 3), configs, truth=True)
    plt.close("all")


def test_examples_take_turns_and_show_something(demo):
    chosen = plotting.examples(demo, 6)
    assert [c for _, c in chosen] == [0, 1, 2, 3, 0, 1]
    for i, c in chosen:
        areas = [(demo.mask(k) == c + 1).mean() for k in demo.scored if demo.labels[k, c]]
        assert (demo.mask(i) == c + 1).mean() >= np.median(areas)
    assert len(set(chosen)) == 6
    assert plotting.examples(demo, 6) == chosen != plotting.examples(demo, 6, seed=1)


def test_a_figure_has_a_row_an_image_and_a_column_a_method(figure):
    titles = [a.get_title() for a in figure.axes[:3]]
    assert len(figure.axes) == 9 and titles == ["image", "Grad-CAM", "FullGrad"]
    assert [a.get_ylabel() for a in figure.axes[::3]] == ["scratch", "spot", "stain"]
    maps = [a.images[1].get_array() for i, a in enumerate(figure.axes) if i % 3]
    assert len({m.tobytes() for m in maps}) == len(maps) == 6
    assert all(max(a.images[0].get_array().shape) <= plotting.THUMBNAIL for a in figure.axes)


def test_files_are_the_same_bytes_every_time(figure, tmp_path):
    plotting.save(figure, tmp_path / "a")
    plotting.save(figure, tmp_path / "b")
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array(image.convert("L")).std() > 10 and image.info["dpi"][0] == pytest.approx(200, abs=1)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failed_write_leaves_nothing(figure, tmp_path, monkeypatch):
    def full(path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plotting.save(figure, tmp_path / "a")
    assert not list(tmp_path.iterdir())
