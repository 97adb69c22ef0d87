"""Crops, borders and the size of a defect: end to end on a look-alike, each number against `explain`, and by hand."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from skimage.filters import threshold_otsu

from ltcam import explain, files, paper, trace
from ltcam.data import preprocess
from ltcam.engine.config import Config
from ltcam.experiment import scores
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.study import Study
from ltcam.paper import RESULTS, SEVEN, defects, make, registry, shares
from ltcam.paper.tables import published
from ltcam.show import figures, heatmaps
from tests import lookalikes
from tests.conftest import TINY
from tests.paper import made

MINE = ("border", "crops", "defects", "gain_by_share")
SECOND = {"cuts", "shares", "sweep_share", "claims_share", "clean"}  # of profiles with a second cut
TOY = {
    "profile": "toy", "data": "ksdd2", "seeds": [0, 1], "recipe": {"train": "train", "test": "test", **TINY, "epochs": 1},
    "tiles": 80,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Images of 46 x 126 in crops of 80: three of 46 x 80 each. Training images choose between two shares."""
    root = tmp_path_factory.mktemp("views")
    for path in lookalikes.ksdd2(root / "data").rglob("*.png"):
        Image.open(path).resize((46, 126), Image.Resampling.NEAREST).save(path)
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "notebooks" / "profiles" / "toy.ksdd2.yaml").write_text(yaml.safe_dump(TOY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(root / "data"))
        patch.setenv("LTCAM_OUTPUT", str(root))
        patch.setattr(files, "NOTEBOOKS", root / "notebooks")
        patch.setattr(shares, "SHARES", (0.2, 0.5))
        patch.setattr(scores.draws, "__defaults__", (40,))
        found = Study("toy", "ksdd2")
        found.train()
        for name in (*MINE, "clean"):
            make(name, found)
        yield found


def test_the_tables_are_made_again_from_what_is_kept(study):
    kept = Study("toy", "ksdd2", kept=True)
    (study.out / "counts.sqlite").rename(study.out / "gone")
    try:
        for name in (*MINE, "clean"):
            make(name, kept)
            assert kept.made[name] == study.made[name] == (study.out / RESULTS[name].file).read_bytes()
    finally:
        (study.out / "gone").rename(study.out / "counts.sqlite")


def test_each_defect_is_scored_in_every_view_by_itself(study):
    """The rows of an image, against `explain` of the image and of each crop at its own size, cut by scikit-image."""
    table, model = make("defects", study), study.trained.model
    index = study.test.scored[0]
    sample, entry = study.test[index], study.test.entries[index]
    own = table[table["name"] == entry.name].set_index(["crop", "row"])
    assert own.index.unique("crop").tolist() == ["whole", "0 0", "40 0", "46 0"] and (own["group"] == entry.name).all()
    assert own["views"].to_numpy() == pytest.approx(3 * 80 * 46 / 64**2) and len(table) == 4 * 3 * len(study.test.scored)
    for crop in own.index.unique("crop"):
        top = None if crop == "whole" else int(crop.split()[0])
        rows = slice(top, top if top is None else top + 80)
        image, mask = sample.image[:, rows], sample.mask[rows].numpy() == 1
        traced = trace(model, preprocess(image, (64, 64) if top is None else (80, 46))[None], 0)
        for row in defects.GAINS:
            config = SEVEN[row]
            heat = explain(traced, config.method, config.layers, config.delta, mask.shape)[0].double().numpy()
            claimed = heat > threshold_otsu(heat)
            found = own.loc[(crop, row)]
            assert found["tp"] + found["fn"] == mask.sum() and found["area"] == pytest.approx(100 * mask.mean())
            assert abs(found["tp"] - (claimed & mask).sum()) + abs(found["fp"] - (claimed & ~mask).sum()) <= 2


def test_the_classes_of_a_crop_are_those_that_it_shows(trained):
    """Two objects of 18 x 18 in 60 x 45, in rows 36 to 53 and 11 to 28: the upper crops show 4 rows of one, the lower 9 of the
    other."""
    sample = next(s for s in trained.load("val") if s.label.sum() == 2 and s.mask.shape == (60, 45))
    found = defects._in_views(trained, sample, Protocol(), 40)
    first, second = sample.label.nonzero().flatten().tolist()
    crops = [f"{top} {left}" for top in (0, 20) for left in (0, 5)]
    expected = [(crop, c, row) for crop in ("whole", *crops) for c in (first, second) for row in defects.GAINS]
    assert [(crop, c, row) for crop, c, _, row, *_ in found] == expected
    pixels = {(crop, c): tp + fn for crop, c, _, _, tp, _, fn, _ in found}
    assert pixels["whole", first] == pixels["whole", second] == pixels["0 5", second] == pixels["20 0", first] == 18 * 18
    assert pixels["0 0", first] == 18 * 4 and pixels["20 5", second] == 18 * 9
    assert {row[-1] for row in found} == {4 * 40 * 40 / 64**2}


def test_crops_stand_beside_the_single_view_of_the_first_seed(study):
    table, config = make("crops", study).set_index(["cut", "row"]), SEVEN["Grad-CAM"]
    tiles = Protocol(8, tiles=80)
    one, many = (scores.scores(study.counts(SEVEN.values(), protocol=p, seeds=1))["IoU"].tolist() for p in (None, tiles))
    assert table.loc["otsu", "single"].tolist() == pytest.approx(one, abs=1e-3)
    assert table.loc["otsu", "value"].tolist() == pytest.approx(many, abs=1e-3)
    assert (table["change"] - table["value"] + table["single"]).abs().max() < 1e-3
    assert table["views"].to_numpy() == pytest.approx(3 * 80 * 46 / 64**2, rel=1e-4) and len(table) == 14
    assert table.loc["share", "single"].tolist() != one
    cut = Config("gradcam", fraction=shares.chosen(study, "seed0")[config])
    for column, protocol in (("single", None), ("value", tiles)):
        expected = scores.scores(study.counts([cut], protocol=protocol, seeds=1))["IoU"].item()
        assert table.loc[("share", "Grad-CAM"), column] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(Exception, match="seed1 has no counts"):
        Study("toy", "ksdd2", kept=True).of_training("seed1", [config], protocol=tiles)


def test_a_border_is_compared_with_none(study):
    table = make("border", study).set_index(["border", "row"])
    assert table.index.unique("border").tolist() == ["none", "reflected", "masked"] and len(table) == 21
    for how in ("reflected", "masked"):
        own = scores.scores(study.counts(SEVEN.values(), protocol=Protocol(8, border=how), seeds=1))["IoU"]
        assert table.loc[how, "value"].tolist() == pytest.approx(own.tolist(), abs=1e-3)
        assert (table.loc[how, "change"] - table.loc[how, "value"] + table.loc["none", "value"]).abs().max() < 1e-3
    assert table.loc["none", "change"].isna().all()


def measured(data, gains, groups=6):
    """A `defects` table: objects of 1, 2, ... % in one view, of which Grad-CAM and Layer-CAM find half, and LTGrad-CAM more."""
    rows = []
    for n, gain in enumerate(gains):
        for row, tp in zip(defects.GAINS, (50 + gain, 50, 50 - gain), strict=True):
            rows.append([f"i{n}", f"g{n % groups}", "whole" if n % 2 else "0 0", 0, 1.0 + n, row, tp, 0, 100 - tp, 1.0])
    columns = ["name", "group", "crop", "class", "area", "row", "tp", "fp", "fn", "views"]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False).encode()


