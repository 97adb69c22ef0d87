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
        (list(HOT), OF_HOT),
        (list(HOT.astype(float)), OF_HOT),
        (tuple(torch.tensor(HOT)), OF_HOT),
        (list(torch.tensor(HOT) > 0), OF_HOT),
        (HOT.tolist(), OF_HOT),
        ((HOT > 0).tolist(), OF_HOT),
        ([pd.Series(row) for row in HOT], OF_HOT),
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
    with pytest.raises(ValueError, match="which has no sure order: pass a list or a tensor"):
        trace(tiny, images, targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([HOT[0], [2], [3]], "expected per image ints, or a row of 4 times 0 or 1"),
        ([np.array([True, False])] * 3, "expected per image ints, or a row of 4 times 0 or 1"),
        ([{3: 0.9}, {0: 0.1}, {1: 0.5}], "expected an int or ints per image"),
        (pd.Series(["a", "b", "c"]), "expected an int or ints per image"),
        (pd.Series([0.5, 1, 2]), "expected an int or ints per image"),
    ],
)
def test_refused(tiny, images, targets, message):
    with pytest.raises(ValueError, match=message):
        trace(tiny, images, targets)


def test_two_classes_leave_a_row_of_0_and_1_in_doubt(tiny, images):
    model = torch.nn.Sequential(tiny, torch.nn.Linear(4, 2))
    layers = ["0.features.30"]
    with pytest.raises(ValueError, match="are classes or rows of 0 and 1: pass lists of ints, or one"):
        trace(model, images, [np.array([0, 1])] * 3, layers)
    assert trace(model, images, [[0, 1], [1, 0], [0, 1]], layers).pairs.tolist() == [[i, c] for i in range(3) for c in (0, 1)]
    assert trace(model, images, [np.array([0.0, 1.0])] * 3, layers).pairs.tolist() == [[0, 1], [1, 1], [2, 1]]


def test_one_function_is_for_all_images(tiny, images):
    def margin(row):
        return row[2] - row[0]

    one, each = trace(tiny, images, margin), trace(tiny, images, [margin] * 3)
    assert one.pairs.tolist() == [[0, -1], [1, -1], [2, -1]]
    assert torch.equal(one.gradient("features.30"), each.gradient("features.30"))
    of_array = trace(tiny, images, np.array([margin] * 3))
    assert torch.equal(of_array.gradient("features.30"), each.gradient("features.30"))
