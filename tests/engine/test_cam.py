import pytest
import torch
from torch.nn.functional import interpolate

from ltcam import METHODS, Config, explain, layerize, trace, truncate
from ltcam.engine import cam
from ltcam.engine.methods import fullgrad
from ltcam.experiment.vgg16 import vgg16

ANY_HEAD = [name for name in METHODS if name != "cam"]


def layer_maps(traced, name, layers=None, delta=None, **options):
    return cam.layer_maps(traced, Config(name, "all" if layers is None else layers, delta, **options))


@pytest.fixture
def traced(tiny, images):
    return trace(tiny, images, [[0, 2], [1], [3]], fullgrad=True)


@pytest.mark.parametrize("delta", [None, 0, 20])
@pytest.mark.parametrize("name", ANY_HEAD)
def test_shape_scale_and_size(traced, name, delta):
    maps = explain(traced, name, delta=delta)
    assert maps.shape == (4, 64, 64) and maps.dtype == torch.float32 and not maps.requires_grad
    assert (maps >= 0).all() and (maps.amax(dim=(1, 2)) > 0).all()
    assert explain(traced, name, delta=delta, size=(30, 50)).shape == (4, 30, 50)


@pytest.mark.parametrize("name", [name for name in ANY_HEAD if name != "fullgrad"])
def test_is_the_composition_of_the_paper(traced, name):
    chosen = ["features.16", "features.30"]
    maps = [METHODS[name](traced.activation(n), truncate(traced.gradient(n), 20, "channel")) for n in chosen]
    assert torch.equal(explain(traced, name, ["S3", "S5"], 20, per="channel"), layerize(maps, (64, 64)))


def test_layers_by_label_range_and_name(traced):
    assert list(layer_maps(traced, "gradcam", "S3-S5")) == ["features.16", "features.23", "features.30"]
    assert list(layer_maps(traced, "gradcam", ["S1", "features.9"])) == ["features.4", "features.9"]
    assert list(layer_maps(traced, "gradcam")) == traced.layers
    assert torch.equal(explain(traced, "gradcam"), explain(traced, "gradcam", "S1-S5"))


def test_fullgrad_by_hand(traced):
    total = torch.zeros(4, 64, 64)
    for value, gradient in [
        traced.inputs,
        *((t.bias[:, None, None], t.gradient) for t in traced.biases if t.gradient.ndim == 4),
    ]:
        product = (value * gradient).abs()
        for p in range(4):
            low, high = product[p].min(), product[p].max()
            normal = (product[p] - low) / (high - low)
            total[p] += interpolate(normal[None], (64, 64), mode="bilinear", align_corners=False)[0].sum(dim=0)
    assert torch.allclose(explain(traced, "fullgrad"), total, rtol=1e-4, atol=1e-4)


def test_fullgrad_takes_a_stages_convolutions_and_only_as_a_whole_the_input(traced):
    names = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    assert list(layer_maps(traced, "fullgrad")) == [*names, "input"]
    assert list(layer_maps(traced, "fullgrad", "S1-S5")) == names
    assert list(layer_maps(traced, "fullgrad", "S4")) == names[7:10]


def test_a_range_with_a_stage_that_was_not_traced_is_refused(tiny, images):
    traced = trace(tiny, images, 0, ["S1", "S4-S5"], fullgrad=True)
    assert list(layer_maps(traced, "gradcam", "S4-S5")) == ["features.23", "features.30"]
    assert list(layer_maps(traced, "fullgrad", "S4")) == ["features.17", "features.19", "features.21"]
    with pytest.raises(ValueError, match="layer 'S1-S5' was not traced"):
        explain(traced, "gradcam", "S1-S5")


def test_ltfullgrad_truncates_the_gradient_and_leaves_the_input_alone(traced):
    plain, truncated = layer_maps(traced, "fullgrad"), layer_maps(traced, "fullgrad", delta=30)
    assert torch.equal(plain["input"], truncated["input"])
    term = traced.biases[3]
    expected = fullgrad(term.bias.view(1, -1, 1, 1), truncate(term.gradient, 30))
    assert torch.equal(truncated[term.name], expected) and not torch.equal(truncated[term.name], plain[term.name])


def test_fullgrad_needs_its_trace(tiny, images):
    with pytest.raises(ValueError, match=r"needs the gradients at the biases: trace\(..., fullgrad=True\)"):
        explain(trace(tiny, images, 0), "fullgrad")


