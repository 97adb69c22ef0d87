"""The two losses: a sigmoid a class, as the field trains, and one softmax, as the paper's Eq. 1 says."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ltcam.experiment.protocol import Loss


def sigmoid(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of a sigmoid a class. logits, labels (N, C); weights (C,) of the classes where they are."""
    return binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def softmax(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of a softmax. The classes of an image share the probability equally.

    logits (N, C); or (N, C + 1), whose last one is for "none" and gets all the probability where labels (N, C) name no class.
    weights (C,) of the classes where they are; "none" has a weight of 1.
    """
    count = logits.shape[1]
    given = torch.cat([labels, (labels.sum(dim=1, keepdim=True) == 0).to(labels)], dim=1)[:, :count]
    weights = None if weights is None else torch.cat([weights, weights.new_ones(1)])[:count]
    return cross_entropy(logits, given / given.sum(dim=1, keepdim=True), weights)


LOSSES = {"sigmoid": sigmoid, "softmax": softmax}


def outputs(labels: Tensor, loss: Loss) -> int:
    """How many logits labels (N, C) need: one a class. A softmax has one more, for "none", if an image has no class."""
    return labels.shape[1] + int(loss == "softmax" and not bool(labels.any(dim=1).all()))


def rarity(labels: Tensor) -> Tensor:
    """(C,): how many images lack a class for each image that has it, so that both weigh alike. 1 if no image has it."""
    present = labels.sum(dim=0)
    return torch.where(present > 0, (len(labels) - present) / present.clamp(min=1), 1.0)
