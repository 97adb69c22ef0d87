import copy
import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.filters import threshold_otsu

from ltcam import data as datasets
from ltcam import explain, files, trace
from ltcam.errors import UnavailableError
from ltcam.experiment import configs, counting, evaluation, metrics, provenance
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol, pick
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.study import Study
from ltcam.experiment.training import train
from ltcam.paper import tables as paper
from tests import lookalikes
from tests.experiment.test_training import TINY

CONFIGS = [
    Config("gradcam"),
    Config("gradcam", "S1-S5", 20.0),
    Config("fullgrad", "all"),
    Config("layercam", "S3-S5", 0.0, "channel"),
]

EVERY = [
    Config(method, layers, delta, per)
    for method in ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "fullgrad")
    for layers in ("S5", "S3-S5", "S1-S5", "all")
    for delta in (None, 0.0, 20.0, 90.0)
    for per in ("layer", "channel")
    if delta is not None or per == "layer"
] + [
    Config("gradcam", "S1-S5", 20.0, compare="gt"),
    Config("gradcam", "S1-S5", 20.0, fuse="max"),
    Config("gradcam", "S1-S5", 20.0, normalize="max"),
    Config("layercam", "S1-S5", 0.0, fuse="mean", normalize="minmax"),
    Config("layercam", "S1-S5", None, normalize="tanh"),
    Config("gradcam", "S1-S5", 20.0, fuse="prod"),
    Config("layercam", "S1-S5", None, normalize="tanh", refine="S3-S5:8"),
    Config("gradcam", "S3-S5", 20.0, refine="S3-S5:8:4:2:times"),
    Config("layercam", "S1-S5", 0.0, fraction=0.3, refine="S3-S5:8"),
    Config("fullgrad", "all", 20.0, align_corners=True),
    Config("layercam", "S1-S5", 0.0, fraction=0.3),
    Config("fullgrad", "all", 0.0, fraction=0.3),
]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    root = lookalikes.voc(folder / "data")
    for path in [*root.rglob("2007_000009.*g"), *root.rglob("2007_000010.*g"), *root.rglob("2007_000012.*g")]:
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)  # a batch holds images of two sizes
    lookalikes.magnetic_tile(root)
    for i, path in enumerate(sorted((root / "magnetic_tile").rglob("*.jpg"))):  # flat ones give maps that are all ties
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30), dtype=np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LTCAM_DATA", str(root))
        yield folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    return train(Recipe(data="voc2012", test="val", **TINY), folder)


@pytest.fixture(scope="module")
def run(checkpoint):
    return load_checkpoint(checkpoint)


@pytest.fixture
def study(checkpoint, output, monkeypatch):
    """The run as a study of one training; its counts are kept in a fresh folder."""
    monkeypatch.setenv("LTCAM_RUNS", str(output / "runs"))
    shutil.copytree(checkpoint.parent, output / "runs" / "voc2012", ignore=shutil.ignore_patterns("data", "defects"))
    out = files.results("paper", "voc2012")
    out.mkdir(parents=True)
    (out / "trainings.csv").write_text("name,seed,fold,mAP\n,,,0.5\n")
    return Study("paper", "voc2012")


