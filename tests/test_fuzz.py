"""Anything at all given to the public calls: a right result, or an InputError that says what was wrong. Never another error."""

import math
from collections import Counter
from fractions import Fraction
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ltcam import CAM, METHODS, Config, explain, layerize, trace, truncate
from ltcam.data import preprocess
from ltcam.engine.baselines import BASELINES
from ltcam.engine.stages import stages
from ltcam.errors import InputError
from ltcam.experiment.otsu import count, otsu_masks, regions
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import SCORES, Counts, scores
from ltcam.experiment.vgg16 import vgg16

EXAMPLES: Counter[str] = Counter()

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NO_FLOATS = [torch.uint8, torch.int64, torch.bool, torch.complex64]
RANGES = ["normal", "zeros", "constant", "negative", "tiny", "1e18", "1e37", "nan", "inf"]
LAYERS = ["0", "3"]

fitting_deltas = st.none() | st.sampled_from([0, 0.0, 50, 99, 1e-300, np.float64(20), Fraction(1, 3)]) | st.floats(0, 99.999)
refused_deltas = st.sampled_from(
    [math.nan, math.inf, -math.inf, -1, 100, 10**400, True, "20", "", [20], (), {}, 1j, b"5"]
) | st.floats(100)
fitting_sizes = st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9))
refused_sizes = st.sampled_from(
    [(0, 5), (5, 0), (-1, 2), (5,), (1, 2, 3), (), 5, 0, "ab", (2.5, 3), (math.nan, 1), (None, None), (2**70, 1), (True, True)]
)
fitting_layers = st.sampled_from([None, "0", "3", ["0"], ("3", "0"), ["0", ["3"]], "S1", "S1-S2", ["S2", "0"], ["0", "0"]])
refused_layers = st.sampled_from(
    [
        "",
        "conv",
        "S0",
        "S3",
        "S2-S1",
        "S1-S3",
        "S1-S999999999",
        "S" + "9" * 5000,
        5,
        [5],
        {},
        b"0",
        [b"0"],
        [],
        1.5,
        nn.ReLU(),
        "0 ",
    ]
)
texts = st.text(max_size=12)


def examples(count):
    def decorate(test):
        def counted(**drawn):
            EXAMPLES[test.__name__] += 1
            test(**drawn)

        counted.__name__, counted.__doc__ = test.__name__, test.__doc__
        return counted

    return lambda **drawn: (
        lambda test: settings(deadline=None, max_examples=count, derandomize=True, database=None)(
            given(**drawn)(decorate(test))
        )
    )


def refusal(call):
    """What a call that must fail says; any error but an InputError is the test's."""
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).strip()
    return str(caught.value)


def attempt(call):
    """What a call gives, or None where it refuses what it was given, in words."""
    try:
        return call()
    except InputError as error:
        assert ": " in str(error), f"what was expected is not said: {error}"
        return None


@cache
def model(dtype=torch.float32):
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval().to(dtype)


@cache
def tiny_vgg():
    torch.manual_seed(0)
    return vgg16(4, "gap", weights=None, width=32).eval()


@cache
def traced():
    return trace(model(), values("normal", (2, 3, 8, 7), 1), [[0, 2], [1]], {"S1": "0", "S2": "3"}, fullgrad=True)


def values(kind, shape, seed=0, dtype=torch.float32):
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "zeros":
            plain = torch.zeros(shape)
        case "constant":
            plain = torch.full(shape, 3.0)
        case "negative":
            plain = -plain.abs()
        case "tiny":
            plain = plain * 1e-40
        case "1e18" | "1e37":
            plain = plain * float(kind)
        case "nan" | "inf" if plain.numel():
            plain.view(-1)[seed % plain.numel()] = float(kind)
    return plain.to(dtype)


def well_formed(maps, shape):
    return maps.shape == shape and maps.dtype == torch.float32 and bool((maps.isfinite() & (maps >= 0)).all())


@examples(200)(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(RANGES),
    shape=st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
    method=st.sampled_from([name for name in METHODS if name != "cam"]),
    layers=st.sampled_from([["0"], ["3"], LAYERS, {"S1": "0", "S2": "3"}]),
    delta=fitting_deltas,
    per=st.sampled_from(["layer", "channel"]),
    size=fitting_sizes,
)
def test_any_image_gives_a_map_or_a_reason(dtype, kind, shape, seed, method, layers, delta, per, size):
    images = values(kind, shape, seed, dtype)
    found = attempt(lambda: trace(model(dtype), images, None, layers, fullgrad=method == "fullgrad"))
    if found is None:
        assert not images.isfinite().all() or kind in ("1e18", "1e37")
        return
    assert images.isfinite().all() and found.logits.isfinite().all()
    maps = explain(found, method, delta=delta, size=size, per=per)
    assert well_formed(maps, (shape[0], *(size or shape[2:])))
    if delta == 0 and method == "layercam":
        assert torch.equal(maps, explain(found, method, size=size))
    if kind == "normal" and dtype == torch.float64:
        alone = [trace(model(dtype), image[None], None, layers, fullgrad=True) for image in images]
        assert torch.allclose(
            maps, torch.cat([explain(one, method, delta=delta, size=size, per=per) for one in alone]), atol=1e-5
        )


