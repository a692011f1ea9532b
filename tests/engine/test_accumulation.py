"""Micro-batches train like the whole batch: by all positives, where these can be counted."""

import datetime
import logging

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from atss_d2.config import ConfigError
from atss_d2.engine import leave_process_group
from atss_d2.engine.step import StepTrainer
from atss_d2.modeling import ATSS, Assignment, ATSSMatcher
from atss_d2.modeling.accumulation import knows_totals
from atss_d2.modeling.criterion import ATSSCriterion
from tests import detector, toy
from tests import detectron2_models as d2
from tests.extensions.iou_branch import IoUBranchCriterion

NUM_BOXES = {"different numbers of boxes": (0, 1, 2, 3), "no boxes": (0, 0, 0, 0)}


def images(case: str) -> list[dict]:
    generator = torch.Generator().manual_seed(7)
    boxes = [d2.random_boxes(n, generator).tolist() for n in NUM_BOXES[case]]
    return [detector.image(x, seed=i) for i, x in enumerate(boxes)]


def losses_and_gradients(model, batch, num_parts):
    """The step of this process."""
    wrapped = DistributedDataParallel(model) if comm.get_world_size() > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = StepTrainer(wrapped, None, optimizer, accumulate=num_parts)
    losses, _ = trainer.compute(batch)
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[1].items():
        atol = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("case", NUM_BOXES)
@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"floor_per_image": True}, {"centerness": False}, {"criterion": IoUBranchCriterion}],
    ids=["atss", "mmdet", "no-centerness", "iou-branch"],
)
def test_micro_batches_equal_the_batch(case, num_parts, options):
    def model():
        parts = dict(options)
        if "criterion" in parts:
            parts["criterion"] = IoUBranchCriterion(centerness_weighted_box_loss=False)
        if "centerness" in parts:
            torch.manual_seed(0)
            parts = {"head": detector.toy_head(with_centerness=False)}
        return detector.build(**parts)

    expected = losses_and_gradients(model(), images(case), 1)
    assert_same(losses_and_gradients(model(), images(case), num_parts), expected)


def train_one_of_two(folder):
    torch.set_num_threads(1)
    rank = comm.get_rank()
    results = {}
    for case in NUM_BOXES:
        losses, gradients = losses_and_gradients(
            detector.build(), images(case)[2 * rank : 2 * rank + 2], 2
        )
        losses = torch.tensor(list(losses.values()))
        torch.distributed.all_reduce(losses)
        results[case] = losses / 2, gradients
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    leave_process_group()


def test_two_processes_with_micro_batches_equal_one_without(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    timeout = datetime.timedelta(minutes=5)
    launch(train_one_of_two, 2, dist_url="auto", args=(str(tmp_path),), timeout=timeout)
    for case, (losses, gradients) in torch.load(tmp_path / "results.pth").items():
        expected, expected_gradients = losses_and_gradients(detector.build(), images(case), 1)
        found = dict(zip(expected, losses.tolist()))
        assert_same((found, gradients), (expected, expected_gradients))


class OwnLosses(ATSS):
    def losses(self, predictions, targets):
        return {**super().losses(predictions, targets), "loss_own": self.head.cls_score.bias.sum()}


class OwnCriterion(ATSSCriterion):
    def compute(self, predictions, targets):
        return {**super().compute(predictions, targets), "loss_own": predictions.logits[0].mean()}


def test_whose_totals_are_known():
    model = detector.build()
    assert knows_totals(model)
    assert not knows_totals(d2.retinanet())
    model.matcher.needs_predictions = True
    assert not knows_totals(model)
    assert not knows_totals(detector.build(criterion=OwnCriterion()))
    model = detector.build()
    model.__class__ = OwnLosses
    assert not knows_totals(model)


@pytest.mark.parametrize("criterion", [OwnCriterion, IoUBranchCriterion])
def test_other_losses_are_the_mean_over_the_parts(criterion, caplog):
    """The box weights of the IoU branch depend on predictions, which only its losses show."""
    batch, parts = images("different numbers of boxes"), 2

    def model():
        return detector.build(criterion=criterion())

    with caplog.at_level(logging.INFO, "atss_d2"):
        losses, gradients = losses_and_gradients(model(), batch, parts)
    assert "normalized within each micro-batch" in caplog.text
    halves = [losses_and_gradients(model(), x, 1) for x in (batch[:2], batch[2:])]
    mean = {name: (halves[0][0][name] + halves[1][0][name]) / 2 for name in losses}
    mean_gradients = {name: (halves[0][1][name] + halves[1][1][name]) / 2 for name in gradients}
    assert_same((losses, gradients), (mean, mean_gradients))


class OwnSamplesOfBoxes(ATSSMatcher):
    """A rule without predictions whose boxes have fewer samples than their classes."""

    selects_boxes_separately = True

    def match(self, scene):
        matched = super().match(scene).matched_idxs
        return Assignment(matched, box_matched_idxs=torch.where(matched % 2 == 0, matched, -1))


def test_samples_of_boxes_of_their_own_are_normalized_within_the_parts(caplog):
    model = detector.build(matcher=OwnSamplesOfBoxes(num_anchors=1))
    with caplog.at_level(logging.INFO, "atss_d2"):
        losses, _ = losses_and_gradients(model, images("different numbers of boxes"), 2)
    assert "normalized within each micro-batch" in caplog.text
    assert all(loss > 0 for loss in losses.values())


class OtherAnchors(ATSS):
    """Trains other anchors than those that are counted in advance."""

    def as_predictions(self, maps):
        self.matcher.topk = 1
        return super().as_predictions(maps)


@pytest.mark.parametrize("floor_per_image", [False, True])
def test_a_batch_without_positives_does_not_verify_the_count(floor_per_image, caplog):
    model = detector.build(floor_per_image=floor_per_image)
    model.__class__ = OtherAnchors
    trainer = StepTrainer(model, None, torch.optim.SGD(model.parameters(), lr=0.0), accumulate=2)
    trainer.compute(images("no boxes"))
    assert "normalized within each micro-batch" not in caplog.text
    model.matcher.topk = 9
    trainer.compute(images("different numbers of boxes"))
    assert "normalized within each micro-batch" in caplog.text


OPTIONS = {"train.max_iter": 3, "train.eval_period": 0, "dataloader.train.total_batch_size": 4}


@pytest.mark.usefixtures("toy_data")
def test_a_run(tmp_path, whole_runs):
    plain = {**OPTIONS, "model.backbone.norm": "GN"}  # BatchNorm sees the images of a micro-batch
    run = toy.Run(tmp_path, **plain, **{"train.accumulate": 2}).train()
    whole = whole_runs(**plain)
    assert run.seen[0] == whole.seen[0][2:]  # the last call of the model in iteration 0
    torch.testing.assert_close(
        run.checkpoint()["model"], whole.checkpoint()["model"], rtol=1e-5, atol=1e-6
    )
    assert run.metrics[2]["total_loss"] == pytest.approx(whole.metrics[2]["total_loss"], rel=1e-5)


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("num", "message"),
    [(3, "train.accumulate is 3, which does not divide the 4 images of a batch"), (0, ">= 1")],
)
def test_impossible_numbers(tmp_path, num, message):
    with pytest.raises(ConfigError, match=message):
        toy.Run(tmp_path, **OPTIONS, **{"train.accumulate": num}).train()