def test_gains_by_share_by_hand(few, tmp_path, monkeypatch):
    """Ten objects, two a fifth, the larger the more is gained: 1 to 10 points over Grad-CAM, twice that over Layer-CAM."""
    monkeypatch.setattr(defects, "profile", lambda name: {"ksdd": {}})
    monkeypatch.setattr(defects, "make", lambda name, own: pd.read_csv(own.made[name]))
    (tmp_path / "defects").write_bytes(measured("ksdd", range(1, 11)))
    own = SimpleNamespace(data="ksdd", profile="real", title="K", out=tmp_path, made={"defects": tmp_path / "defects"})
    table = defects.gain_by_share(own)
    every = table[(table["of"] == "all") & (table["over"] == "Grad-CAM")]
    assert every["value"].tolist() == pytest.approx([1.5, 3.5, 5.5, 7.5, 9.5])
    assert every["area"].tolist() == [1.5, 3.5, 5.5, 7.5, 9.5] and set(every["defects"]) == {2}
    over = table[(table["of"] == "all") & (table["over"] == "Layer-CAM(l=5, δ=0)")]
    assert over["value"].tolist() == pytest.approx([3, 7, 11, 15, 19])
    assert (every["ci_low"] <= every["value"]).all() and (every["ci_low"] < every["ci_high"]).all()
    parts = table[table["over"] == "Grad-CAM"].groupby("of", sort=False)["value"].apply(list)
    assert parts["one view"] == pytest.approx([2, 4, 6, 8, 10]) and parts["crops"] == pytest.approx([1, 3, 5, 7, 9])