@examples(120)(
    dtype=st.sampled_from([*DTYPES, *NO_FLOATS]),
    shape=st.lists(st.integers(0, 4), max_size=5) | st.tuples(st.integers(1, 2), st.integers(0, 4), st.just(2), st.just(2)),
)
def test_what_is_no_image_of_the_model_is_refused(dtype, shape):
    images = torch.zeros(tuple(shape), dtype=dtype)
    fits = dtype == torch.float32 and len(shape) == 4 and shape[1] == 3 and 0 not in shape
    if not fits:
        assert str(dtype) in refusal(lambda: trace(model(), images, 0, LAYERS))
    else:
        assert trace(model(), images, 0, LAYERS).logits.shape == (shape[0], 3)


@pytest.mark.parametrize("wrong", [None, 5, "photo.jpg", np.zeros((1, 3, 4, 4), np.float32), [torch.zeros(3, 4, 4)]])
def test_what_is_no_tensor_or_no_model_is_refused(wrong):
    assert type(wrong).__name__ in refusal(lambda: trace(model(), wrong, 0, LAYERS))
    assert type(wrong).__name__ in refusal(lambda: CAM(wrong, LAYERS)(torch.zeros(1, 3, 4, 4)))


@examples(60)(
    shape=st.tuples(st.just(1), st.just(3), st.integers(1, 48), st.integers(1, 48)),
    layers=st.sampled_from([None, ["S1"], ["S5"], ["S1-S3"], ["features.30"]]),
)
def test_vgg_of_any_image(shape, layers):
    found = attempt(lambda: trace(tiny_vgg(), values("normal", shape), None, layers))
    assert (found is not None) == (min(shape[2:]) >= 32)
    assert found is None or well_formed(explain(found, "layercam", delta=20), (1, *shape[2:]))


CLASSES = st.integers(-2, 4) | st.sampled_from([2**70, 1.0, math.nan, None, "1", "a", True, b"1", [0], {1}, (), 1j])
WRONG_ARRAYS = [np.array(["a", "b"]), np.array([None, 1]), np.array([0.5, 1]), torch.zeros(2, 4), torch.full((2, 3), math.nan)]
ARRAYS = [torch.tensor([0, 1]), torch.eye(3)[:2], np.array([0, 1]), np.int64(1), torch.tensor(1), torch.tensor([0.0, 1.0])]


def constant(row):
    return torch.tensor(1.0)


def logit(row):
    return row[0]


FUNCTIONS = st.sampled_from([logit, torch.max, torch.Tensor.sum, lambda row: row, lambda row: 1, constant, torch.argmax])


@examples(150)(
    targets=CLASSES
    | st.lists(CLASSES | st.lists(CLASSES, max_size=3) | FUNCTIONS, max_size=3)
    | st.lists(FUNCTIONS, min_size=2, max_size=2)
    | st.sampled_from([*WRONG_ARRAYS, *ARRAYS])
    | st.dictionaries(st.integers(0, 3), st.none(), max_size=2)
    | texts,
    pooled=st.booleans(),
)
def test_any_targets(targets, pooled):
    images = values("normal", (2, 3, 4, 4))
    found = attempt(lambda: trace(model(), images, targets, ["0"]))
    if found is not None:
        image, c = found.pairs.T.tolist()
        assert image == sorted(image) and set(image) <= {0, 1} and set(c) <= {-1, 0, 1, 2}
        assert well_formed(explain(found, "gradcam"), (len(image), 4, 4))
    if pooled and (maps := attempt(lambda: CAM(model(), ["0"])(images, targets))) is not None:
        assert well_formed(maps, (2, 4, 4)) and maps.max() <= 1


NAMES = st.sampled_from(["", "0", "1", "3", "5", "6", "7", "9", "S1", "S2", "S9", "S1-S2", "S2-S1", "S1-S999999999"]) | texts
NODES = NAMES | st.sampled_from([None, 5, 0.5, (), ["0"], b"0", nn.ReLU(), nn.Conv2d])


