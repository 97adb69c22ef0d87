"""Targets in every container that people have them in: as the same data in a tensor, or refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from ltcam import trace

HOT = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
OF_HOT = [[0, 1], [0, 3], [2, 0]]
LABELS = [[0, 3], [1, 0], [2, 1]]


@pytest.mark.parametrize(
    ("targets", "pairs"),
    [
        ([3, 0, 1], LABELS),
        (np.array([3, 0, 1]), LABELS),
        (torch.tensor([3, 0, 1]), LABELS),
        (np.eye(4)[[3, 0, 1]], LABELS),
        ([{3}, torch.tensor([0]), 1], LABELS),
        ([np.int64(3), np.int64(0), np.int64(1)], LABELS),
        (2, [[0, 2], [1, 2], [2, 2]]),
        ([[3, 1], [], (0,)], [*OF_HOT[:2], [2, 0]]),
        (torch.tensor(HOT), OF_HOT),
        (pd.Series([3, 0, 1], index=list("abc")), LABELS),
        (pd.Series([3, 0, 1], dtype="Int64"), LABELS),
        (pd.Series([[3], [0], (1,)]), LABELS),
        (pd.Index([3, 0, 1]), LABELS),
        (pd.Series([3, 0, 1]).array, LABELS),
        (pd.Categorical([3, 0, 1]), LABELS),
        ([np.array(3), torch.tensor(0), pd.Series([1])], LABELS),
        (np.array(2), [[0, 2], [1, 2], [2, 2]]),
        (torch.tensor(2), [[0, 2], [1, 2], [2, 2]]),
        (pd.DataFrame(HOT, columns=list("abcd")), OF_HOT),
        (HOT.astype(bool), OF_HOT),
        (torch.tensor(HOT) > 0, OF_HOT),
        (torch.tensor(HOT).float(), OF_HOT),
        ([[3, 1], {0}, frozenset({2, 1})], [[0, 1], [0, 3], [1, 0], [2, 1], [2, 2]]),
    ],
)
def test_as_in_a_tensor(tiny, images, targets, pairs):
    assert trace(tiny, images, targets).pairs.tolist() == pairs


@pytest.mark.parametrize(
    "targets",
    [
        {3, 0, 1},
        frozenset({3, 0, 1}),
        {0: 3, 1: 0, 2: 1},
        {0: 3, 1: 0, 2: 1}.values(),
        {3: 0, 0: 1, 1: 2}.keys(),
        iter([3, 0, 1]),
    ],
)
def test_what_has_no_order_is_refused(tiny, images, targets):
    with pytest.raises(ValueError, match="which has no fixed order: pass a list or a tensor"):
        trace(tiny, images, targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (4, "class 4 is out of range: the model has 4 logits, expected 0 to 3"),
        (-1, "class -1 is out of range"),
        ([0, 1], "targets for 2 images: expected 3"),
        ([[], [], []], "targets are empty"),
        (torch.zeros(3, 4), "targets are empty"),
        (torch.zeros(3, 5), r"shape \(3, 5\): expected 0 and 1 of shape \(3, 4\)"),
        (torch.full((3, 4), torch.nan), "expected 0 and 1"),
        ([0.5, 1, 2], "expected an int or ints per image"),
        ("abc", "expected an int or ints per image"),
        (list(HOT), "name a class twice: expected ints per image, or one .* tensor of 0 and 1"),
        (HOT.tolist(), "name a class twice"),
        (tuple(torch.tensor(HOT)), "name a class twice"),
        ([pd.Series(row) for row in HOT], "name a class twice"),
        ([[1, 1], [2], [0]], r"targets \[1, 1\] name a class twice"),
        (list(HOT.astype(float)), "expected an int or ints per image"),
        (list(torch.tensor(HOT) > 0), "expected an int or ints per image"),
        ((HOT > 0).tolist(), "expected an int or ints per image"),
        ([np.array([True, False])] * 3, "expected an int or ints per image"),
        ([True, False, True], "expected an int or ints per image"),
        (torch.full((3, 4), 0.5), "targets of shape"),
        ([{3: 0.9}, {0: 0.1}, {1: 0.5}], "expected an int or ints per image"),
        (pd.Series(["a", "b", "c"]), "expected an int or ints per image"),
        (pd.Series([0.5, 1, 2]), "expected an int or ints per image"),
    ],
)
def test_refused(tiny, images, targets, message):
    with pytest.raises(ValueError, match=message):
        trace(tiny, images, targets)


def test_a_list_of_0_and_1_names_two_classes(tiny, images):
    """Rows of 0 and 1 are one tensor (N, C), and never a list: of two classes the two could not be told apart."""
    model, layers = torch.nn.Sequential(tiny, torch.nn.Linear(4, 2)), ["0.features.30"]
    both = [[i, c] for i in range(3) for c in (0, 1)]
    for rows in ([[0, 1], [1, 0], [0, 1]], [np.array([0, 1])] * 3):
        assert trace(model, images, rows, layers).pairs.tolist() == both
    assert trace(model, images, torch.tensor([[0, 1]] * 3), layers).pairs.tolist() == [[0, 1], [1, 1], [2, 1]]


def test_the_default_is_the_largest_logit(tiny, images):
    assert trace(tiny, images).pairs[:, 1].tolist() == tiny(images).argmax(dim=1).tolist()


def test_one_function_is_for_all_images(tiny, images):
    def margin(row):
        return row[2] - row[0]

    one, each = trace(tiny, images, margin), trace(tiny, images, [margin] * 3)
    assert one.pairs.tolist() == [[0, -1], [1, -1], [2, -1]]
    assert torch.equal(one.gradient("features.30"), each.gradient("features.30"))
    of_array = trace(tiny, images, np.array([margin] * 3))
    assert torch.equal(of_array.gradient("features.30"), each.gradient("features.30"))
