"""The contestants of the losses get the same labels and compute the same."""

import pytest
import torch

from benchmarks.cases import focal_loss
from benchmarks.cases.losses import DETECTORS, forget_gradients, training_pass
from benchmarks.models import ATSS, FCOS, RETINANET, build
from benchmarks.settings import Settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal_losses_agree(dtype):
    logits, labels = focal_loss.inputs(Settings(quick=True), dtype)
    assert logits.dtype == dtype
    assert (labels < logits.shape[1]).any()
    focal_loss.check_gradients(logits, labels)


def test_another_loss_is_noticed(monkeypatch):
    logits, labels = focal_loss.inputs(Settings(quick=True), torch.float32)
    wrong = {**focal_loss.LOSSES, "wrong": lambda x, y: 1.001 * focal_loss.ours(x, y)}
    monkeypatch.setattr(focal_loss, "LOSSES", wrong)
    with pytest.raises(AssertionError, match="wrong: "):
        focal_loss.check_gradients(logits, labels)


def test_one_hot_targets():
    targets = focal_loss.one_hot(torch.tensor([1, 3, 0]), torch.zeros(3, 3))
    assert targets.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert targets.dtype == torch.float32


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


def test_features_of_random_weights_stay_small():
    """Detectors with huge activations would be timed on infinities."""
    model = build(ATSS, with_backbone=True, num_classes=3).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 96))
    for feature in features.values():
        assert 1e-3 < feature.std() < 1e3
