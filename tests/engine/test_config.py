"""A configuration: its text, what it refuses, and the readings of Eq. 9 worked out by hand."""

import dataclasses
import re
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltcam import METHODS, Config, Refine, explain, trace, truncate
from ltcam.engine.cam import layer_maps, maps_of
from ltcam.engine.config import READINGS, refine_of, refine_text
from ltcam.engine.methods import gradcam
from ltcam.engine.tricks import By, Scope
from ltcam.errors import InputError

REFINES = [None, Refine(), Refine("S5", 14, 0.5, 2, "times"), Refine("a.b", 56, 4.0, 3, "floor")]
TEXTS = {
    "gradcam": Config(),
    "gradcam:S1-S5": Config("gradcam", "S1-S5"),
    "gradcam:S5:20": Config("gradcam", "S5", 20),
    "fullgrad:all:0": Config("fullgrad", "all", 0.0),
    "layercam:S1+features.9+S4-S5:12.5": Config("layercam", ("S1", "features.9", "S4-S5"), 12.5),
    "layercam:S1-S5:0,normalize=tanh,refine=S3-S5": Config("layercam", "S1-S5", 0, normalize="tanh", refine=Refine()),
    "layercam:S5,refine=S5:14:4:2:floor": Config("layercam", refine=Refine("S5", 14, 4.0, 2, "floor")),
    "gradcam:S5:20,compare=gt,fraction=0.35": Config("gradcam", "S5", 20, compare="gt", fraction=0.35),
    "fullgrad:all,align_corners=True,per_channel=True": Config("fullgrad", "all", align_corners=True, per_channel=True),
    "gradcam:S1-S5:20,by=absolute values": Config("gradcam", "S1-S5", 20, by="absolute values"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_and_its_configuration(text):
    config = TEXTS[text]
    assert Config.parse(text) == config == Config.parse(str(config))
    assert str(config) == {"gradcam": "gradcam:S5"}.get(text, text.replace("refine=S3-S5", "refine=S3-S5:28:8:1"))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.builds(
        Config, st.sampled_from(["gradcam", "layercam", "sim"]),
        st.sampled_from(["S5", "S1-S5", "all", ("S1", "layer.3"), ["S2"]]), st.floats(0, 99.9),
        st.sampled_from(["layer", "channel"]), st.sampled_from(["ge", "gt"]),
        st.sampled_from(["sum", "max", "mean", "prod"]), st.sampled_from(["none", "max", "minmax", "tanh"]),
        st.none() | st.floats(0, 0.99), st.sampled_from(REFINES), st.booleans(),
    )
)  # fmt: skip
def test_every_configuration_comes_back_from_its_text(config):
    assert Config.parse(str(config)) == config and hash(Config.parse(str(config))) == hash(config)


def test_it_is_a_key_and_varies_by_replace():
    one, other = Config("gradcam", ["S1", "S5"], 20), Config("gradcam", ("S1", "S5"), 20.0)
    assert (
        {one: 1}[other] == 1
        and Config(layers=("S5",)) == Config()
        and Config(layers=None).layers == "all"
        and one.layers == ("S1", "S5")
    )
    assert dataclasses.replace(one, delta=None) == Config("gradcam", ("S1", "S5"))
    assert Config(fuse="max", normalize="max").fusion == ("max", "max", False)
    assert Config(fuse="max", normalize="max", refine=Refine(), align_corners=True).fusion == ("sum", "none", True)


@pytest.mark.parametrize(
    "text",
    ["", "gradcam:", "gradcam::20", ":S5", "gradcam:S5:x", "gradcam:S5:20:1", "gradcam,per", "gradcam,per=layer=x",
     "gradcam,x=1", "gradcam,method=sim", "gradcam,fraction=x", "gradcam,align_corners=1", "gradcam,refine=S5:x",
     "gradcam,refine=S5:28:8:1:times:"],
)  # fmt: skip
def test_what_is_no_configuration(text):
    with pytest.raises(
        InputError, match=r"is not a configuration: expected METHOD|is unknown: expected|layers=|no way to spread a map"
    ):
        Config.parse(text)


def test_what_a_bad_text_is_told():
    with pytest.raises(
        InputError, match=re.escape("'gradcam:S5:x' is not a configuration: expected METHOD[:LAYERS[:DELTA]], e.g.")
    ):
        Config.parse("gradcam:S5:x")
    with pytest.raises(InputError, match=r"delta=120\.0 is no percentile"):
        Config.parse("gradcam:S5:120")
    with pytest.raises(InputError, match=re.escape("refine='S5:2.5' is no way to spread a map: expected LAYERS[:SIZE")):
        Config.parse("gradcam,refine=S5:2.5")
    with pytest.raises(InputError, match="refine's then='twice' is unknown"):
        Config.parse("gradcam,refine=S5:28:8:1:twice")


@pytest.mark.parametrize("how", REFINES[1:])
def test_a_refine_comes_back_from_its_text(how):
    assert refine_of(refine_text(how)) == how


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "scam"}, "method 'scam' is unknown"),
        ({"layers": ()}, "layers=(): expected a name"),
        ({"layers": ("S1", 2)}, "layers=('S1', 2): expected"),
        ({"delta": 100}, "delta=100 is no percentile"),
        ({"delta": True}, "delta=True is no percentile"),
        ({"fraction": 1.0}, "fraction=1.0 is no part of the maximum: expected None (Otsu) or a number in [0, 1)"),
        ({"fraction": "0.5"}, "fraction='0.5' is no part"),
        ({"refine": "S3-S5"}, "refine='S3-S5': expected ltcam.Refine(...), or None"),
        ({"by": "eye", "delta": 20}, "by='eye' is unknown: expected one of percentile, fraction of the maximum, all values,"),
        ({"by": "all values"}, "by='all values', compare='ge' without delta cuts nothing"),
        ({"by": "fraction of the maximum"}, "by='fraction of the maximum', compare='ge' without delta cuts nothing"),
        (
            {"by": "all values", "delta": 20, "per": "channel"},
            "by='all values' needs a method other than fullgrad, per=",
        ),
        ({"by": "all values", "delta": 20, "compare": "gt"}, "by='all values' needs"),
        ({"by": "all values", "delta": 20, "method": "fullgrad"}, "by='all values' needs"),
    ],
)
def test_what_is_refused(wrong, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Config(**wrong)


# Two channels of 2 x 2: what each reading keeps, worked out by hand. A's signs tell A times G from G.
A = torch.tensor([[[[1.0, -1.0], [2.0, 1.0]], [[1.0, 1.0], [-1.0, 3.0]]]])
G = torch.tensor([[[[1.0, 2.0], [-3.0, 0.0]], [[4.0, -5.0], [6.0, 0.5]]]])
KEPT = {
    # in order -5 -3 0 0.5 1 2 4 6: ceil(7 * 50 / 100) = 4, so at or above 1
    ("all values", 50): [[[1, 1], [0, 0]], [[1, 0], [1, 0]]],
    # ceil(7 * 20 / 100) = 2, so at or above 0: no negative one, but a zero
    ("all values", 20): [[[1, 1], [0, 1]], [[1, 0], [1, 1]]],
    # in order 0 0.5 1 2 3 4 5 6, 5th: magnitudes at or above 3 are a threshold for the values themselves
    ("absolute values", 50): [[[0, 0], [0, 0]], [[1, 0], [1, 0]]],
    # means of the positive parts: 3 / 4 and 10.5 / 4; ceil(1 * 50 / 100) = 1, so the second channel alone
    ("positive channel weights", 50): [[[0, 0], [0, 0]], [[1, 0], [1, 1]]],
    ("positive channel weights", 0): [[[1, 1], [0, 0]], [[1, 0], [1, 1]]],
    # A G = 1 -2 -6 0, 4 -5 -6 1.5: of the positive 1 1.5 4 ceil(2 * 50 / 100) = 1, so at or above 1.5
    ("positive activation times gradient", 50): [[[0, 0], [0, 0]], [[1, 0], [0, 1]]],
}  # fmt: skip


@pytest.mark.parametrize(("reading", "delta"), KEPT)
def test_readings_by_hand(reading, delta):
    both = READINGS[reading](torch.cat([A, A]), torch.cat([G, 10 * G]), float(delta))  # each pair has its own threshold
    assert both.dtype == torch.bool
    for kept in both:
        assert kept.int().tolist() == KEPT[reading, delta]


def test_a_fraction_of_the_maximum_by_hand():
    """Of the layer: half of 6. Of each channel: half of 2 and of 6. Without a positive value nothing is kept."""
    cut = lambda g, delta, *rest: truncate(g, delta, *rest, by="fraction of the maximum").tolist()  # noqa: E731
    assert cut(G, 50) == [[[[0, 0], [0, 0]], [[4, 0], [6, 0]]]]
    assert cut(10 * G, 50) == [[[[0, 0], [0, 0]], [[40, 0], [60, 0]]]]  # each pair has its own maximum
    assert cut(G, 50, "channel") == [[[[1, 2], [0, 0]], [[4, 0], [6, 0]]]]
    assert cut(G, 50, "channel", "gt") == [[[[0, 2], [0, 0]], [[4, 0], [6, 0]]]]
    assert cut(G, 0) == truncate(G, 0).tolist() and cut(G, 99) == [[[[0, 0], [0, 0]], [[0, 0], [6, 0]]]]
    assert cut(-G.abs() - 1, 0) == cut(-G.abs() - 1, 50) == torch.zeros_like(G).tolist()


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++", "fullgrad"])
def test_one_count_serves_both_readings(tiny, images, method):
    """What many configurations share gives what each of them gives alone."""
    traced = trace(tiny, images, [[0, 2], [1], [3]], fullgrad=True)
    configs = [
        Config(method, "all", delta, per, by=by)
        for by, per, delta in product(get_args(By), get_args(Scope), (0.0, 20.0, 60.0, 99.0))
    ]
    together = maps_of(traced, configs)
    for config in configs:
        for layer, own in layer_maps(traced, config).items():
            torch.testing.assert_close(together[config][layer], own, rtol=1e-4, atol=1e-5 * float(own.max()))


def test_readings_are_all_worked_out_and_what_explain_does(tiny, images):
    assert {name for name, _ in KEPT} == set(READINGS)
    traced = trace(tiny, images, [[0, 2], [1], [3]])
    found = []
    for reading, delta in product(READINGS, (20.0, 60.0)):
        found.append(explain(traced, "gradcam", "S4", delta, (4, 4), by=reading))
        a, g = traced.activation("features.23"), traced.gradient("features.23")
        assert torch.equal(found[-1], gradcam(a, torch.where(READINGS[reading](a, g, delta), g, 0)))
    plain = explain(traced, "gradcam", "S4", 20.0, (4, 4))
    assert all(not torch.equal(m, plain) for m in found) and set(METHODS) > {"gradcam"}
