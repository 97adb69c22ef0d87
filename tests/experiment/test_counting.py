"""Counts: by hand, against `explain` and scikit-image one by one, and as they are kept, cut off and gone on with."""

import copy
import dataclasses
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.filters import threshold_otsu
from torch.nn.functional import interpolate

from ltcam import Refine, explain, trace
from ltcam import data as datasets
from ltcam.engine.config import Config
from ltcam.engine.views import Maps, over_views
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import counting, provenance
from ltcam.experiment.counting import COUNTS, count_batch, identity, measure
from ltcam.experiment.protocol import Protocol, Way, explained
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.scores import Counts
from ltcam.experiment.store import Store
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import vgg16
from tests.interrupts import at_call

CONFIGS = [
    Config("gradcam"),
    Config("gradcam", "S1-S5", 20.0),
    Config("fullgrad", "all"),
    Config("layercam", "S3-S5", 0.0, "channel"),
]
EVERY = [
    Config(method, layers, delta, per)
    for method in ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "fullgrad")
    for layers, delta, per in (("S5", None, "layer"), ("S3-S5", 0.0, "layer"), ("S1-S5", 20, "channel"), ("all", 90, "layer"))
] + [
    Config.parse(text)
    for text in (
        "gradcam:S1-S5:20,compare=gt", "gradcam:S1-S5:20,fuse=max", "gradcam:S1-S5:20,fuse=prod", "gradcam:S5,normalize=max",
        "layercam:S1-S5:0,fuse=mean,normalize=minmax", "layercam:S1-S5,normalize=tanh,refine=S3-S5:8",
        "gradcam:S3-S5:20,refine=S3-S5:8:4:2:times", "layercam:S1-S5:0,fraction=0.3,refine=S3-S5:8",
        "fullgrad:all:20,align_corners=True", "fullgrad:all:0,fraction=0.3", "layercam:S5:33.333333333333336",
        "gradcam:S1-S5:20,by=absolute values",
    )
]  # fmt: skip


def counted(folder, trained, part, ways, protocol=Protocol(4)):  # noqa: B008 - it is frozen
    """The store in `folder` and its pass, after `ways` were measured."""
    folder.mkdir(parents=True, exist_ok=True)
    data, store = trained.load(part), Store(folder)
    number = store.open(identity(trained, data, protocol), f"counts.{part}{protocol.name}.csv.gz")
    measure(store, number, trained, data, [Way(way) if isinstance(way, Config) else way for way in ways], protocol)
    return store, number


def rows_of(folder, *arguments):
    """{(image, class, configuration, cut): (tp, fp, fn)}."""
    store, number = counted(folder, *arguments)
    return {row[1:5]: row[5:] for row in store.frame(number)[["name", "class", "config", "cut", "tp", "fp", "fn"]].itertuples()}


def double(trained):
    """In float64, so that every pixel is on its side of a threshold."""
    return dataclasses.replace(trained, model=copy.deepcopy(trained.model).double())


def samples_of(data, size, images=None):
    found = (data[i] for i in (data.scored if images is None else images))
    return [s._replace(image=datasets.preprocess(s.image, size)) for s in found]


def counts_of(heatmap, fraction, mask, c):
    """tp, fp, fn of one heatmap (H, W), with scikit-image's threshold."""
    cut = threshold_otsu(heatmap) if fraction is None else fraction * heatmap.max()
    predicted, truth = heatmap > cut, mask == c + 1
    return [(predicted & truth).sum(), (predicted & (mask != 255) & ~truth).sum(), (~predicted & truth).sum()]


