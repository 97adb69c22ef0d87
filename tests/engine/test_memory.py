"""What a trace costs in memory: little more than a bare forward and backward to the same activations."""

import gc

import torch
from torch.profiler import ProfilerActivity, profile

from ltcam import trace
from ltcam.engine.stages import stages
from ltcam.experiment.vgg16 import vgg16


def peak(work):
    """The largest sum of the bytes that `work` holds at once on the CPU."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = work()
    held = highest = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    del result
    return highest


def bare(model, images):
    """Forward and backward to the stages' outputs, and nothing else."""
    kept, names = [], stages(model).values()
    x = images
    for i, module in enumerate(model.features):
        x = module(x)
        if f"features.{i}" in names:
            kept.append(x if kept else x.detach().requires_grad_())
            x = kept[-1]
    logits = model.classifier(torch.flatten(model.avgpool(x), 1))
    return kept, torch.autograd.grad(logits[:, 0].sum(), kept)


def test_peak_of_a_trace():
    """Shows: VGG16, batch 4 at 224, at most 1.15 of the floor."""
    model = vgg16(20, weights=None).eval().requires_grad_(False)
    images = torch.randn(4, 3, 224, 224)
    floor, ours = peak(lambda: bare(model, images)), peak(lambda: trace(model, images, 0))
    assert 4 * 3e7 < floor < ours <= 1.15 * floor


def test_nothing_grows_and_weights_get_no_gradient(tiny, images):
    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    trace(tiny, images, [[0, 1], [2], [3]], fullgrad=True)
    before = alive()
    for _ in range(50):
        trace(tiny, images, [[0, 1], [2], [3]], fullgrad=True)
    assert alive() <= before
    assert all(p.grad is None for p in tiny.parameters())
