"""The contestants of the losses get the same labels and compute the same."""

import pytest
import torch

from benchmarks.cases import focal_loss
from benchmarks.cases.losses import DETECTORS, forget_gradients, training_pass
from benchmarks.models import ATSS, FCOS, RETINANET, build
from benchmarks.pretend_gpu import count, pretended_gpu
from benchmarks.settings import Settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal_losses_agree(dtype):
    logits, labels = focal_loss.inputs(Settings(quick=True), dtype)
    assert logits.dtype == dtype
    assert (labels < logits.shape[1]).any()
    focal_loss.check_gradients(logits, labels)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_pass_leaves_gradients_of_all_predictions(name):
    model = DETECTORS[name](num_classes=5).train()
    run, predictions = training_pass(model, (128, 160), 2, 6)
    anchors = 9 if name == RETINANET else 1
    assert {x.shape[1] for x in predictions} >= {5 * anchors, 4 * anchors}
    losses = run()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss > 0 for loss in losses.values())
    assert all(x.grad is not None for x in predictions)
    grads = [x.grad.clone() for x in predictions]
    forget_gradients(predictions)
    assert all(x.grad is None for x in predictions)
    if name == ATSS:  # Detectron2's normalizer is a moving average
        run()
        torch.testing.assert_close([x.grad for x in predictions], grads)


def test_detectors_have_the_same_backbone_and_pixels():
    models = [build(name, with_backbone=True, num_classes=3) for name in (ATSS, FCOS, RETINANET)]
    first = models[0]
    for model in models[1:]:
        assert torch.equal(model.pixel_std, first.pixel_std)
        assert torch.equal(model.pixel_mean, first.pixel_mean)
        for (name, a), (other, b) in zip(
            model.backbone.state_dict().items(), first.backbone.state_dict().items(), strict=True
        ):
            assert name == other
            assert torch.equal(a, b), name


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_on_the_pretended_gpu_are_those_of_the_cpu(name):
    """The same losses and gradients; ATSS makes the host wait for nothing."""
    arguments = (64, 96), 2, 3
    model = DETECTORS[name](num_classes=5).train()
    run, predictions = training_pass(model, *arguments)
    expected = run()
    model = DETECTORS[name](num_classes=5).train()
    run, pretended = training_pass(model, *arguments, pretended=True)
    with pretended_gpu() as gpu:
        losses = run()
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        torch.testing.assert_close(loss.values, expected[key].detach())
    for level, reference in zip(pretended, predictions, strict=True):
        torch.testing.assert_close(level.grad.values, reference.grad)
    assert gpu.launches.total() > 50
    _, waits = count(run)  # the first call fills caches
    assert (waits.total() == 0) == (name == ATSS)