@examples(150)(
    layers=st.lists(NODES, max_size=3)
    | st.dictionaries(NAMES, NODES, max_size=2)
    | NODES
    | st.integers(0, 7).map(lambda i: [model()[i]])
    | st.integers(0, 7).map(lambda i: {"S1": model()[i]})
    | st.integers(0, 7).map(lambda i: model()[i]),
    fullgrad=st.booleans(),
)
def test_any_layers(layers, fullgrad):
    found = attempt(lambda: trace(model(), values("normal", (1, 3, 6, 6)), 0, layers, fullgrad))
    assert found is None or set(found.layers) <= {"0", "1", "2", "3", "4", "5"}
    assert found is None or well_formed(explain(found, "layercam"), (1, 6, 6))


@examples(150)(
    method=st.sampled_from([*METHODS, "x", "", None, [], {}, 5]),
    layers=fitting_layers,
    delta=fitting_deltas,
    size=fitting_sizes,
    per=st.sampled_from(["layer", "channel", "x", None, []]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "compare": st.sampled_from(["ge", "gt", "x", []]),
            "fuse": st.sampled_from(["sum", "mean", "max", "prod", "x", None]),
            "normalize": st.sampled_from(["none", "max", "minmax", "tanh", "x", 5]),
            "per_channel": st.booleans(),
        },
    ),
)
def test_any_options(method, layers, delta, size, per, options):
    found = attempt(lambda: explain(traced(), method, layers, delta, size, per, **options))
    known = method in list(METHODS) and per in ("layer", "channel") and "x" not in options.values()
    assert known or found is None
    if found is not None:
        assert well_formed(found, (3, *(size or (8, 7))))


@examples(160)(delta=refused_deltas, per=st.sampled_from(["layer", "channel"]))
def test_a_delta_out_of_range_is_named(delta, per):
    for call in (
        lambda: explain(traced(), "gradcam", delta=delta, per=per),
        lambda: truncate(traced().gradient("0"), delta, per),
        lambda: CAM(model(), LAYERS, "layercam", delta),
    ):
        assert f"delta={delta}" in refusal(call).replace("'", "") or f"delta={delta!r}" in refusal(call)


@examples(60)(layers=refused_layers, method=st.sampled_from(["layercam", "fullgrad"]))
def test_a_layer_that_was_not_traced_is_named(layers, method):
    said = refusal(lambda: explain(traced(), method, layers))
    assert layers in ([], {}) or (repr(layers[0]) if isinstance(layers, list) else repr(layers)) in said


@examples(40)(size=refused_sizes, fuse=st.sampled_from(["sum", "max"]))
def test_a_size_that_is_none_is_named(size, fuse):
    assert f"size={size!r}" in refusal(lambda: explain(traced(), "gradcam", size=size, fuse=fuse))
    assert f"size={size!r}" in refusal(lambda: layerize([torch.rand(1, 2, 2)], size, fuse))


@examples(150)(
    shape=st.lists(st.integers(0, 4), max_size=5) | st.tuples(*[st.integers(1, 4)] * 4),
    dtype=st.sampled_from([*DTYPES, *NO_FLOATS]),
    kind=st.sampled_from(RANGES),
    seed=st.integers(0, 999),
    delta=fitting_deltas,
    per=st.sampled_from(["layer", "channel"]),
    compare=st.sampled_from(["ge", "gt"]),
)
def test_truncation_of_anything(shape, dtype, kind, seed, delta, per, compare):
    gradient = values(kind, tuple(shape), seed).nan_to_num(posinf=math.inf).to(dtype)
    kept = attempt(lambda: truncate(gradient, delta, per, compare))
    assert (kept is not None) == (len(shape) == 4 and 0 not in shape and dtype in (torch.float32, torch.float64))
    if kept is not None:
        assert kept.shape == gradient.shape and ((kept == 0) | (kept == gradient)).all() and (delta is None or kept.min() >= 0)


@examples(200)(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=4) | st.tuples(*[st.integers(1, 3)] * 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, *NO_FLOATS]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fuse=st.sampled_from(["sum", "mean", "max", "prod", "x", None, []]),
    normalize=st.sampled_from(["none", "max", "minmax", "tanh", "x", None, []]),
)
def test_layerization_of_anything(shapes, dtype, size, fuse, normalize):
    maps = [torch.ones(tuple(shape), dtype=dtype) for shape in shapes]
    found = attempt(lambda: layerize(maps, size, fuse, normalize))
    if found is not None:
        assert found.shape == (shapes[0][0], *size) and found.isfinite().all() and (found >= 0).all()
        assert fuse in ("sum", "mean", "max", "prod") and normalize in ("none", "max", "minmax", "tanh")