@pytest.fixture(scope="module")
def defects(folder):
    """A model of defects, where images without any are not scored."""
    return load_checkpoint(train(Recipe(data="magnetic_tile", **TINY | {"epochs": 1}), folder / "defects"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("role", ["run", "defects"])
def test_counts_are_those_of_explain_and_scikit_image_one_by_one(role, request, tmp_path, dtype):
    """Every method, option and selection: in float64 to the pixel, in float32 but for pixels at the threshold."""
    model = request.getfixturevalue(role)
    trained, part = dataclasses.replace(model, model=copy.deepcopy(model.model).to(dtype)), model.recipe.test
    counts = evaluate(trained, part, EVERY, tmp_path, Protocol(4))
    keys = zip(counts["name"], counts["class"], configs.configurations(counts), strict=True)
    found = dict(zip(keys, counts[["tp", "fp", "fn"]].to_numpy(), strict=True))
    data = datasets.load(trained.recipe.data, part)
    assert len(found) == len(counts) == len(EVERY) * int(data.labels[data.scored].sum())
    differ = pixels = 0
    for i in data.scored:
        sample = data[i]
        image = datasets.preprocess(sample.image, trained.size)[None].to(dtype)
        traced = trace(trained.model, image, sample.label[None], fullgrad=True)
        valid = sample.mask.numpy() != 255
        for config in EVERY:
            options = dataclasses.asdict(config.options) | {"layers": config.selection, "size": sample.mask.shape}
            maps = explain(traced, **options)
            for (_, c), heatmap in zip(traced.pairs.tolist(), maps.double().numpy(), strict=True):
                cut = threshold_otsu(heatmap) if config.fraction is None else config.fraction * heatmap.max()
                predicted, truth = heatmap > cut, sample.mask.numpy() == c + 1
                expected = [(predicted & truth).sum(), (predicted & valid & ~truth).sum(), (~predicted & truth).sum()]
                difference = np.abs(found[sample.name, c, config] - expected)
                differ, pixels = differ + difference[0] + difference[1], pixels + predicted.size
    assert differ <= (0 if dtype == torch.float64 else 1e-4 * pixels)


def test_the_text_of_a_configuration_has_further_fields_by_name():
    text = "layercam:S1-S5:0,normalize=tanh,fraction=0.3,refine=S3-S5:28"
    assert Config.parse(text) == Config("layercam", "S1-S5", 0.0, normalize="tanh", fraction=0.3, refine="S3-S5:28")
    assert Config.parse("fullgrad:all,align_corners=True") == Config("fullgrad", "all", align_corners=True)
    assert Config("fullgrad", align_corners=True).options.align_corners is True
    assert Config.parse("fullgrad:all,align_corners=False") == Config("fullgrad", "all")
    for wrong in (
        "layercam,delta=3",
        "fullgrad,align_corners=yes",
        "layercam,x=1",
        "layercam,fuse",
        "layercam,fuse=a=b",
        "layercam,fraction=x",
        ",fuse=max",
    ):
        with pytest.raises(ValueError, match="is not a configuration: expected METHOD"):
            Config.parse(wrong)
    with pytest.raises(ValueError, match="fuse='x' is unknown"):
        Config.parse("layercam,fuse=x").options  # noqa: B018


def test_a_refined_row_adds_a_column_and_changes_no_other_table(run, tmp_path):
    plain = evaluate(run, "val", CONFIGS[:2], tmp_path / "one")
    before = (tmp_path / "one" / "counts.csv.gz").read_bytes()
    assert list(plain) == ["name", "group", "class", *metrics.ALWAYS, "tp", "fp", "fn"]
    refined = [CONFIGS[0], CONFIGS[0]._replace(refine="S4-S5:8"), CONFIGS[0]._replace(refine="S4-S5:9")]
    both = evaluate(run, "val", refined, tmp_path / "one")
    assert configs.configurations(both) == [config for config in refined for _ in range(len(both) // 3)]
    known = pd.read_csv(tmp_path / "one" / "counts.csv.gz")
    assert [*known] == ["name", "group", "class", *metrics.ALWAYS, "refine", "tp", "fp", "fn"] and len(known) == 2 * len(plain)
    rows = metrics.compact(known[known["refine"].isna()].reset_index(drop=True))
    assert gzip.decompress(before).decode() == rows.to_csv(index=False, lineterminator="\n")
    for again in (evaluate(run, "val", CONFIGS[:2], tmp_path / "one"), pick(known, CONFIGS[:2])):
        pd.testing.assert_frame_equal(again, plain, check_dtype=False)
        pd.testing.assert_frame_equal(metrics.scores(again), metrics.scores(plain))
    assert [*pick(pd.DataFrame(columns=metrics.CONFIG), CONFIGS)] == metrics.ALWAYS
    scored = metrics.scores(both)
    assert configs.configurations(scored) == refined and scored["mIoU"].nunique() == 3
    pd.testing.assert_frame_equal(metrics.compact(scored[:1]), metrics.scores(plain)[:1], check_dtype=False)
    resized = CONFIGS[0]._replace(layers="S1-S5", align_corners=True)
    evaluate(run, "val", [resized], tmp_path / "one")
    known = pd.read_csv(tmp_path / "one" / "counts.csv.gz")
    assert [*known] == ["name", "group", "class", *metrics.CONFIG, "tp", "fp", "fn"] and len(known) == 5 * len(plain) // 2
    pd.testing.assert_frame_equal(evaluate(run, "val", refined, tmp_path / "one"), both, check_dtype=False)
    assert configs.configurations(evaluate(run, "val", [resized], tmp_path / "one")) == [resized] * (len(plain) // 2)
    with pytest.raises(ValueError, match="refine='S5:x' is no way to spread a map"):
        evaluate(run, "val", [CONFIGS[0]._replace(refine="S5:x")], tmp_path / "one")


def test_predicted_classes_are_scored_and_missed_ones_counted(run, tmp_path):
    """A class that is not there has only false positives; one that is not predicted only false negatives."""
    data = datasets.load("voc2012", "val")
    true, predicted = (
        evaluate(run, "val", CONFIGS[:2], tmp_path / labels, Protocol(4, labels)).set_index(["name", "class", "layers"])
        for labels in ("true", "predicted")
    )
    logits = torch.stack([run.model(datasets.preprocess(data.image(i), run.size)[None])[0].detach() for i in range(len(data))])
    expected = (logits > 0) | (logits == logits.amax(dim=1, keepdim=True))
    names = [data[i].name for i in range(len(data))]
    claimed = {(names[i], c) for i, c in expected.nonzero().tolist()}
    there = {(names[i], c) for i, c in data.labels.nonzero().tolist()}
    assert claimed - there and there - claimed and claimed & there  # the tiny model errs both ways
    assert {key[:2] for key in predicted.index} == claimed | there
    for (name, c, layers), row in predicted.iterrows():
        if (name, c) in claimed & there:
            assert row[["tp", "fp", "fn"]].tolist() == true.loc[name, c, layers][["tp", "fp", "fn"]].tolist()
        else:
            assert row["tp"] == 0 and (row["fn"] == 0 if (name, c) in claimed else row["fp"] == 0 < row["fn"])


def test_protocols_with_one_forward_share_it_and_count_what_each_counts_alone(run, tmp_path, monkeypatch):
    """Labels are targets of one trace, outputs are layers of it. FullGrad's terms of a stage are found at either output."""
    some = [*CONFIGS, Config("fullgrad", "S2-S3", 20.0), Config("fullgrad", "S5", None, "channel")]
    protocols = {
        "as it is": Protocol(4), "labels": Protocol(4, labels="predicted"), "outputs": Protocol(4, outputs="relu"),
        "both": Protocol(4, labels="predicted", outputs="relu"), "size": Protocol(4, size=(96, 64)),
    }  # fmt: skip
    chosen = {name: some[:-1] if name == "labels" else some for name in protocols}
    alone = [evaluate(run, "val", chosen[name], tmp_path / "alone" / name, p) for name, p in protocols.items()]
    traced, calls = counting.trace, []
    monkeypatch.setattr(counting, "trace", lambda *a: calls.append(a[1].shape) or traced(*a))
    wanted = [evaluation.Wanted(chosen[name], tmp_path / "shared" / name, p) for name, p in protocols.items()]
    batches = len(evaluation._batches(datasets.load("voc2012", "val"), 4))
    count_batch, cut = counting._count_batch, iter([True] * (batches - 1))
    with monkeypatch.context() as patched:
        patched.setattr(counting, "_count_batch", lambda *a: (next(cut), count_batch(*a))[1])
        with pytest.raises(StopIteration):
            evaluation.together(run, "val", wanted)
    (tmp_path / "shared" / "both").rename(tmp_path / "lost")  # its batches are counted again, and only its
    found = evaluation.together(run, "val", wanted)
    for one, other in zip(found, alone, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert len({frame.to_csv() for frame in alone}) == len(alone)
    assert len(calls) == batches - 1 + batches + batches


def test_fullgrad_of_all_layers_is_read_once_for_all_outputs(run, monkeypatch):
    """But not if it is refined along the features of a stage."""
    full = Config("fullgrad", "all")
    configs, asked, maps_of = [full, full._replace(refine="S3-S5"), Config("gradcam", "all")], [], counting.maps_of
    monkeypatch.setattr(counting, "maps_of", lambda t, items: asked.append([o.method for o, _ in items]) or maps_of(t, items))
    data = datasets.load("voc2012", "val")
    (samples,) = evaluation.image_loader(data, run, Protocol(), [data.scored[:2]])
    pool, relu = counting.count(run, samples, [(configs, Protocol()), (configs, Protocol(outputs="relu"))])
    assert asked == [["fullgrad", "fullgrad", "gradcam"], ["fullgrad", "gradcam"]]
    assert pool[::3] == relu[::3] and pool[1::3] != relu[1::3] and pool[2::3] != relu[2::3]


def test_what_is_run_is_part_of_what_is_kept(run, tmp_path, monkeypatch):
    """Stage outputs, input size and bfloat16 reach the trace, and other counts are never taken for theirs."""
    evaluation.behaviour()  # which traces its own probe, once in a process
    seen = []
    real = counting.trace

    def noted(model, images, labels, layers, fullgrad):
        traced = real(model, images, labels, layers, fullgrad)
        seen.append((tuple(images.shape[2:]), traced.layers[-1], traced.logits.dtype))
        return traced

    monkeypatch.setattr(counting, "trace", noted)
    first = evaluate(run, "val", CONFIGS[:2], tmp_path)
    for protocol in (Protocol(outputs="relu"), Protocol(size=(96, 64)), Protocol(bfloat16=True)):
        assert not evaluate(run, "val", CONFIGS[:2], tmp_path, protocol).equals(first)
    pool = ((64, 64), "features.30", torch.float32)
    relu, larger, half = ((64, 64), "features.29", pool[2]), ((96, 64), *pool[1:]), (*pool[:2], torch.bfloat16)
    assert list(dict.fromkeys(seen)) == [pool, relu, larger, half]
    assert next(run.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"labels": "guessed"}, {"outputs": "conv"}])
def test_a_protocol_that_does_not_exist(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}='{value}' is unknown: expected"):
        Protocol(**wrong)


def test_what_is_measured_is_kept_and_only_the_rest_is_measured(run, tmp_path, monkeypatch):
    trained = run
    first = evaluate(trained, "val", CONFIGS[:2], tmp_path)
    asked = []
    measure = evaluation._measure
    monkeypatch.setattr(evaluation, "_measure", lambda *a: asked.extend(c.missing for c in a[2]) or measure(*a))
    both = evaluate(trained, "val", CONFIGS[1:], tmp_path)
    assert asked == [CONFIGS[2:]]
    again = evaluate(trained, "val", CONFIGS, tmp_path)
    assert len(asked) == 1
    pd.testing.assert_frame_equal(again.iloc[: len(first)], first)
    pd.testing.assert_frame_equal(again.iloc[len(first) // 2 :].reset_index(drop=True), both)


def test_files_are_the_same_bytes_whatever_the_order(run, tmp_path):
    trained = run
    evaluate(trained, "val", CONFIGS, tmp_path / "once")
    for config in reversed(CONFIGS):
        evaluate(trained, "val", [config], tmp_path / "piecewise")
    once, piecewise = ((tmp_path / name / "counts.csv.gz").read_bytes() for name in ("once", "piecewise"))
    assert gzip.decompress(once) == gzip.decompress(piecewise) and once == piecewise


def test_an_interrupted_evaluation_goes_on(run, tmp_path, monkeypatch):
    trained = run
    whole = evaluate(trained, "val", CONFIGS, tmp_path / "whole", Protocol(2))
    count_batch, calls = counting._count_batch, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return count_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(counting, "_count_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(trained, "val", CONFIGS, tmp_path / "cut", Protocol(2))
    journal = next((tmp_path / "cut").glob("*.partial.jsonl"))
    with journal.open("a") as file:
        file.write('[["2007_0000')  # a line cut off in the writing
    monkeypatch.setattr(counting, "_count_batch", lambda *a: calls.append(1) or count_batch(*a))
    pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, tmp_path / "cut", Protocol(2)), whole)
    batches = evaluation._batches(datasets.load("voc2012", "val"), 2)
    assert len(calls) == len(batches) and not journal.exists()


def test_two_processes_count_what_one_counts(run, checkpoint, tmp_path, monkeypatch):
    """gloo on a CPU; the first two batches are of an interrupted run of one process, the others are dealt out."""
    configs, threads = [Config("gradcam", "S1-S5", 20.0), Config("layercam")], torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    evaluate(run, "val", configs, tmp_path / "alone", Protocol(1))
    cut, count = iter(range(2)), evaluation.count
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "count", lambda *a: (next(cut), count(*a))[1])
        with pytest.raises(StopIteration):
            evaluate(run, "val", configs, tmp_path / "shared", Protocol(1))
    torch.set_num_threads(threads)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ltcam", "evaluate"]
    asked = ["--checkpoint", checkpoint, "--batch-size", "1", "--config", "gradcam:S1-S5:20", "--config", "layercam"]
    done = subprocess.run(
        [*launch, *asked, "--out", tmp_path / "shared"], check=True, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.count("scores on") == 1
    alone, shared = ((tmp_path / name / "counts.csv.gz").read_bytes() for name in ("alone", "shared"))
    assert shared == alone
    assert json.loads((tmp_path / "shared" / "counts.json").read_text())["processes"] == 2
    assert not list(tmp_path.rglob("*partial*"))


def test_batches_hold_images_with_equally_many_classes():
    data = datasets.load("demo", "test")
    batches = evaluation._batches(data, 8)
    assert sorted(i for batch in batches for i in batch) == data.scored
    assert all(len({int(data.labels[i].sum()) for i in batch}) == 1 for batch in batches)


def test_a_batch_that_memory_does_not_hold_is_halved(run, tmp_path, monkeypatch, caplog):
    whole = evaluate(run, "val", CONFIGS[:1], tmp_path / "whole", Protocol(4))
    count_batch, sizes = counting._count_batch, []

    def small(trained, samples, readings):
        if len(samples) > room:
            raise torch.OutOfMemoryError
        sizes.append(len(samples))
        return count_batch(trained, samples, readings)

    monkeypatch.setattr(counting, "_count_batch", small)
    room = 1
    pd.testing.assert_frame_equal(evaluate(run, "val", CONFIGS[:1], tmp_path / "halves", Protocol(4)), whole)
    assert set(sizes) == {1} and "trying 1" in caplog.text
    room = 0
    with pytest.raises(UnavailableError, match="GPU memory does not hold one image"):
        evaluate(run, "val", CONFIGS[:1], tmp_path / "none", Protocol(4))


def test_batches_bring_images_of_one_size_together(run):
    data = datasets.load("voc2012", "val")
    assert data.sizes == [data.mask(i).shape for i in range(len(data))] and len(set(data.sizes)) > 1
    order = [(int(data.labels[i].sum()), data.sizes[i]) for batch in evaluation._batches(data, 2) for i in batch]
    assert order == sorted(order)


@pytest.mark.parametrize("change", ["part", "checkpoint", "probe", "decoded", "counts", "nothing"])
def test_counts_of_something_else_are_measured_anew(run, tmp_path, monkeypatch, change):
    trained, part, calls = run, "val", []
    evaluate(trained, part, CONFIGS[:1], tmp_path)
    if change == "part":
        part = "train"
    elif change == "checkpoint":
        trained = dataclasses.replace(trained, sha256="another")
    elif change == "probe":
        monkeypatch.setattr(evaluation, "behaviour", lambda: "another")
    elif change == "decoded":
        monkeypatch.setattr(type(run.load("val")), "mask", lambda self, index: np.zeros((45, 60), np.uint8))
    elif change == "counts":
        provenance.save(pd.DataFrame(columns=[*metrics.CONFIG]), tmp_path / "other.csv.gz", 0)
        (tmp_path / "other.csv.gz").replace(tmp_path / "counts.csv.gz")
    measure = evaluation._measure
    monkeypatch.setattr(evaluation, "_measure", lambda *a: calls.append(a) or measure(*a))
    evaluate(trained, part, CONFIGS[:1], tmp_path)
    assert len(calls) == (change != "nothing")


def test_a_delta_without_end_is_kept(run, tmp_path, monkeypatch):
    configs = [Config("layercam", "S5", 100 / 3)]
    first = evaluate(run, "val", configs, tmp_path)
    monkeypatch.setattr(evaluation, "_measure", None)
    pd.testing.assert_frame_equal(evaluate(run, "val", configs, tmp_path), first)


def test_provenance_says_what_was_measured(run, tmp_path):
    trained = run
    evaluate(trained, "val", CONFIGS[:1], tmp_path)
    record = json.loads((tmp_path / "counts.json").read_text())
    assert (
        record["data"] == "PASCAL VOC 2012 subset"
        and record["images"] == {"part": 6, "scored": 6}
        and record["source"]["name"] == "random"
    )
    assert {"fingerprint", "checkpoint", "probe", "commit", "dirty", "versions", "device", "seconds"} <= record.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config("scam"), "method 'scam' is unknown"),
        (Config("gradcam", "S5", 100), "delta=100"),
        (Config("gradcam", fraction=1.0), "fraction=1.0"),
        (Config("gradcam", fuse="product"), "fuse='product'"),
        (Config("gradcam", "S9"), "'S9'"),
    ],
)
def test_wrong_configurations(run, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        evaluate(run, "val", [config], tmp_path)


def test_tables_name_their_rows_and_stand_beside_the_papers(run, tmp_path):
    trained = run
    for number, rows in paper.TABLES.items():
        ours = paper.table(number, evaluate(trained, "val", list(rows.values()), tmp_path))
        assert ours["row"].tolist() == list(rows) == paper.published(number).index.tolist()
        both = paper.beside(number, ours)
        expected = ours.set_index("row")["IoU" if number == 4 else "mIoU"].round(2)
        assert both["mIoU", "ours"].tolist() == expected.tolist()
        assert both["mIoU", "paper"].tolist() == paper.published(number)["mIoU"].tolist()


def test_paper_values_are_the_papers():
    three, four = paper.published(3), paper.published(4)
    assert three.loc["LTGrad-CAM(l=5, δ=20)"].tolist() == [28.34, 43.39, 48.78, 43.06]
    assert four.loc["LTGrad-CAM(l=5, δ=20)", "mIoU"] == 35.37 and four["Recall"].idxmax() == "FullGrad"
    assert four.loc["LTGrad-CAM(l=5, δ=0)", "mIoU"] - four.loc["Layer-CAM(l=5, δ=0)", "mIoU"] == pytest.approx(4.09)
    assert paper.published(1)["mIoU"].tolist() == [10.13, 10.87, 11.68, 14.03, 25.31, 22.84, 21.57]


def test_table_4_is_pooled_and_table_3_is_not():
    """What `ltcam.paper.tables` says of the paper's own arithmetic."""
    for number, holds in ((3, False), (4, True)):
        rows = paper.published(number)
        p, r, f1 = rows["Precision"], rows["Recall"], rows["Micro-F1"]
        assert ((2 * p * r / (p + r) - f1).abs() < 0.02).all() == holds
        assert ((100 * f1 / (200 - f1) - rows["mIoU"]).abs() < 0.03).all() == holds


def test_marks_are_the_best_and_the_second():
    first, second, third = paper.mark(pd.Series([3.0, 2.0, 1.0]))
    assert "b7e1c0" in first and "bcd4f0" in second and third == ""


def test_checkpoint_that_is_missing_is_named():
    with pytest.raises(FileNotFoundError, match=r"no weights at .*checkpoint.pt"):
        load_checkpoint(Path("nowhere") / "checkpoint.pt")


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"vgg.pth is not a checkpoint of ltcam train"):
        load_checkpoint(tmp_path / "vgg.pth")


def test_what_a_killed_run_left_is_cleared_but_what_can_be_gone_on_with(run, tmp_path):
    counts = evaluate(run, "val", CONFIGS[:1], tmp_path)
    row = [counts["name"][0], int(counts["class"][0])]
    kept, other = ([[0, [[*row, *config, 1, 2, 3]]]] for config in CONFIGS[:2])
    (tmp_path / ".table.1.partial.csv").write_text("half")
    for name, lines in (("kept", kept), ("other", other)):
        (tmp_path / f"counts.{name}.0.partial.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pd.testing.assert_frame_equal(evaluate(run, "val", CONFIGS[:1], tmp_path), counts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["counts.csv.gz", "counts.json", "counts.other.0.partial.jsonl"]