def options(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


@pytest.mark.parametrize("wide", [True, False])
def test_counts_are_those_of_explain_and_scikit_image_one_by_one(wide, trained, tiles):
    """Every method and option: in float64 to the pixel, in float32 but for pixels at the threshold."""
    model, part = (double(trained), "val") if wide else (tiles, "test")
    samples = samples_of(model.load(part), model.size)[:6]
    rows, logits = count_batch(model, samples, [Way(config) for config in EVERY], Protocol())
    found = {(row.name, row.label, row.way.config): row[3:] for row in rows}
    assert len(found) == len(rows) == len(EVERY) * sum(int(s.label.sum()) for s in samples)
    differ = pixels = 0
    for sample in samples:
        image = sample.image[None].to(next(model.model.parameters()))
        traced = trace(model.model, image, sample.label[None], fullgrad=True)
        assert logits[sample.name] == pytest.approx(traced.logits[0].tolist(), abs=1e-5)
        for config in EVERY:
            maps = explain(traced, **options(config) | {"size": tuple(sample.mask.shape)})
            for c, heatmap in zip(traced.pairs[:, 1].tolist(), maps.double().numpy(), strict=True):
                expected = counts_of(heatmap, config.fraction, sample.mask.numpy(), c)
                difference = np.abs(np.subtract(found[sample.name, c, config], expected))
                differ, pixels = differ + difference[0] + difference[1], pixels + heatmap.size
    assert differ <= (0 if wide else 1e-4 * pixels)


MASK = torch.tensor([[1, 1, 0, 255], [1, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
MAPS = torch.tensor([
    [[1.0, 0.6, 0.2, 0.9], [0.4, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.7], [0.0, 0.0, 0.0, 0.0]],
    [[0.1, 0.6, 0.0, 0.8], [0.5, 1.0, 0.3, 0.0], [0.9, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6]],
])  # fmt: skip


def test_one_image_by_hand(trained, monkeypatch):
    """Otsu's thresholds are 0.20 and 0.30. At 0.5 a value of 0.5 is background; of two values of 0.6 the first class wins."""
    config, half = Config("gradcam"), Config("gradcam", fraction=0.5)

    def maps(trained, samples, labels, configs, protocol):
        return Maps(labels.nonzero(), torch.zeros(1, 3), {config: {"S5": MAPS} for config in configs})

    monkeypatch.setattr(counting, "maps_of_batch", maps)
    sample = datasets.Sample(torch.zeros(3, 4, 4), torch.tensor([1.0, 1, 0]), MASK, "a")
    argmax = [Way(config, "argmax", t) for t in (0.0, 0.5, 1.0)]
    rows, logits = count_batch(trained, [sample], [Way(config), Way(half), *argmax], Protocol())
    found = {}
    for name, label, way, *counts in rows:
        assert name == "a" and label not in found.setdefault(way, {})
        found[way][label] = counts
    assert found[Way(config)] == {0: [3, 2, 0], 1: [3, 4, 0]} and found[Way(half)] == {0: [2, 1, 1], 1: [2, 2, 1]}
    # above 0 the second class claims two background pixels and one of the first; the first claims two
    assert found[argmax[0]] == {-1: [5, 0, 4], 0: [2, 2, 1], 1: [3, 3, 0]}
    assert found[argmax[1]] == {-1: [7, 2, 2], 0: [2, 1, 1], 1: [2, 1, 1]}
    assert found[argmax[2]] == {-1: [9, 6, 0], 0: [0, 0, 3], 1: [0, 0, 3]}  # nothing is above 1
    assert logits == {"a": [0, 0, 0]}


def by_views(trained, sample, config, scales, flip):
    """(P, *mask): `explain` of every view at the network's size, over its maximum and turned back; then the mean, resized."""
    height, width = trained.size
    largest = sample.image[None].double()
    total, views = 0, [(scale, dims) for scale in scales for dims in ([], [3])[: 1 + flip]]
    for scale, dims in views:
        view = interpolate(largest, (round(height * scale), round(width * scale)), mode="bilinear", antialias=True).flip(dims)
        traced = trace(trained.model, view, sample.label[None], fullgrad=config.method == "fullgrad")
        maps = explain(traced, **options(config) | {"size": trained.size})
        total = total + (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)).flip([dim - 1 for dim in dims])
    return interpolate((total / len(views))[:, None], sample.mask.shape, mode="bilinear")[:, 0]


def test_views_are_averaged(trained):
    """Maps of several views are float32: a pixel at the threshold may fall to either side."""
    model, protocol = double(trained), Protocol(scales=(0.5, 1.0, 1.5), flip=True)
    configs = [
        Config.parse(t)
        for t in ("gradcam:S1-S5:20,fuse=prod", "fullgrad:all:20", "layercam:S3-S5:0,fraction=0.3,refine=S3-S5:8")
    ]
    samples = samples_of(model.load("val"), (96, 96))[:3]
    found = {row[:3]: row[3:] for row in count_batch(model, samples, [Way(c) for c in configs], protocol)[0]}
    differ = pixels = 0
    for sample in samples:
        for config in configs:
            heat = by_views(model, sample, config, protocol.scales, protocol.flip).double().numpy()
            for c, heatmap in zip(sample.label.nonzero().flatten().tolist(), heat, strict=True):
                expected = counts_of(heatmap, config.fraction, sample.mask.numpy(), c)
                differ += np.abs(np.subtract(found.pop((sample.name, c, Way(config))), expected))[:2].sum()
                pixels += heatmap.size
    assert not found and differ <= 1e-3 * pixels


def test_crops_are_counted_on_the_whole_image(trained, tmp_path):
    """To the pixel, with the maps of `over_views` of the image at its own size. Images that are no larger than a crop are
    counted as without crops. In all passes the logits are those of the whole image at the network's size."""
    model, config, data = double(trained), CONFIGS[1], trained.load("val")
    sizes = {entry.name: size for entry, size in zip(data.entries, data.sizes, strict=True)}
    assert {*sizes.values()} == {(45, 60), (60, 45)}
    (store, number), (whole, other) = (
        counted(tmp_path / str(side), model, "val", [config], Protocol(tiles=side)) for side in (40, 60)
    )
    columns = ["name", "class", "tp", "fp", "fn"]
    rows = {(name, c): counts for name, c, *counts in store.frame(number)[columns].to_numpy()}
    for sample in (s for s in data if s.label.any()):
        image = datasets.preprocess(sample.image, sample.mask.shape)[None].double()
        maps = over_views(model.model, image, sample.label[None], [config], size=(64, 64), tiles=40, one_by_one=True)
        ((_, heats),) = maps.heatmaps(range(len(maps.pairs)), tuple(sample.mask.shape))
        for (_, c), heat in zip(maps.pairs.tolist(), heats[0], strict=True):
            assert rows.pop((sample.name, c)) == counts_of(heat.double().numpy(), None, sample.mask.numpy(), c)
    assert not rows
    plain, same = counted(tmp_path / "plain", model, "val", [config], Protocol(1))
    assert whole.frame(other)[columns].equals(plain.frame(same)[columns])
    near = model.model(torch.stack([s.image for s in samples_of(data, (64, 64), range(len(data)))]).double()).detach()
    assert np.allclose(store.logits(number), near, atol=1e-2) and np.allclose(whole.logits(other), near, atol=1e-6)


@pytest.mark.parametrize("labels", ["true", "every"])
def test_crops_explain_what_the_whole_image_is_named(trained, tmp_path, labels):
    (store, number), (whole, other) = (
        counted(tmp_path / str(side), trained, "val", CONFIGS[:1], Protocol(tiles=side, labels=labels)) for side in (40, 99)
    )
    found, expected = store.frame(number), whole.frame(other)
    assert found[["name", "class"]].equals(expected[["name", "class"]]) and found["tp"].sum() > 0


@pytest.mark.parametrize("how", ["reflected", "masked"])
def test_a_border_by_hand(trained, how):
    """The reflected image is explained with its border, which is cut off at the mask's size; the masked map has 0 there."""
    model, config = double(trained), CONFIGS[1]
    model = dataclasses.replace(model, size=(128, 256))
    sample = samples_of(model.load("val"), model.size)[0]
    top, left = round(32 / 128 * sample.mask.shape[0]), round(32 / 256 * sample.mask.shape[1])
    image, size = sample.image[None].double(), tuple(sample.mask.shape)
    if how == "reflected":
        inside = [*range(32, 0, -1)], [*range(-2, -34, -1)]
        image = torch.cat([image[:, :, inside[0]], image, image[:, :, inside[1]]], dim=2)
        image = torch.cat([image[..., inside[0]], image, image[..., inside[1]]], dim=3)
        size = (size[0] + 2 * top, size[1] + 2 * left)
    heats = explain(trace(model.model, image, sample.label[None]), **options(config) | {"size": size})
    if how == "reflected":
        heats = heats[:, top:-top, left:-left]
    else:
        kept = torch.zeros_like(heats)
        kept[:, top:-top, left:-left] = heats[:, top:-top, left:-left]
        heats = kept
    found = {row.label: row[3:] for row in count_batch(model, [sample], [Way(config)], Protocol(border=how))[0]}
    for c, heat in zip(sample.label.nonzero().flatten().tolist(), heats, strict=True):
        assert [*found[c]] == counts_of(heat.double().numpy(), None, sample.mask.numpy(), c)


def test_a_pass_of_every_label_explains_what_is_there_and_what_is_named(trained, tmp_path):
    data, ways = trained.load("val"), [Way(config) for config in CONFIGS[:2]]
    logits = torch.cat([trained.model(s.image[None]).detach() for s in samples_of(data, trained.size)])
    expected = (logits > 0) | (logits == logits.amax(dim=1, keepdim=True))
    names = [entry.name for entry in data.entries]
    claimed, there = ({(names[i], c) for i, c in which.nonzero().tolist()} for which in (expected, data.labels))
    assert claimed - there and there - claimed and claimed & there  # the tiny model errs both ways
    true = rows_of(tmp_path / "true", trained, "val", ways)
    every = rows_of(tmp_path / "every", trained, "val", ways, Protocol(4, labels="every"))
    assert {key[:2] for key in every} == claimed | there
    assert all(every[key] == own for key, own in true.items())
    assert all(tp == fn == 0 for (name, c, *_), (tp, _, fn) in every.items() if (name, c) not in there)


def test_images_that_are_named_more_classes_are_traced_by_themselves(trained, monkeypatch):
    """So no image gets a backward that it does not need. Images of which nothing is named still have their logits."""
    data, seen = trained.load("val"), []

    def noted(model, images, labels, *rest):
        seen.append([len(own) for own in labels])
        return over_views(model, images, labels, *rest)

    monkeypatch.setattr(counting, "over_views", noted)
    samples = samples_of(data, trained.size)[:6]
    named = torch.arange(len(trained.classes)) < torch.tensor([2, 1, 0, 3, 1, 0])[:, None]
    monkeypatch.setattr(counting, "_named", lambda *_: named & False if seen else named)
    blank = [sample._replace(label=sample.label * 0) for sample in samples]
    rows, logits = count_batch(trained, blank, [Way(CONFIGS[0])], Protocol(labels="every"))
    assert seen == [[1, 0, 1, 0], [2], [3]] and len(rows) == 7 and list(logits) == [samples[i].name for i in (1, 2, 4, 5, 0, 3)]
    assert count_batch(trained, blank, [Way(CONFIGS[0])], Protocol(labels="every")) == ([], {})


def test_a_pass_of_all_explains_every_class_in_every_image(tiles, tmp_path):
    """Also in images without one, whose every pixel is then a false positive or right."""
    data, ways, protocol = tiles.load("test"), [Way(CONFIGS[0]), Way(CONFIGS[0], "argmax", 0.5)], Protocol(4, labels="all")
    found = rows_of(tmp_path / "all", tiles, "test", ways, protocol)
    otsu = {key[0]: own for key, own in found.items() if key[3] == "otsu"}
    true = rows_of(tmp_path / "true", tiles, "test", ways[:1])
    assert {*otsu} == {entry.name for entry in data.entries} and len(data.scored) < len(data)
    assert {key[0]: own for key, own in true.items()} == {name: own for name, own in otsu.items() if own[0] + own[2]}
    clean = [name for name, own in otsu.items() if own[0] == own[2] == 0]
    assert len(clean) == len(data) - len(data.scored) and all(otsu[name][1] for name in clean)
    for name in otsu:  # what the table `clean` has the size of an image from
        background = [own for key, own in found.items() if key[0] == name and key[3] == "argmax"]
        assert sum(tp + fn for tp, _, fn in background) == 40 * 30


def test_a_model_with_a_logit_for_none_explains_its_classes(tiles):
    """None of the labels asks for the last logit, and an image of which nothing is named has no map."""
    torch.manual_seed(0)
    model = dataclasses.replace(tiles, model=vgg16(2, weights=None, width=16, hidden=16).eval())
    model = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, loss="softmax"))
    data = model.load("test")
    samples = [s for s in samples_of(data, model.size) if s.label.any()][:2]
    for best, named in ((0, 2), (1, 0)):
        with torch.no_grad():
            model.model.classifier[-1].bias.copy_(torch.eye(2)[best] * 1e3)
        rows, logits = count_batch(model, samples, [Way(CONFIGS[0])], Protocol(labels="every"))
        assert len(rows) == 2 and all(len(row) == 2 for row in logits.values())
        kept = pd.DataFrame(logits).T
        top = explained(torch.tensor(kept.to_numpy()), "top", "softmax")
        assert int(top[:, 0].sum()) == named


def test_named_classes_are_those_of_scale_1(trained):
    """So other scales never change what is claimed. The model's biases lie between its logits at the two sizes."""
    model, sample = copy.deepcopy(trained.model), samples_of(trained.load("val"), (128, 128))[0]
    small = interpolate(sample.image[None], trained.size, mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = torch.stack([model(image)[0] for image in (small, sample.image[None])])
        model.classifier[-1].bias -= logits.mean(dim=0)
    expected = set((logits[0] > logits[1]).nonzero().flatten().tolist())
    assert 0 < len(expected) < len(logits[0])
    protocol = Protocol(labels="every", scales=(1.0, 2.0))
    rows, _ = count_batch(dataclasses.replace(trained, model=model), [sample], [Way(CONFIGS[0])], protocol)
    assert {row.label for row in rows} == expected | {*sample.label.nonzero().flatten().tolist()}


def test_a_protocol_reaches_the_trace_and_its_counts_are_kept_beside(trained, tmp_path, monkeypatch):
    seen, real = [], counting.over_views

    def noted(model, images, labels, configs, layers, size, *views):
        maps = real(model, images, labels, configs, layers, size, *views)
        seen.append((tuple(images.shape[2:]), size, layers["S5"], maps.logits.dtype, *views))
        return maps

    monkeypatch.setattr(counting, "over_views", noted)
    pool = ((64, 64), (64, 64), "features.30", torch.float32, (1.0,), False, None)
    protocols = {
        Protocol(): pool, Protocol(outputs="relu"): (*pool[:2], "features.29", *pool[3:]),
        Protocol(size=(96, 64)): ((96, 64), (96, 64), *pool[2:]),
        Protocol(bfloat16=True): (*pool[:3], torch.bfloat16, *pool[4:]),
        Protocol(flip=True): (*pool[:5], True, None),
        Protocol(scales=(0.5, 1.5)): ((96, 96), *pool[1:4], (0.5, 1.5), False, None),
        Protocol(border="masked"): pool, Protocol(border="reflected"): ((128, 128), (128, 128), *pool[2:]),
    }  # fmt: skip
    found = [tuple(rows_of(tmp_path, trained, "val", CONFIGS[:2], protocol).values()) for protocol in protocols]
    assert list(dict.fromkeys(seen)) == [*dict.fromkeys(protocols.values())] and len(set(found)) == len(found)
    calls = len(seen)
    again = [tuple(rows_of(tmp_path, trained, "val", CONFIGS[:2], protocol).values()) for protocol in protocols]
    assert again == found and len(seen) == calls and next(trained.model.parameters()).dtype == torch.float32


def test_what_is_measured_is_kept_and_only_the_rest_is_measured(trained, tmp_path, monkeypatch):
    asked, count = [], counting.count_batch
    monkeypatch.setattr(counting, "count_batch", lambda t, s, ways, p: asked.append(ways) or count(t, s, ways, p))
    first = rows_of(tmp_path, trained, "val", CONFIGS[:2])
    assert asked and all(ways == [Way(c) for c in CONFIGS[:2]] for ways in asked)
    asked.clear()
    both = rows_of(tmp_path, trained, "val", CONFIGS[1:])
    assert asked and all(ways == [Way(c) for c in CONFIGS[2:]] for ways in asked)
    asked.clear()
    assert rows_of(tmp_path, trained, "val", CONFIGS) == both and not asked and first.items() < both.items()


def test_files_are_the_same_bytes_whatever_the_order(trained, tmp_path):
    counted(tmp_path / "once", trained, "val", CONFIGS)
    for config in reversed(CONFIGS):
        counted(tmp_path / "piecewise", trained, "val", [config])
    names = ["counts.val.csv.gz", "logits.val.csv.gz"]
    once, piecewise = ([(tmp_path / way / name).read_bytes() for name in names] for way in ("once", "piecewise"))
    assert once == piecewise


def test_what_is_interrupted_goes_on(trained, tmp_path, monkeypatch):
    """After its last batch, and with the same bytes as an undisturbed run."""
    counted(tmp_path / "whole", trained, "val", CONFIGS, Protocol(2))
    calls, third = at_call(3, counting.count_batch)
    with monkeypatch.context() as patched:
        patched.setattr(counting, "count_batch", third)
        with pytest.raises(KeyboardInterrupt):
            counted(tmp_path / "cut", trained, "val", CONFIGS, Protocol(2))
    (number,) = Store(tmp_path / "cut").find(part="val")
    assert Store(tmp_path / "cut").frame(number)["name"].nunique() == 4 and not Store(tmp_path / "cut").done(number)
    monkeypatch.setattr(counting, "count_batch", third)
    counted(tmp_path / "cut", trained, "val", CONFIGS, Protocol(2))
    data = trained.load("val")
    assert len(calls) == 1 + len(counting.batches(data, Protocol(2), annotated=False))
    for name in ("counts.val.csv.gz", "logits.val.csv.gz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("room", [3, 1])
def test_a_batch_that_memory_does_not_hold_is_halved(room, trained, monkeypatch, caplog):
    ways, samples = [Way(CONFIGS[1]), Way(CONFIGS[0], "argmax", 0.3)], samples_of(trained.load("val"), trained.size)
    whole, logits = count_batch(trained, samples, ways, Protocol())
    count, sizes = counting._count, []

    def small(trained, samples, *rest):
        if len(samples) > room:
            raise torch.OutOfMemoryError
        sizes.append(len(samples))
        return count(trained, samples, *rest)

    monkeypatch.setattr(counting, "_count", small)
    rows, others = count_batch(trained, samples, ways, Protocol())
    assert {*rows} == {*whole} and sum(sizes) == len(samples) and max(sizes) == room and "trying 3" in caplog.text
    assert others.keys() == logits.keys()
    room = 0
    with pytest.raises(
        UnavailableError, match=r"GPU memory does not hold one image \(2007_\d+, mask \(\d+, \d+\)\): free memory"
    ):
        count_batch(trained, samples, ways, Protocol())


def test_batches_hold_images_with_equally_many_classes_and_of_one_size(trained, tiles):
    data = trained.load("val")
    assert data.sizes == [data.mask(i).shape for i in range(len(data))] and len(set(data.sizes)) > 1
    batches = counting.batches(data, Protocol(2), annotated=False)
    assert all(len({int(data.labels[i].sum()) for i in batch}) == 1 for batch in batches)
    order = [(int(data.labels[i].sum()), data.sizes[i]) for batch in batches for i in batch]
    assert order == sorted(order) and len(order) == len(data)
    data = tiles.load("test")
    scored, every = (counting.batches(data, Protocol(4), annotated) for annotated in (False, True))
    assert sorted(i for batch in scored for i in batch) == data.scored and len(data.scored) < len(data)
    assert sorted(i for batch in every for i in batch) == data.annotated == list(range(len(data)))
    assert [batch for batch in every if batch[0] in data.scored] == scored  # the same batches round alike


def test_an_image_without_a_class_is_background(tiles, tmp_path):
    """argmax counts it, Otsu's threshold has nothing to cut."""
    data, config = tiles.load("test"), Config("layercam")
    store, number = counted(tmp_path, tiles, "test", [Way(config), Way(config, "argmax", 0.3)])
    table = store.frame(number)
    free = {data.entries[i].name for i in data.annotated} - {data.entries[i].name for i in data.scored}
    assert set(table["name"]) == {entry.name for entry in data.entries} and free
    rows = table[table["name"].isin(free)]
    assert set(rows["cut"]) == {"argmax"} and rows[["class", "tp", "fp", "fn"]].drop_duplicates().values.tolist() == [
        [-1, 1200, 0, 0]
    ]
    assert set(store.logits(number).index) == set(table["name"]) - free


@pytest.mark.parametrize("change", ["part", "checkpoint", "decoded", "counts", "nothing"])
def test_counts_of_something_else_are_kept_beside(change, trained, tmp_path, monkeypatch):
    part, calls, count = "val", [], counting.count_batch
    before = counted(tmp_path, trained, part, CONFIGS[:1])[0].frame(1)
    if change == "part":
        part = "train"
    elif change == "checkpoint":
        trained = dataclasses.replace(trained, sha256="another")
    elif change == "decoded":
        mask = type(trained.load("val")).mask
        monkeypatch.setattr(type(trained.load("val")), "mask", lambda self, index: mask(self, index) % 255)
    elif change == "counts":
        monkeypatch.setattr(counting, "COUNTS", COUNTS + 1)
    monkeypatch.setattr(counting, "count_batch", lambda *a: calls.append(1) or count(*a))
    store, number = counted(tmp_path, trained, part, CONFIGS[:1])
    assert bool(calls) == (change != "nothing") and number == (1 if change == "nothing" else 2)
    assert store.frame(1).equals(before)


def test_provenance_says_what_was_measured(trained, tmp_path):
    counted(tmp_path, trained, "val", CONFIGS[:1])
    record = provenance.read(tmp_path)["counts.val.csv.gz"]
    assert record["identity"] == json.loads(json.dumps(identity(trained, trained.load("val"), Protocol(4))))
    assert record["identity"]["data"] == "PASCAL VOC 2012 subset" and record["identity"]["checkpoint"] == trained.sha256
    assert record["images"] == {"part": 6, "scored": 6} and record["processes"] == 1
    assert {"commit", "dirty", "versions", "device", "seconds", "sha256"} <= record.keys()


def test_layers_that_are_not_there_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match="'S9'"):
        counted(tmp_path, trained, "val", [Config("gradcam", "S9")])


LT = Config("gradcam", "S1-S5", 20.0)
PROBE = [
    *(Config(m, layers, delta) for m in ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "sim")
      for layers in ("S5", "S1-S5") for delta in (None, 0.0, 20.0)),
    *(Config("fullgrad", layers, delta) for layers in ("all", "S4-S5") for delta in (None, 0.0, 20.0)),
    *(dataclasses.replace(LT, fuse=fuse) for fuse in ("sum", "max", "mean", "prod")),
    *(dataclasses.replace(LT, normalize=how) for how in ("none", "max", "minmax", "tanh")),
    *(Config(m, layers, 20.0, "channel") for m, layers in (("gradcam", "S1-S5"), ("layercam", "S1-S5"), ("fullgrad", "all"))),
    dataclasses.replace(LT, compare="gt"), dataclasses.replace(LT, refine=Refine("S3-S5", 8)),
    Config("fullgrad", "all", align_corners=True), dataclasses.replace(LT, fraction=0.35),
]  # fmt: skip


def probe():
    """SHA-256 of the counts of two images of the demo by a small network with random weights, in float64 on the CPU."""
    data = datasets.load("demo", "test")
    samples, found = samples_of(data, (64, 64), data.scored[:2]), []
    for head, ways, protocol in (
        ("fc", [Way(config) for config in PROBE], Protocol()), ("gap", [Way(Config("cam"))], Protocol()),
        ("fc", [Way(LT)], Protocol(labels="every")), ("fc", [Way(LT)], Protocol(outputs="relu")),
        ("fc", [Way(LT, "argmax", 0.3)], Protocol(scales=(0.5, 1.0), flip=True)),
    ):  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = vgg16(len(data.classes), head, weights=None, hidden=16, width=16).double().eval()
        rows, logits = count_batch(Trained(model, Recipe(), data.classes, (64, 64), {}), samples, ways, protocol)
        if protocol.labels == "every":  # read the predicted classes
            pairs = pd.DataFrame([row[:2] for row in rows], columns=["name", "class"])
            every = Counts(pairs, (LT,), np.array([row[3:] for row in rows])[:, None])
            own = every.explained(pd.DataFrame(logits).T, "predicted", "sigmoid")
            keys = zip(own.pairs["name"], own.pairs["class"], own.values[:, 0].tolist(), strict=True)
            rows = [(name, c, Way(LT), *row) for name, c, row in keys]
        found.append(sorted((name, c, str(way.config), way.cut, *counts) for name, c, way, *counts in rows))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def test_other_counts_have_another_number():
    """Kept counts are valid as long as the code gives those of the probe. If this fails and you meant to change them, raise
    COUNTS in ltcam/experiment/counting.py and write both here: counts are then measured again."""
    assert (COUNTS, probe()) == (4, "78194b47e7b08e6e25e8a29afb938b6d73c8e4cd509225144a385a15dba8b6c9")
