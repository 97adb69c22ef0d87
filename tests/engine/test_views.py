"""Maps averaged over scales and flips: by hand on linear models, and against `explain` of every view."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from ltcam import Config, Refine, explain, explain_scales, stages, trace
from ltcam.engine.cam import layer_maps, maps_of
from ltcam.engine.views import Maps, corners, cost, over_views
from ltcam.errors import InputError

WAYS = [
    ("gradcam", None, {}), ("layercam", 0, {"normalize": "minmax", "fuse": "max"}), ("fullgrad", 20, {}),
    ("layercam", None, {"normalize": "tanh", "refine": True}), ("gradcam", 20, {"fuse": "prod"}),
]  # fmt: skip


def linear(kernel):
    """A model whose Grad-CAM is the ReLU of what `kernel` (1, w) makes of the image, which it pads on the right."""
    model = nn.Sequential(
        nn.ZeroPad2d((0, len(kernel) - 1, 0, 0)), nn.Conv2d(1, 1, (1, len(kernel)), bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(kernel)[None, None, None])
        model[4].weight.fill_(1)
    return model


def over_maximum(maps):
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def test_scales_by_hand():
    """At scale 2 a row 1, 0 becomes 1, 3/4, 1/4, 0, and 7/8, 1/8 on the way back: 1, 1/7 of its maximum."""
    images = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    found = explain_scales(linear([1.0]), images, 0, "gradcam", ["1"], scales=(1.0, 2.0), flip=False)
    assert torch.allclose(found, torch.tensor([[[1, 1 / 14], [1 / 14, 1 / 98]]]), atol=1e-6)
    alone = explain_scales(linear([1.0]), images, 0, "gradcam", ["1"], scales=(2.0,), flip=False)
    once = over_maximum(torch.outer(*[torch.tensor([7.0, 1.0])] * 2)[None])
    assert torch.allclose(alone, once, atol=1e-6)


def test_flips_by_hand():
    """The kernel looks to the right. So the plain map is a pixel too far left, and the mirrored one too far right."""
    images = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])
    model = linear([0.0, 1.0])
    plain, both = (explain_scales(model, images, 0, "gradcam", ["1"], scales=(1.0,), flip=flip) for flip in (False, True))
    assert plain.tolist() == [[[1, 0, 0, 0]]] and both.tolist() == [[[1, 0, 1, 0]]]


@pytest.mark.parametrize(("method", "delta", "options"), WAYS)
def test_is_the_mean_of_explain_of_every_view(tiny, images, method, delta, options):
    """The mean is taken of fused maps, each over its maximum, at the images' size. It is not fused or normalized again."""
    options = options | ({"refine": Refine("S3-S5", 8)} if "refine" in options else {})
    targets, expected = [[0, 2], [1], [3]], 0
    for scale in (0.5, 1.0, 1.5):
        for mirrored in (False, True):
            view = interpolate(images, (round(64 * scale),) * 2, mode="bilinear", antialias=True)
            view = view.flip(3) if mirrored else view
            run = trace(tiny, view, targets, fullgrad=method == "fullgrad")
            maps = over_maximum(explain(run, method, None, delta, (64, 64), **options))
            expected = expected + (maps.flip(2) if mirrored else maps)
    found = explain_scales(tiny, images, targets, method, None, delta, (0.5, 1.0, 1.5), True, **options)
    assert found.shape == (4, 64, 64) and found.min() >= 0 and (found.amax(dim=(1, 2)) == 1).all()
    assert torch.allclose(found, over_maximum(expected), atol=1e-5)


@pytest.mark.parametrize(("method", "delta", "options"), WAYS[:3])
def test_a_mirrored_image_gives_the_mirrored_map(tiny, images, method, delta, options):
    def found(given, flip):
        return explain_scales(tiny, given, [0, 1, 2], method, None, delta, flip=flip, **options)

    assert torch.allclose(found(images.flip(3), True), found(images, True).flip(2), atol=1e-4)
    assert not torch.allclose(found(images.flip(3), False), found(images, False).flip(2), atol=1e-1)


@pytest.mark.parametrize(("method", "delta", "options"), WAYS[:3])
def test_one_scale_is_explain_bit_for_bit(tiny, images, method, delta, options):
    plain = explain(trace(tiny, images, [0, 1, 2], fullgrad=method == "fullgrad"), method, None, delta, **options)
    found = explain_scales(tiny, images, [0, 1, 2], method, None, delta, (1,), False, **options)
    assert torch.equal(found, over_maximum(plain))