def test_layercam_at_delta_0_is_layercam(traced):
    assert torch.equal(explain(traced, "layercam", delta=0), explain(traced, "layercam"))


@pytest.mark.parametrize("name", ANY_HEAD)
def test_batch_is_one_by_one_and_multi_label_is_single_label(tiny, images, traced, name):
    together = explain(traced, name, delta=20)
    for p, (i, c) in enumerate(traced.pairs.tolist()):
        alone = explain(trace(tiny, images[i : i + 1], c, fullgrad=True), name, delta=20)[0]
        assert torch.allclose(together[p], alone, atol=1e-4 * alone.max(), rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "eigencam"}, "method 'eigencam' is unknown"),
        ({"method": "gradcam", "layers": "S6"}, r"layer 'S6' was not traced: expected one of \['features.4'"),
        ({"method": "gradcam", "layers": "S1-S9"}, "layer 'S1-S9' was not traced"),
        ({"method": "gradcam", "layers": "S5-S1"}, "layer 'S5-S1' was not traced"),
        ({"method": "gradcam", "delta": 100}, "delta=100"),
        ({"method": "fullgrad", "delta": -3}, "delta=-3"),
        ({"method": "gradcam", "per": "image"}, "per='image' is unknown: expected 'layer' or 'channel'"),
        ({"method": "gradcam", "delta": 0, "compare": ">"}, "compare='>' is unknown: expected 'ge' or 'gt'"),
        ({"method": "gradcam", "fuse": "median"}, "fuse='median' is unknown: expected 'sum' or 'max' or 'mean' or 'prod'"),
        ({"method": "gradcam", "normalize": "l2"}, "normalize='l2' is unknown"),
        ({"method": "gradcam", "compare": "gt"}, "by='percentile', compare='gt' without delta cuts nothing"),
        ({"method": "gradcam", "per_channel": True}, "per_channel=True is an option of fullgrad"),
        ({"method": "fullgrad", "normalize": "max"}, "normalize='max' with fullgrad, whose terms Eq. 7 normalizes"),
        ({"method": "cam"}, "CAM needs global average pooling"),
    ],
)
def test_wrong_arguments(traced, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(traced, **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ANY_HEAD)
def test_cpu_is_gpu(tiny, images, traced, name):
    there = explain(trace(tiny.cuda(), images.cuda(), [[0, 2], [1], [3]], fullgrad=True), name, delta=20).cpu()
    here = explain(traced, name, delta=20)
    assert torch.allclose(here, there, atol=1e-3 * here.max())


@pytest.fixture
def pooled(images):
    torch.manual_seed(0)
    model = vgg16(4, head="gap", weights=None, width=16).eval()
    return model, trace(model, images, [[0, 2], [1], [3]])


def test_cam_is_the_classifiers_weights_times_the_activation(pooled):
    model, traced = pooled
    (found,) = layer_maps(traced, "cam", "S5").values()
    for p, (_, c) in enumerate(traced.pairs.tolist()):
        expected = torch.einsum("k,khw->hw", model.classifier.weight[c], traced.activation("features.30")[p]).relu()
        assert torch.allclose(found[p], expected, atol=1e-6)
    assert torch.allclose(found, 4 * explain(traced, "gradcam", "S5", size=(2, 2)), atol=1e-6)  # 2 x 2 places
    with pytest.raises(ValueError, match="CAM needs global average pooling"):
        explain(traced, "cam", "S4")


def test_gt_at_a_gap_head_is_refused_and_elsewhere_drops_the_threshold(pooled, traced):
    with pytest.raises(ValueError, match=r"compare='gt' at 'features\.30' would empty maps"):
        explain(pooled[1], "gradcam", "S5", 0, compare="gt")
    assert explain(pooled[1], "gradcam", "S4", 0, compare="gt").max() > 0
    ge, gt = (layer_maps(traced, "layercam", "S4", 50, compare=compare)["features.23"] for compare in ("ge", "gt"))
    assert (gt <= ge).all() and gt.sum() < ge.sum()


def test_per_channel_is_eq_7_read_literally(traced):
    term = traced.biases[4]
    product = (term.gradient * term.bias[:, None, None]).abs()
    low, high = product.amin(dim=(2, 3), keepdim=True), product.amax(dim=(2, 3), keepdim=True)
    expected = ((product - low) / (high - low)).nan_to_num().sum(dim=1)  # 0 / 0: a channel without any gradient
    found = layer_maps(traced, "fullgrad", per_channel=True)[term.name]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
