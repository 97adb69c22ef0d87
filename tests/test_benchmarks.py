"""What is timed is the same: heatmaps of ours and the peers', before they are compared in seconds."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torchvision.models import vgg16

from benchmarks import beside, figure, floor, ksdd2, peers, scale, search, timing
from ltcam import data as datasets
from ltcam import files
from ltcam.data.base import Segmentation
from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.errors import InputError
from ltcam.experiment import seeds
from ltcam.experiment import vgg16 as models
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.scores import configurations
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.paper.tables import SEVEN
from tests.interrupts import at_call
from tests.tiny import TINY


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    return vgg16(weights=None, num_classes=300, init_weights=False).eval(), torch.rand(2, 3, 64, 64)


def flat(found):
    """(maps, H, W) of a list of stacks of maps."""
    return torch.cat([torch.as_tensor(m if torch.is_tensor(m) else np.asarray(m)).detach().reshape(-1, 64, 64) for m in found])


def test_torch_cam_is_asked_for_the_same_heatmaps(setting):
    model, images = setting
    configs = [Config("gradcam", "S1-S5"), Config("gradcam", "S1-S5", 0.0), Config("layercam", "S1-S5", 60.0)]
    mine, theirs = flat(peers.ours(model, images, configs, 2)), flat(peers.torch_cam(model, images, configs, 2))
    mine = mine.view(3, 2, 2, 64, 64).transpose(1, 2).reshape(-1, 64, 64)  # image, class -> class, image
    assert mine.shape == theirs.shape and mine.amax(dim=(1, 2)).min() > 0
    assert ((mine - theirs).abs().amax(dim=(1, 2)) <= 1e-4 * mine.amax(dim=(1, 2))).all()


def test_pytorch_grad_cam_and_captum_and_the_floor_do_the_work(setting):
    model, images = setting
    assert flat(peers.captum(model, images, peers.STAGES, 1)).shape == (10, 64, 64)
    assert flat(peers.pytorch_grad_cam(model, images, peers.STAGES, 1)).shape == (10, 64, 64)
    truncated = flat(peers.pytorch_grad_cam(model, images, [Config("layercam", "S1-S5", d) for d in (None, 20.0)], 1))
    assert truncated.shape == (4, 64, 64) and not torch.equal(truncated[:2], truncated[2:])
    bare = peers.floor(model, images, peers.STAGES, 2)
    assert [len(gradients) for gradients in bare] == [5, 5] and bare[0][0].shape == (2, 64, 32, 32)


def test_ratios_are_of_one_turn():
    times = [("t", name, turn, s, 1.0) for turn, row in enumerate([(9, 9), (1, 2), (1, 4), (1, 3)], -1) for name, s in
             zip(("floor", "ltcam"), row, strict=True)]  # fmt: skip
    table = peers.ratios(pd.DataFrame(times, columns=["task", "library", "turn", "seconds", "MB"])).set_index("library")
    assert table.loc["ltcam", ["over floor", "over floor, min", "over floor, max"]].tolist() == [3, 2, 4]
    assert table.loc["ltcam", "over ltcam"] == 1 and table.loc["ltcam", "seconds"] == 3
    assert table.loc["ltcam", "MB over floor"] == 1 and table.loc["floor", "over ltcam, max"] == 1 / 2


@pytest.fixture
def small():
    torch.manual_seed(0)
    return models.vgg16(300, weights=None, width=16, hidden=16).eval().requires_grad_(False).to(timing.DEVICE)


def called(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_peers_leave_tables_and_a_figure(monkeypatch, tmp_path, small):
    monkeypatch.setattr(peers, "vgg16", lambda weights: small)
    monkeypatch.setattr(peers, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    monkeypatch.setattr(peers, "LIBRARIES", {name: peers.LIBRARIES[name] for name in ("floor", "ltcam")})
    called(monkeypatch, peers, "--rounds", 1, "--batch", 2, "--size", 32, "--only", "a", "--out", tmp_path)
    peers._model.cache_clear()
    name = f"peers_{timing.DEVICE}"
    assert {p.name for p in tmp_path.iterdir()} == {
        *(f"{name}{end}" for end in (".csv", ".png", ".pdf", "_times.csv")),
        "provenance.json",
    }
    times = pd.read_csv(tmp_path / f"{name}_times.csv")
    assert times[["library", "turn"]].values.tolist() == [[lib, n] for n in (-1, 0) for lib in ("floor", "ltcam")]
    assert times["seconds"].min() > 0 and (times["MB"] > -1).all()  # the kernel counts pages a few late
    (tmp_path / f"{name}.png").unlink()
    called(monkeypatch, figure, "--out", tmp_path)
    assert (tmp_path / f"{name}.png").is_file()


def test_the_figure_shows_medians_ranges_and_the_floor():
    times = [("a: T", name, turn, s, 1.0) for turn, row in enumerate([(9, 9, 9), (1, 2, 4), (1, 2, 6), (1, 2, 10)], -1)
             for name, s in zip(("floor", "ltcam", "captum"), row, strict=True)]  # fmt: skip
    table = peers.ratios(pd.DataFrame(times, columns=["task", "library", "turn", "seconds", "MB"]))
    made = figure.figure(table, {"size": 32, "device": "cpu (x)", "threads": 2})
    (axes,) = made.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ltcam", "captum"] and axes.get_title("left") == "T"
    dashed, *_ = axes.get_lines()
    assert list(dashed.get_xdata()) == [0.5, 0.5] and axes.get_xscale() == "log"
    ranges = [(*bars.lines[0].get_xdata(), *bars.lines[2][0].get_segments()[0][:, 0]) for bars in axes.containers]
    assert ranges == [(1, 1, 1), (3, 2, 5)]
    plt.close(made)


def test_scale_has_a_number_a_round(monkeypatch, small):
    data = datasets.load("demo", "test")
    trained = Trained(
        models.vgg16(4, weights=None, width=16, hidden=8).eval().to(timing.DEVICE),
        Recipe(data="demo"),
        data.classes,
        (64, 64),
        {},
    )
    images = torch.rand(2, 3, 64, 64, device=timing.DEVICE)
    monkeypatch.setattr(scale, "FORTY", scale.FORTY[:2])
    whole = scale.end_to_end(trained, "test", 2, 2)
    assert [x.shape for x in whole.values()] == [(1,), (2,), (2,)] and (whole["images/s"] > 0).all()
    assert [x.shape for x in scale.added(small, images, 2).values()] == [(2,), (2,)]
    found = scale.table(slope=scale.slopes(small, images, 2))
    assert found["of"].tolist() == ["pixels", "batch", "classes", "deltas"]
    assert (found["min"] <= found["median"]).all() and (found["median"] <= found["max"]).all()


def test_ksdd2_is_extrapolated_from_steps_and_images_of_its_size(tmp_path):
    study, recipe = Study("paper", "ksdd2"), Recipe(data="ksdd2", **TINY)
    data, ways = ksdd2.noise(tmp_path, 2, (63, 23)), ksdd2.ways(study)
    assert len(data) == len(data.entries) == 2 and data.mask(0).sum() == 6 * 11 and {*map(Way, SEVEN.values())} <= {*ways}
    table = ksdd2.measured(study, recipe, data, 2, 2, ways[:3]).set_index("what")
    runs = 3 * 2  # seeds and settings
    steps, images = runs * recipe.epochs * -(-2331 // recipe.batch_size), runs * (246 + 110 + 1004)
    assert table["number"].tolist() == [steps, images] and (table["seconds"] > 0).all()
    assert np.allclose(table["hours"] * 3600, table["seconds"] * table["number"])


def test_devices_stand_side_by_side():
    table = beside.table()
    assert "cpu" in table and table.loc[("peers", "a: Grad-CAM at five stages floor", "over floor"), "cpu"] == 1


def test_a_slope_is_of_log_time(monkeypatch, small):
    monkeypatch.setattr(scale, "turns", lambda *works, rounds: np.array([[1.0, 3], [2, 3], [4, 3]]))
    assert np.allclose(scale.slopes(small, torch.rand(1, 3, 64, 64, device=timing.DEVICE), 2)["batch"], [1, 0])


def test_what_is_compiled_is_the_floor(small):
    images = torch.rand(2, 3, 64, 64, device=timing.DEVICE)
    (wanted,) = peers.bare(small, images, [0])
    found = scale.stage_gradients(small, images, scale.logits, [g.shape for g in wanted])
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs)


def test_compiling_is_measured_or_refused_in_one_line(monkeypatch, small, capsys):
    def fail(*_):
        raise TorchDynamoException("raised:\nInvalidCxxCompiler: none found\n\nSet TORCHDYNAMO_VERBOSE=1")

    images = torch.rand(1, 3, 32, 32, device=timing.DEVICE)
    monkeypatch.setattr(torch, "compile", lambda work: work)
    assert scale.compiled(small, images, 2)["eager over compiled"].shape == (2,)
    monkeypatch.setattr(torch, "compile", lambda work: fail)
    assert scale.compiled(small, images, 2) == {}
    assert capsys.readouterr().out == "torch.compile is not measured: raised: InvalidCxxCompiler: none found\n"


def test_floor_counts_and_compares(monkeypatch, tmp_path, small):
    monkeypatch.setattr(floor, "vgg16", lambda weights: small)
    monkeypatch.setattr(floor, "SIDE", 64)
    called(monkeypatch, floor, "--rounds", 1, "--batch", 1, "--out", tmp_path)
    table = pd.read_csv(tmp_path / f"floor_{timing.DEVICE}.csv")
    assert table["work"].tolist() == ["matrix product of 64 x 64", "bare forward and backward", "ltcam.trace"]
    assert table["of the matrix product"][0] == 1 and table["GFLOP/s"].min() > 0


MAPS = [Config("gradcam"), Config("layercam", "S1-S5", 0.0, normalize="tanh"), Config("hirescam", "S3-S5", None, fuse="prod")]
VIEWS = [Protocol(size=(96, 96)), Protocol(scales=(1.0, 1.5), flip=True)]


@pytest.fixture
def heads(study, monkeypatch):
    """Two trainings of a study, as if they had other heads, and a search of few tries."""
    monkeypatch.setattr(search, "maps", lambda: MAPS)
    for name, value in {"REFINES": [Refine("S4-S5", 8)], "VIEWS": VIEWS, "BEST": 1, "MORE": "train/6"}.items():
        monkeypatch.setattr(search, name, value)
    first, second = study.load("seed0"), study.load("seed1")
    return [first, replace(second, recipe=replace(second.recipe, head="gap"))]


def test_every_try_of_the_search_is_a_row_with_the_scores_of_its_protocol(heads, tmp_path, monkeypatch):
    opened, load = [], Segmentation.__getitem__
    monkeypatch.setattr(Segmentation, "__getitem__", lambda data, index: opened.append(data.part) or load(data, index))
    monkeypatch.setattr(
        search, "Config", lambda method: Config("gradcam" if method == "cam" else method)
    )  # it has no such head
    table = search.search(heads, tmp_path)
    assert {part.split("/")[0] for part in opened} == {"train"}  # nothing of the held-out part
    assert table["round"].drop_duplicates().tolist() == ["maps", "refine", "views", "head", "beside", "more"]
    assert (table["round"] == "maps").sum() == len(MAPS) and set(table["head"]) == {"fc", "gap"}
    tries = search.of_table(table)
    assert len({(name, *one) for name, one in zip(table["round"], tries, strict=True)}) == len(table)
    for row, (head, protocol, config) in list(zip(table.to_dict("records"), tries, strict=True))[::4]:
        trained = heads[head == "gap"]
        assert trained.sha256.startswith(row["checkpoint"]) and len(row["checkpoint"]) == 12
        (tally,) = seeds.of_checkpoint(trained, row["part"], [config], protocol).values()
        assert (row["argmax"], row["t"]) == pytest.approx((tally.curve().max(), tally.curve().idxmax()), rel=1e-3)
        assert row["otsu"] == pytest.approx(tally.class_mean(), abs=0.1)  # a pixel at the threshold
    last, known = table[table["round"] == "more"], search._Log(tmp_path, {t.recipe.head: t for t in heads})
    assert set(search.of_table(last)) == set(known.best("maps", "refine", "views", "head", "beside"))
    for score, one in search.chosen(table).items():
        assert one == search.of_table(last.loc[[last[score].idxmax()]])[0]
    views = set(search.of_table(table[table["round"] == "views"]))
    assert views == {(head, view, config) for head, _, config in known.best("maps", "refine") for view in VIEWS}


def test_a_search_goes_on_where_it_stopped_with_the_same_checkpoint_alone(heads, tmp_path, monkeypatch):
    first, other = heads
    whole = search.search([first], tmp_path / "whole")
    calls, third = at_call(3, search.scored)
    monkeypatch.setattr(search, "scored", third)
    with pytest.raises(KeyboardInterrupt):
        search.search([first], tmp_path / "cut")
    search.search([first], tmp_path / "cut")
    one, two = (pd.read_csv(tmp_path / name / "search.csv").drop(columns="cpu_seconds") for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(one, two)
    before = len(calls)
    search.search([first], tmp_path / "cut")
    assert len(calls) == before and len(whole) == len(two)
    content = (tmp_path / "cut" / "search.csv").read_bytes()
    with pytest.raises(InputError, match=rf"search\.csv has tries of other checkpoints, .*{first.sha256[:12]}.*another --out"):
        search.search([replace(other, recipe=first.recipe)], tmp_path / "cut")
    assert (tmp_path / "cut" / "search.csv").read_bytes() == content


def test_what_lies_beside_a_refinement_differs_in_one_field():
    how = Refine("S3-S5", 28, 4, 2)
    found = search.beside(how)
    assert len(found) == len(set(found)) == 7 and how not in found
    assert all(sum(a != b for a, b in zip(astuple(how), astuple(other), strict=True)) == 1 for other in found)
    assert {other.power for other in found} == {2, 4, 8} and {other.steps for other in found} == {2, 3, 4}
    assert len(search.beside(Refine("S3-S5", 28, 4, 1))) == 6  # one step more is twice as many


def test_the_grid_holds_only_what_can_differ_and_the_committed_tries_are_of_it():
    grid = search.maps()
    assert len(grid) == len(set(grid)) > 150 and {c.method for c in grid} >= {"gradcam", "fullgrad", "layercam", "sim"}
    table = search.read(files.ROOT / "results/paper/voc2012/search")
    assert set(configurations(table[table["round"] == "maps"])) >= set(grid)
    refined = {config.refine for config in configurations(table[table["round"] == "refine"])}
    assert refined == set(search.REFINES)