@pytest.fixture
def bright():
    """A model, and an image of one bright pixel, which makes class 0 likely unless the image is small; class 1 is constant."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), ([1.0], [0.0], [1.0, 0.0], [0.0, 0.5]), strict=True):
            parameter.copy_(torch.tensor(values).view_as(parameter))
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 3, 3] = 1
    return model, images


def test_the_first_scale_decides_the_class_that_is_not_named(bright):
    model, images = bright
    assert explain_scales(model, images, layers=["0"], scales=(1.0, 0.5)).any()
    assert not explain_scales(model, images, layers=["0"], scales=(0.5, 1.0)).any()


def test_layers_functions_and_the_models_output_are_those_of_trace(tiny, images):
    """Also: a view without evidence is zero, and the model stays as it was."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = tiny

        def forward(self, images):
            return [self.inside(images)]

    wrapped, before = Wrapped(), {name: value.clone() for name, value in tiny.state_dict().items()}
    scales, layers = (1.0, 1.5), ["inside.features.23", "inside.features.30"]
    found = explain_scales(wrapped, images, 1, "layercam", layers, 20, scales, output=lambda given: given[0])
    expected = explain_scales(tiny, images, lambda logits: logits[1], "layercam", ["S4-S5"], 20, scales)
    assert torch.equal(found, expected) and found.any()
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    nn.init.zeros_(tiny.classifier[-1].weight)
    assert not explain_scales(tiny, images, 1).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(tiny, images, dtype):
    single = explain_scales(tiny, images, 1, "layercam", scales=(1.0, 1.5))
    found = explain_scales(tiny.to(dtype), images.to(dtype), 1, "layercam", scales=(1.0, 1.5))
    assert found.dtype == torch.float32 and torch.allclose(found, single, atol=1e-4 if dtype == torch.float64 else 0.3)


CONFIGS = [
    Config("gradcam", "S3-S5", 20), Config("gradcam", "S5", 20), Config("gradcam", ("S3", "S5"), 20, fraction=0.3),
    Config("layercam", "S3-S5", 20, fuse="max", normalize="max"), Config("layercam", "S4", refine=Refine("S3", 8)),
]  # fmt: skip


def heats_of(maps, chosen, size):
    """{config: (len(chosen), H, W)}, and the groups."""
    groups = list(maps.heatmaps(chosen, size))
    return {config: heat for group, heats in groups for config, heat in zip(group, heats, strict=True)}, [g for g, _ in groups]


def test_over_views_is_the_average_by_hand(tiny, images):
    """Every config by itself, also those of one group: each view's fused maps over their maximum, turned back, the mean."""
    targets, configs = [[0, 2], [1], [3]], [*CONFIGS, Config("fullgrad", "all", 20)]
    found = over_views(tiny, images, targets, configs, size=(48, 80), scales=(1.0, 1.5), flip=True)
    assert found.averaged and found.pairs.tolist() == [[0, 0], [0, 2], [1, 1], [2, 3]]
    heats, _ = heats_of(found, [0, 3], (30, 40))
    assert list(heats) == configs and not torch.equal(heats[CONFIGS[0]], heats[CONFIGS[1]])
    for config, heat in heats.items():
        expected = 0
        for scale in (1.0, 1.5):
            for mirrored in (False, True):
                view = interpolate(images, (round(48 * scale), round(80 * scale)), mode="bilinear", antialias=True)
                run = trace(tiny, view.flip(3) if mirrored else view, targets, fullgrad=True)
                if (scale, mirrored) == (1.0, False):
                    assert torch.equal(found.logits, run.logits)
                options = {"fuse": config.fuse, "normalize": config.normalize, "refine": config.refine}
                layers = None if config.layers == "all" else config.layers
                maps = over_maximum(explain(run, config.method, layers, config.delta, (48, 80), **options))
                expected = expected + (maps.flip(2) if mirrored else maps) / 4
        expected = interpolate(expected[[0, 3]][:, None], (30, 40), mode="bilinear", align_corners=False)[:, 0]
        assert torch.allclose(heat, expected, atol=1e-5)


