import numpy as np
import pytest
import torch

from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol, explained


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": "guessed"}, "labels='guessed' is unknown: expected"),
        ({"outputs": "conv"}, "outputs='conv' is unknown: expected"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number"),
        ({"scales": ()}, "scales"), ({"scales": (0,)}, "scales"), ({"scales": 1.5}, "scales"), ({"flip": 1}, "flip"),
        ({"tiles": 0}, "tiles=0: expected a whole number"), ({"border": "black"}, "border='black' is unknown: expected"),
        ({"flip": True, "tiles": 9}, r"tiles=9 of scaled or mirrored images: expected scales=\(1.0,\) and flip=False"),
        ({"border": "masked", "tiles": 9}, "border='masked' with scales, flip or tiles: expected it with one view"),
        ({"border": "reflected", "flip": True}, "border='reflected' with scales, flip or tiles"),
    ],
)  # fmt: skip
def test_a_protocol_that_does_not_exist(wrong, said):
    with pytest.raises(InputError, match=said):
        Protocol(**wrong)


def test_counts_without_views_are_as_they_were_before_there_were_any():
    plain = Protocol(4).identity((64, 64))
    assert plain == {"batch_size": 4, "labels": "true", "outputs": "pool", "size": [64, 64], "bfloat16": False}
    assert Protocol(4, scales=(1,), flip=False).identity((64, 64)) == plain == Protocol(4, size=(64, 64)).identity((9, 9))
    assert Protocol(4, flip=True).identity((64, 64)) == plain | {"scales": [1.0], "flip": True}
    assert Protocol(4, tiles=320).identity((64, 64)) == plain | {"scales": [1.0], "flip": False, "tiles": 320}
    assert Protocol(4, border="masked").identity((64, 64)) == plain | {"border": "masked"}


def test_values_are_plain_and_a_name_says_what_differs():
    numpy = Protocol(np.int64(4), size=[np.int64(96), 64], scales=[1, np.float64(1.5)])
    assert numpy == Protocol(4, size=(96, 64), scales=(1.0, 1.5)) and type(numpy.size[0]) is int
    assert numpy.name == "size=96x64,scales=1x1.5" and Protocol(3).name == "" and Protocol(flip=True).name == "flip=True"
    assert Protocol(labels="predicted", outputs="relu").name == "labels=predicted,outputs=relu"
    assert Protocol(tiles=np.int64(320)).name == "tiles=320" and Protocol(border="masked").name == "border=masked"


def test_how_an_image_enters():
    """At its own size where it is longer than a crop; else as without crops."""
    plain, tiles = Protocol(4, scales=(1.0, 1.5)), Protocol(4, tiles=60)
    assert tiles.crops((61, 20)) == tiles.crops((20, 61)) == 60 and tiles.crops((60, 60)) is plain.crops((61, 20)) is None
    assert tiles.entering((61, 20), (64, 64)) == (61, 20)
    assert tiles.entering((60, 20), (64, 64)) == (64, 64) and plain.entering((61, 20), (64, 64)) == (96, 96)
    assert Protocol(size=(32, 64), tiles=60).entering((9, 9), (64, 64)) == (32, 64)


def test_what_a_model_names_by_hand():
    logits = torch.tensor([[1.0, -1.0, 2.0], [-3.0, -1.0, -1.2], [0.5, 0.5, -4.0]])
    assert explained(logits, "top", "sigmoid").int().tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0]]  # of equals all
    assert explained(logits, "predicted", "sigmoid").int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    # exp(-1) = 0.37 is below half of the largest probability, exp(-0.2) = 0.82 is above
    assert explained(logits, "predicted", "softmax").int().tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 0]]
    assert Protocol(labels="top").measured == Protocol(labels="every") and Protocol().measured == Protocol()