def test_the_data_sets_before_are_pooled(few, tmp_path, monkeypatch):
    """One group in two data sets is two groups, and one image two images. A set that is not measured is left out."""
    sets = {name: SimpleNamespace(data=name, profile="real", title=name.upper(), out=tmp_path / name) for name in "abc"}
    monkeypatch.setattr(defects, "profile", lambda name: dict.fromkeys("abcd"))
    monkeypatch.setattr(defects, "Study", lambda profile, data, kept: sets[data])
    monkeypatch.setattr(defects, "make", lambda name, own: pd.read_csv(own.out / RESULTS["defects"].file, compression=None))
    for name, gain in (("a", 10), ("c", 20)):
        files.write(tmp_path / name / RESULTS["defects"].file, measured(name, [gain] * 5).decode())
    table = defects.gain_by_share(sets["c"])
    every = table[(table["of"] == "all") & (table["over"] == "Grad-CAM")]
    assert every["defects"].sum() == 10 and every["value"].tolist() == pytest.approx([15] * 5)
    assert set(table["data"]) == {"A and C"}
    first = defects.gain_by_share(sets["a"])
    assert set(first["data"]) == {"A"} and first.query("of == 'all'")["defects"].sum() == 10  # 5 over each method


def test_the_figure_has_bands_and_the_papers_gains(few, tmp_path):
    rows = [
        {"of": of, "over": row, "area": area, "value": 5.0 * n, "ci_low": 5.0 * n - 1, "ci_high": 5.0 * n + 2, "data": "K"}
        for of in ("all", "crops") for row in defects.OTHERS for n, area in enumerate((0.1, 1.0, 10.0))
    ]  # fmt: skip
    own = made.study()
    own.settings = own.settings | {"tiles": 320}
    own.out, own.made = tmp_path, {"gain_by_share": pd.DataFrame(rows).to_csv(index=False).encode()}
    (axes,) = figures.gain_by_share(own).axes
    curves, dashed = axes.lines[:2], axes.lines[2:]
    assert [line.get_ydata().tolist() for line in curves] == [[0, 5, 10]] * 2 and axes.get_xscale() == "log"
    printed = published(4)["mIoU"]
    gains = [printed["LTGrad-CAM(l=5, δ=20)"] - printed[row] for row in ("Grad-CAM", "Layer-CAM(l=5, δ=0)")]
    assert [line.get_ydata()[0] for line in dashed] == pytest.approx(gains)
    assert [line.get_color() for line in curves] == [line.get_color() for line in dashed] and len(axes.collections) == 2
    assert np.ptp(axes.collections[0].get_paths()[0].vertices[:, 1]) == pytest.approx(13)  # from -1 to 12
    plt.close("all")


def test_nothing_is_measured_for_other_tables_than_those_of_defects(study):
    assert all(RESULTS[name].tables == (4,) and RESULTS[name].losses == ("sigmoid",) for name in MINE)


def test_a_profile_without_a_second_cut_has_none_of_its_tables_and_chooses_no_share(study, monkeypatch):
    """Its crops are cut at Otsu's threshold alone, with the same numbers, and a figure shows one mask."""
    assert {name for name, own in RESULTS.items() if own.setting == "second_cut"} == SECOND <= {*registry.names(study)}

    def titled(study):
        drawn = figures.compared(study, {"a": SEVEN["Grad-CAM"]}, heatmaps.examples(study.test, 1), "a")
        return [panel.get_title()[:5] for panel in drawn.axes]

    both, own = make("crops", study), Study("toy", "ksdd2", kept=True)
    assert "above" in titled(study)
    own.settings = own.settings | {"second_cut": False}
    monkeypatch.setattr(shares, "chosen", lambda *_: pytest.fail("a share was chosen"))
    monkeypatch.setattr(registry, "measure", lambda *_: pytest.fail("something was measured"))
    pd.testing.assert_frame_equal(make("crops", own), both[both["cut"] == "otsu"].reset_index(drop=True))
    assert SECOND.isdisjoint(registry.names(own)) and {*MINE} < {*registry.names(own)}
    shares.thin(own)
    assert "above" not in titled(own)
    plt.close("all")


def test_the_notebook_shows_clean_images_where_they_are_scored(study):
    table = make("clean", study)
    sure, methods = made.run("11", '"clean" in', study=study, paper=paper, cuts={"otsu": "Otsu's threshold"})
    assert sure["AUROC (%)"].tolist() == table["AUROC"][:1].tolist() and len(sure) == 1
    assert len(methods) == len(table) - 1 == 4 * len(SEVEN) and {*methods["gated"]} == {"yes", "no"}
    assert methods["IoU (%)"].tolist() == table["IoU"][1:].tolist() and methods["cut"].iloc[0] == "Otsu's threshold"


@pytest.mark.parametrize("side", [None, 320])
def test_a_profile_without_a_side_has_no_tables_of_crops(side):
    study = made.study()
    study.settings = study.settings | {"tiles": side}
    assert {"border", "crops", "defects", "gain_by_share"}.isdisjoint(registry.names(study)) == (side is None)