def test_the_heatmaps_of_one_view_are_those_of_each_config(tiny, images):
    traced = trace(tiny, images, [[0, 2], [1], [3]])
    found = over_views(tiny, images, [[0, 2], [1], [3]], CONFIGS)
    heats, groups = heats_of(found, [2, 0], (50, 70))
    assert groups == [CONFIGS[:3], CONFIGS[3:4], CONFIGS[4:]] and not found.averaged
    alone = over_views(tiny, images, [[0, 2], [1], [3]], CONFIGS, one_by_one=True)
    for config in CONFIGS:
        options = {"fuse": config.fuse, "normalize": config.normalize, "refine": config.refine}
        expected = explain(traced, config.method, config.layers, config.delta, (50, 70), **options)[[2, 0]]
        assert torch.allclose(heats[config], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
        assert all(torch.equal(m, layer_maps(traced, config)[name]) for name, m in alone.of[config].items())
        assert all(torch.equal(m, maps_of(traced, CONFIGS)[config][name]) for name, m in found.of[config].items())


def test_it_traces_the_layers_that_the_configs_ask_for(tiny, images, monkeypatch):
    asked = []
    monkeypatch.setattr("ltcam.engine.views.trace", lambda *a, **o: asked.append(a[3]) or trace(*a, **o))
    over_views(tiny, images, 0, CONFIGS)
    over_views(tiny, images, 0, [*CONFIGS, Config("gradcam", "all")])
    over_views(tiny, images, 0, [Config("fullgrad", "S5")])
    relu = stages(tiny, "relu")
    of_relus = over_views(tiny, images, 0, [Config("gradcam", "S5")], relu)
    assert asked == [["S3", "S3-S5", "S4", "S5"], None, None, relu]
    assert list(of_relus.of[Config("gradcam", "S5")]) == ["features.29"]


@pytest.mark.parametrize("wrong", [(), 1.5, "1", (0,), (-1.0,), (float("inf"),), (float("nan"),), (True,), ("1",), None])
def test_wrong_scales(tiny, images, wrong):
    with pytest.raises(InputError, match=r"^scales=.*: expected one or more numbers above 0, e.g. \(1.0, 1.5\)$"):
        explain_scales(tiny, images, scales=wrong)


def test_other_wrong_input(tiny, images):
    with pytest.raises(InputError, match="flip=1: expected True or False"):
        explain_scales(tiny, images, flip=1)
    with pytest.raises(InputError, match="images are a list: expected floats"):
        explain_scales(tiny, [images])
    with pytest.raises(InputError, match="method 'scam' is unknown"):
        explain_scales(tiny, images, method="scam")


def test_crops_are_half_a_side_apart_and_the_last_ones_are_flush():
    assert corners((10, 7), 4) == [(top, left) for top in (0, 2, 4, 6) for left in (0, 2, 3)]
    assert corners((4, 3), 4) == [(0, 0)] and corners((5, 2), 4) == [(0, 0), (1, 0)]
    assert corners((3, 1), 1) == [(0, 0), (1, 0), (2, 0)]
    assert len(corners((1260, 500), 320)) == 7 * 3
    assert cost((1260, 500), 320, (640, 232)) == (21, pytest.approx(21 * 320 * 320 / (640 * 232)))
    assert cost((5, 2), 4, (4, 4)) == (2, 2 * 4 * 2 / 16) and cost((4, 3), 4, (8, 8)) == (0, 1)


def test_two_overlapping_crops_by_hand():
    """A row of 6 in crops of 4: the map of each is its own pixels, seen through its own mean, and not over its maximum.

    The mean over 4 pixels gives each a gradient of 1/4. The crops are 1 0 3 0 and 3 0 8 0.
    """
    images = torch.tensor([[[[1.0, 0.0, 3.0, 0.0, 8.0, 0.0]]]])
    found = over_views(linear([1.0]), images, 0, [Config("gradcam", ("1",))], ["1"], tiles=4)
    heats, _ = heats_of(found, [0], (1, 6))
    assert found.averaged and torch.allclose(*heats.values(), torch.tensor([[[1.0, 0, 3, 0, 8, 0]]]) / 4)
    model = linear([0.0, 1.0])  # it looks to the right: pixel 3 sees the 8 in the second crop alone
    heats, _ = heats_of(over_views(model, images, 0, [Config("gradcam", ("1",))], ["1"], tiles=4), [0], (1, 6))
    assert torch.allclose(*heats.values(), torch.tensor([[[0.0, 3, 0, (0 + 8) / 2, 0, 0]]]) / 4)
    found = explain_scales(model, images, 0, "gradcam", ["1"], scales=(1.0,), flip=False, tiles=4)
    assert torch.allclose(found, torch.tensor([[[0.0, 3, 0, 4, 0, 0]]]) / 4)


def test_a_crop_without_evidence_does_not_glow():
    """Noise of a thousandth beside a spot of 1: over its own maximum the noise would be as bright as the spot."""
    images = torch.full((1, 1, 8, 24), 1e-3)
    images[..., 3, 3] = 1
    found = explain_scales(linear([1.0]), images, 0, "gradcam", ["1"], scales=(1.0,), flip=False, tiles=8)
    assert found[0, 3, 3] == 1 and found[..., 8:].max() < 0.01


@pytest.mark.parametrize(("method", "delta", "options"), WAYS)
def test_crops_are_explained_one_by_one_and_averaged(tiny, images, monkeypatch, method, delta, options):
    """Two classes of an image too, and more crops than are traced at a time. Logits are of the whole images at `size`."""
    monkeypatch.setattr("ltcam.engine.views.CROPS", 4)
    options = options | ({"refine": Refine("S3-S5", 8)} if "refine" in options else {})
    config, targets = Config(method, "all", delta, **options), [[0, 2], [1], [3]]
    found = over_views(tiny, images, targets, [config], None, (32, 32), tiles=40)
    sums, often = torch.zeros(4, 64, 64), torch.zeros(64, 64)
    for top, left in [(y, x) for y in (0, 20, 24) for x in (0, 20, 24)]:
        run = trace(tiny, images[:, :, top : top + 40, left : left + 40], targets, fullgrad=method == "fullgrad")
        sums[:, top : top + 40, left : left + 40] += explain(run, method, None, delta, (40, 40), **options)
        often[top : top + 40, left : left + 40] += 1
    heats, _ = heats_of(found, range(4), (64, 64))
    assert torch.allclose(heats[config], sums / often, rtol=1e-3, atol=1e-5 * float(sums.max()))
    small = interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(found.logits, tiny(small)) and found.pairs.tolist() == [[0, 0], [0, 2], [1, 1], [2, 3]]


@pytest.mark.parametrize("tiles", [64, 100])
def test_one_crop_that_covers_the_image_is_the_plain_map(tiny, images, tiles):
    configs = [*CONFIGS, Config("fullgrad", "all", 20)]
    plain, found = (over_views(tiny, images, [0, 1, 2], configs, size=(48, 80), tiles=side) for side in (None, tiles))
    assert not found.averaged and torch.equal(found.logits, plain.logits)
    heats, expected = (heats_of(maps, [0, 2], (64, 64))[0] for maps in (found, plain))
    assert all(torch.equal(heats[config], expected[config]) for config in configs)
    of = (tiny, images, 1, "layercam", None, 20, (1.0,), False)
    assert torch.equal(explain_scales(*of), explain_scales(*of, tiles=tiles))


def test_the_whole_image_decides_the_class_that_is_not_named(bright):
    """A bright pixel makes class 0 likely in its crops, and in the whole image unless that is small."""
    model, images = bright
    for size, label in (((8, 8), 0), ((4, 4), 1), (None, 1)):
        assert over_views(model, images, None, [Config("gradcam", ("0",))], ["0"], size, tiles=4).pairs.tolist() == [[0, label]]


def test_a_border_is_cut_off_or_set_to_zero():
    """A quarter of 8 rows and an eighth of 8 columns at each edge. A wider map is resized with its border, and then cut."""
    config, heat = Config("gradcam"), torch.arange(1.0, 65).view(1, 8, 8)
    of = {config: {"S5": heat}}
    masked, wider = (Maps(torch.zeros(1, 2), heat, of, False, (0.25, 0.125), wide) for wide in (False, True))
    expected = torch.zeros(1, 8, 8)
    expected[:, 2:6, 1:7] = heat[:, 2:6, 1:7]
    assert torch.equal(heats_of(masked, [0], (8, 8))[0][config], expected)
    expected = interpolate(heat[None], (12, 10), mode="bilinear")[0][:, 2:10, 1:9]
    assert torch.equal(heats_of(wider, [0], (8, 8))[0][config], expected)
    half = Maps(torch.zeros(1, 2), heat, of, False, (0.5, 0.5))
    assert all(not heats_of(half, [0], size)[0][config].any() for size in ((8, 8), (6, 10)))


@pytest.mark.parametrize("wrong", [0, -4, 2.5, "32", True, (32, 32)])
def test_wrong_tiles(tiny, images, wrong):
    with pytest.raises(InputError, match=r"^tiles=.*: expected a whole number, at least 1$"):
        explain_scales(tiny, images, tiles=wrong)
    for views in ({}, {"scales": (1.0,)}, {"flip": False}, {"scales": (2.0,), "flip": False}):
        with pytest.raises(
            InputError, match=r"^tiles=32 of scaled or mirrored images: expected scales=\(1.0,\) and flip=False$"
        ):
            explain_scales(tiny, images, tiles=32, **views)


def test_a_target_function_is_not_cut(tiny, images):
    target = lambda logits: logits[1]  # noqa: E731
    with pytest.raises(InputError, match="reads single pixels"):
        explain_scales(tiny, images, target, scales=(1.0,), flip=False, tiles=48)
    assert explain_scales(tiny, images, target, scales=(1.0,), flip=False, tiles=64).shape == (3, 64, 64)  # it is not larger