@examples(150)(
    shape=st.lists(st.integers(0, 3), max_size=4) | st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from([*DTYPES, *NO_FLOATS]),
    kind=st.sampled_from(RANGES),
    seed=st.integers(0, 999),
    positive=st.booleans(),
)
def test_otsu_of_anything(shape, dtype, kind, seed, positive):
    plain = values(kind, tuple(shape), seed)
    heatmaps = (plain.abs() if positive else plain).nan_to_num(nan=math.nan, posinf=math.inf).to(dtype)
    masks = attempt(lambda: otsu_masks(heatmaps))
    if len(shape) == 3 and 0 not in shape and dtype in DTYPES and heatmaps.isfinite().all() and (heatmaps >= 0).all():
        assert masks is not None
    if masks is not None:
        assert masks.shape == heatmaps.shape and masks.dtype == torch.bool
        assert all(
            mask.any() == (heatmap.double().std(correction=0) > 0) for mask, heatmap in zip(masks, heatmaps, strict=True)
        )


@examples(120)(
    predicted=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3)),
    mask=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from([torch.bool, torch.bool, torch.uint8, torch.float32]),
    c=st.integers(-1, 255),
    seed=st.integers(0, 99),
)
def test_counts_of_anything(predicted, mask, dtype, c, seed):
    generator = torch.Generator().manual_seed(seed)
    claimed = (torch.rand(predicted, generator=generator) > 0.5).to(dtype)
    truth = torch.randint(0, 256, mask or predicted[1:], generator=generator, dtype=torch.uint8)
    found = attempt(lambda: count(claimed, regions(truth, c)))
    if found is not None:
        assert found.shape == (len(claimed), 3) and (found >= 0).all() and truth.shape in (claimed.shape[1:], claimed.shape)
        assert (found[:, 0] + found[:, 2] == (truth == c + 1).flatten(-2).sum(dim=-1)).all()


ROWS = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 10**9), min_size=6, max_size=6))


@examples(60)(rows=st.lists(ROWS, min_size=1, max_size=6), trainings=st.integers(1, 2))
def test_scores_of_anything(rows, trainings):
    numbers = np.array([values for _, values in rows], dtype=np.int64).reshape(-1, 2, 3)
    pairs = pd.DataFrame({"name": map(str, range(len(rows))), "group": "g", "class": [c for c, _ in rows], "fold": ""})
    each = [Counts(pairs.assign(training=str(n)), (Config(), Config("cam")), numbers) for n in range(trainings)]
    found = scores(Counts.join(each))[SCORES].to_numpy()
    assert found.shape == (2, 8) and np.isfinite(found).all() and (found >= 0).all() and (found <= 100).all()


@examples(150)(
    shape=st.lists(st.integers(0, 4), max_size=4) | st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.uint8, torch.uint8, torch.uint8, *DTYPES, *NO_FLOATS]),
    size=fitting_sizes | refused_sizes,
)
def test_any_picture_for_the_network(shape, dtype, size):
    found = attempt(lambda: preprocess(torch.zeros(tuple(shape), dtype=dtype), size))
    assert found is None or well_formed(found - found.min(), (3, *size))


@examples(200)(
    text=texts
    | st.lists(texts | st.sampled_from([*METHODS, "S1-S5", "all"]) | st.floats().map(str), max_size=4).map(":".join)
    | st.lists(st.sampled_from(["gradcam:S1-S5:20", "fuse=max", "fraction=0.5", "fraction=2", "refine=S5:9", "by=x", "="]),
               max_size=4).map(",".join),
)  # fmt: skip
def test_any_configuration(text):
    config = attempt(lambda: Config.parse(text))
    if config is not None:
        assert config.method in METHODS and (config.delta is None or 0 <= config.delta < 100)
        assert Config.parse(str(config)) == config and hash(Config.parse(str(config))) == hash(config)


@examples(80)(
    name=st.sampled_from(sorted(BASELINES)),
    shape=st.tuples(st.integers(1, 2), st.integers(2, 3), st.integers(1, 6), st.integers(1, 6)),
    kind=st.sampled_from(RANGES),
    targets=st.sampled_from([None, 0, 3, -1, [[0, 2], [1]], [0, 1], "a", [logit, logit]]),
    layer=st.sampled_from([*LAYERS, "5", "6", "7", "", "x", 5, None, ["0"], model()[0], nn.ReLU()]),
)
def test_any_baseline(name, shape, kind, targets, layer):
    found = attempt(lambda: BASELINES[name](model(), values(kind, shape), targets, layer))
    if found is not None:
        assert found.ndim == 3 and well_formed(found, found.shape)


