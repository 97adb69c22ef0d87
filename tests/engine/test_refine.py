"""Spreading a map along the trace's own features: by hand, against numpy, and what must hold."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltcam import CAM, Config, Refine, explain, trace
from ltcam.engine.cam import layer_maps, maps_of
from ltcam.engine.refine import refine, similarity
from ltcam.engine.trace import Trace
from ltcam.engine.views import Maps
from ltcam.errors import InputError
from ltcam.experiment.vgg16 import vgg16

HOW = Refine("S3-S5", 8)


def handmade(features, pairs, size):
    named = {f"l{i}": f for i, f in enumerate(features)}
    labels = {f"S{i}": name for i, name in enumerate(named, 1)}
    return Trace(
        torch.tensor(pairs),
        torch.zeros(len(features[0]), 3),
        list(named),
        labels,
        size,
        _kept={n: (f, f) for n, f in named.items()},
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vgg16(4, weights=None, hidden=16, width=16).eval()


@pytest.fixture(scope="module")
def traced(model):
    return trace(
        model, torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1)), [[0, 2], [1], [0, 1, 3]], None, True
    )


def test_by_hand():
    """Two places of cosine 0.6 and one at right angles to the first: their squares are 0.36, and 0.64 to the second."""
    features = torch.tensor([[[[2.0, 3.0, 0.0]], [[0.0, 4.0, 5.0]]]])  # (1, 0), (0.6, 0.8), (0, 1)
    t = handmade([features], [[0, 0], [0, 1]], (1, 3))
    how = Refine("S1", 2, 2.0)  # 2 x 2 places in the images' aspect: 1 x 3
    assert how.grid((1, 3)) == (1, 3)
    rows = torch.tensor([[1, 0.36, 0], [0.36, 1, 0.64], [0, 0.64, 1]])
    rows = rows / rows.sum(dim=1, keepdim=True)
    torch.testing.assert_close(similarity(t, how)[0], rows)
    maps = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 2.0]]])
    expected = torch.tensor([[[1 / 1.36, 0.36 / 2, 0]], [[0.36 / 1.36, (1 + 1.28) / 2, 2.64 / 1.64]]])
    torch.testing.assert_close(refine(maps, t, how), expected)
    torch.testing.assert_close(refine(maps, t, replace(how, then="times")), expected * maps)
    floor = torch.tensor([0.0, 0.36 / 1.36])[:, None, None]
    torch.testing.assert_close(refine(maps, t, replace(how, then="floor")), expected - floor)
    torch.testing.assert_close(refine(maps, t, replace(how, steps=2)), refine(expected, t, how))


def test_against_numpy(traced):
    maps = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(2))
    height, width = HOW.grid(traced.size)
    assert (height, width) == (7, 10)  # about 64 places of 64 x 96
    small = [
        torch.nn.functional.interpolate(v[:, None], (height, width), mode="bilinear", antialias=True)[:, 0].flatten(1)
        for v in (maps, *(f.flatten(0, 1) for f in map(traced.features, traced.select("S3-S5"))))
    ]
    heat, stages = small[0].double().numpy(), [f.view(3, -1, height * width).double().numpy() for f in small[1:]]
    for power, steps in ((8.0, 1), (0.5, 3)):
        found = refine(maps, traced, replace(HOW, power=power, steps=steps)).flatten(1).numpy()
        for p, image in enumerate(traced.pairs[:, 0].tolist()):
            cosines = [
                f[image].T @ f[image] / np.outer(*[np.linalg.norm(f[image], axis=0)] * 2)  # (n, n)
                for f in stages
            ]
            weights = np.maximum(np.mean(cosines, axis=0), 0) ** power
            expected = np.linalg.matrix_power(weights / weights.sum(axis=1, keepdims=True), steps) @ heat[p]
            np.testing.assert_allclose(found[p], expected, rtol=1e-4, atol=1e-6)


def test_a_spread_map_stays_within_its_range_and_a_constant_one_as_it_is(traced):
    maps = torch.rand(6, *HOW.grid(traced.size), generator=torch.Generator().manual_seed(2))
    spread = refine(maps, traced, HOW)
    least, most = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    assert ((spread >= least - 1e-6) & (spread <= most + 1e-6)).all() and spread.std() < maps.std()
    torch.testing.assert_close(refine(torch.full_like(maps, 0.3), traced, HOW), torch.full_like(maps, 0.3))
    alone = refine(maps, traced, replace(HOW, power=1e6))  # nothing is as similar as a place to itself
    torch.testing.assert_close(alone, maps, atol=1e-4, rtol=0)


def test_places_without_features_and_negative_features():
    features = torch.tensor([[[[0.0, 1.0, -1.0]], [[0.0, 1.0, -1.0]]]])
    t = handmade([features], [[0, 0]], (1, 3))
    torch.testing.assert_close(similarity(t, Refine("S1", 2, 0.5))[0], torch.eye(3))
    maps = torch.tensor([[[3.0, 1.0, 2.0]]])
    torch.testing.assert_close(refine(maps, t, Refine("S1", 2)), maps)


@pytest.mark.parametrize(
    ("size", "grid"), [((224, 224), (28, 28)), ((640, 232), (47, 17)), ((232, 640), (17, 47)), ((1, 10000), (1, 2800))]
)
def test_the_grid_has_the_images_aspect_and_about_784_places(size, grid):
    assert Refine().grid(size) == grid


def test_explain_refines_the_fused_map(traced):
    maps = explain(traced, "layercam", "S2-S5", 20, size=(16, 24), normalize="tanh")  # the size of S2
    expected = refine(maps, traced, HOW)
    found = explain(traced, "layercam", "S2-S5", 20, size=HOW.grid(traced.size), normalize="tanh", refine=HOW)
    assert torch.equal(found, expected) and not torch.equal(found, explain(traced, "layercam", "S2-S5", 20, (7, 10)))
    assert explain(traced, "layercam", refine=HOW).shape == (6, 64, 96)
    for name in ("gradcam", "fullgrad"):
        assert explain(traced, name, refine=HOW).isfinite().all()


def test_a_batch_is_refined_as_one_by_one(model, traced):
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    together = explain(traced, "layercam", refine=HOW)
    for p, (i, c) in enumerate(traced.pairs.tolist()):
        alone = explain(trace(model, images[i : i + 1], c), "layercam", refine=HOW)[0]
        torch.testing.assert_close(together[p], alone, atol=1e-4 * float(alone.max()), rtol=1e-3)


def test_maps_of_gives_what_explain_gives_and_compares_features_once(traced, monkeypatch):
    made = []
    monkeypatch.setattr("ltcam.engine.cam.similarity", lambda t, how: made.append(how) or similarity(t, how))
    hows, layers = (None, HOW, replace(HOW, steps=2)), ("S5", "S1-S5")
    configs = [
        Config(m, at, d, refine=how)
        for m in ("layercam", "fullgrad", "gradcam")
        for d in (None, 20.0)
        for how in hows
        for at in layers
    ]
    configs += [Config("layercam", at, 20.0, fuse="prod", normalize="tanh", refine=HOW) for at in layers]
    found = maps_of(traced, configs)
    assert made == [*hows[1:]]
    for config, maps in found.items():
        expected = layer_maps(traced, config)
        assert list(maps) == list(expected) and (config.refine is None or len(maps) == 1)
        for name, m in maps.items():
            scale = expected[name].amax().clamp(min=1e-30)
            torch.testing.assert_close(m / scale, expected[name] / scale, atol=1e-5, rtol=0)
    both = dict([*found.items()][2:4])  # two selections of one way in one group
    ((group, heat),) = Maps(traced.pairs, traced.logits, both).heatmaps([0, 3], (9, 9))
    for config, maps in zip(group, heat, strict=True):
        expected = explain(traced, "layercam", config.layers, size=(9, 9), refine=HOW)[[0, 3]]
        torch.testing.assert_close(maps, expected, atol=1e-6 * float(expected.max()), rtol=1e-4)
    assert not torch.equal(*heat)


def test_the_cam_object_takes_it(model):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = CAM(model, method="layercam", refine=HOW)(image, [2])
    expected = explain(trace(model, image, 2), "layercam", refine=HOW)
    torch.testing.assert_close(found, expected / expected.amax())


def test_a_loss_of_a_refined_map_reaches_the_weights(model):
    weight = model.features[0].weight
    traced = trace(model, torch.randn(1, 3, 64, 64), 2, create_graph=True)
    (gradient,) = torch.autograd.grad(explain(traced, "layercam", refine=HOW).sum(), weight)
    assert gradient.isfinite().all() and gradient.any()


def test_bfloat16_features_are_compared_in_float32(traced):
    half = replace(traced, _kept={n: (traced.features(n).bfloat16(), traced.gradient(n)) for n in traced.layers})
    assert similarity(half, HOW).dtype == torch.float32
    torch.testing.assert_close(similarity(half, HOW), similarity(traced, HOW), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 0}, "refine's size=0: expected a whole number, 1 to 64"),
        ({"layers": ""}, "refine's layers='': expected a name"),
        ({"size": 2.0}, "refine's size=2.0: expected"),
        ({"steps": 0}, "refine's steps=0: expected a whole number, at least 1"),
        ({"power": 0}, "refine's power=0: expected a number above 0"),
        ({"power": float("nan")}, "refine's power=nan"),
        ({"power": True}, "refine's power=True"),
        ({"then": "twice"}, "refine's then='twice' is unknown: expected '' or 'times' or 'floor'"),
        ({"layers": "S9"}, "layer 'S9' was not traced"),
        ({"layers": None}, "refine's layers=None: expected"),
    ],
)
def test_what_is_out_of_range_is_refused(traced, wrong, said):
    with pytest.raises(InputError, match=re.escape(said)):
        explain(traced, "layercam", refine=replace(Refine(), **wrong))


def test_what_does_not_go_together_is_refused(traced):
    for wrong in ("S3-S5", True, ("S3-S5", 28, 8.0, 1, False)):
        with pytest.raises(InputError, match=r"expected ltcam.Refine\(...\), or None"):
            explain(traced, "layercam", refine=wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_is_gpu(model, traced):
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    there = explain(trace(model.cuda(), images.cuda(), [[0, 2], [1], [0, 1, 3]]), "layercam", refine=HOW).cpu()
    here = explain(traced, "layercam", refine=HOW)
    assert torch.allclose(here, there, atol=1e-3 * float(here.max()))