NO_NUMBERS = [0, -1, 2.0, math.nan, "4", "", True, [4], (), 1j, b"4"]


@pytest.mark.parametrize("wrong", NO_NUMBERS)
@pytest.mark.parametrize("name", ["num_classes", "width", "hidden"])
def test_a_network_of_no_size_is_refused(name, wrong):
    numbers = {"num_classes": 3, "width": 32, name: wrong}
    assert f"{name}={wrong!r}: expected a whole number" in refusal(lambda: vgg16(weights=None, **numbers))


def test_a_network_without_channels_is_refused():
    assert "width=65: expected a whole number, 1 to 64" in refusal(lambda: vgg16(3, weights=None, width=65))
    assert vgg16(3, "gap", weights=None, width=64).features[0].out_channels == 1


@pytest.mark.parametrize("wrong", [*NO_NUMBERS, None])
def test_a_batch_size_that_is_none_is_refused(wrong):
    assert f"batch_size={wrong!r}: expected a whole number" in refusal(lambda: Protocol(wrong))


@pytest.mark.parametrize("wrong", [None, 5, "vgg16", [], nn.Module, torch.zeros(2)])
def test_stages_of_what_is_no_model_are_refused(wrong):
    assert "expected a torch.nn.Module" in refusal(lambda: stages(wrong))


@pytest.mark.parametrize("wrong", [[], {}, None, 5, b"0", ["0"], nn.ReLU(), "S1"])
def test_what_was_not_traced_has_no_activation(wrong):
    for call in (traced().activation, traced().gradient):
        assert f"layer {wrong!r} was not traced: expected one of ['0', '3']" in refusal(lambda call=call: call(wrong))


@pytest.mark.parametrize("wrong", [0, False, "", "tokens", [], (2, 4, 4), torch.zeros(1)])
def test_a_reshape_that_is_no_function_is_refused(wrong):
    assert f"reshape={wrong!r}: expected a function" in refusal(
        lambda: trace(model(), values("normal", (1, 3, 4, 4)), 0, ["0"], reshape=wrong)
    )


@examples(120)(
    exponent=st.integers(-1074, 1015),
    seed=st.integers(0, 999),
)
def test_otsu_of_any_float64(exponent, seed):
    plain = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul_(8).round_()
    heatmaps = plain * 2.0**exponent
    masks = attempt(lambda: otsu_masks(heatmaps))
    spans = heatmaps.amax(dim=(1, 2)) - heatmaps.amin(dim=(1, 2))
    assert (masks is not None) == bool((spans >= 2.0**-149).all() and heatmaps.max() < 2.0**128)
    assert masks is None or torch.equal(masks, otsu_masks(plain))


@examples(150)(
    method=st.sampled_from(sorted(METHODS)),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=2, max_size=2)
    | st.tuples(*[st.integers(1, 3)] * 4).map(lambda shape: [shape, shape])
    | st.tuples(*[st.integers(1, 3)] * 4).map(lambda shape: [(1, shape[1], 1, 1), shape]),
    dtype=st.sampled_from([torch.float32, torch.float32, *NO_FLOATS]),
    constant=st.booleans(),
)
def test_methods_of_anything(method, shapes, dtype, constant):
    activation, gradient = (values("constant" if constant else "normal", tuple(s), 3).to(dtype) for s in shapes)
    found = attempt(lambda: METHODS[method](activation, gradient))
    if found is not None:
        assert well_formed(found, (gradient.shape[0], *gradient.shape[2:]))
    a_bias = method == "fullgrad" and activation.shape == (1, *gradient.shape[1:2], 1, 1)
    fits = (
        (activation.shape == gradient.shape or a_bias)
        and gradient.ndim == 4
        and gradient.numel() > 0
        and dtype == torch.float32
    )
    assert (found is not None) == fits or method == "cam"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [None, 5, np.ones((1, 2, 3, 3), np.float32), []])
def test_methods_of_no_tensors_are_refused(method, wrong):
    for pair in ((wrong, torch.ones(1, 2, 3, 3)), (torch.ones(1, 2, 3, 3), wrong)):
        assert "expected floats (P, K, h, w)" in refusal(lambda pair=pair: METHODS[method](*pair))


def test_these_are_thousands_of_examples():
    if len(EXAMPLES) < 15:
        pytest.skip("counts the examples of the tests above: run the whole file")
    assert EXAMPLES.total() >= 2000, EXAMPLES
