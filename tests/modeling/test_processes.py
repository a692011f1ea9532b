"""Detectors in DistributedDataParallel: two processes on the CPU, over gloo, one launch for all."""

import datetime
import functools

import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling.meta_arch import ProposalNetwork
from torch.nn.parallel import DistributedDataParallel

from atss_d2 import use_atss
from atss_d2.engine import leave_process_group
from atss_d2.modeling import (
    DistanceDistributions,
    IoUBranchCriterion,
    PAAMatcher,
    SoftTargetCriterion,
)
from tests import detectron2_models as d2
from tests import rcnn_models
from tests.detector import build, image, toy_head
from tests.tood import tood
from tests.vfnet import toy_vfnet

CHANGED = {"retinanet": d2.retinanet, "fcos": d2.fcos}


def paa(*, floor_by_images):
    """A detector whose box loss is weighted by its own predictions."""
    criterion = IoUBranchCriterion(quality_weighted_box_loss=True, floor_by_images=floor_by_images)
    return build(matcher=PAAMatcher(), criterion=criterion)


def proposal_network():
    """Our RPN in the setting in which all of its losses are ours."""
    parts = rcnn_models.build(rcnn_models.with_atss(rcnn_models.rcnn_config(), focal=True))
    return ProposalNetwork(
        backbone=parts.backbone,
        proposal_generator=parts.proposal_generator,
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[57.375, 57.12, 58.395],
    )


def soft_target(**options):
    """A detector with distributions whose scores learn the IoU of the predicted box."""
    torch.manual_seed(0)
    coder = DistanceDistributions(anchor_scale=4)
    return build(
        head=toy_head(with_centerness=False, num_box_values=coder.num_values),
        box2box_transform=coder,
        criterion=SoftTargetCriterion(**options),
    )


DETECTORS = {
    "rpn": proposal_network,
    "atss": build,
    "paa": functools.partial(paa, floor_by_images=False),
    "paa, mmdetection's": functools.partial(paa, floor_by_images=True),
    "tood": tood,
    "tood, warm-up": functools.partial(tood, warm_up_iterations=1),
    "vfnet": toy_vfnet,
    "gfl": soft_target,
    "vfl": functools.partial(soft_target, cls_loss="varifocal", box_weights="centerness"),
    "rtmdet": functools.partial(soft_target, box_weights="quality", normalized_by="quality"),
}


def scenario_batches():
    """Four images each; the first half belongs to the first of two processes."""
    generator = torch.Generator().manual_seed(7)
    full = [image(d2.random_boxes(3, generator).tolist(), seed=i) for i in range(4)]
    empty = [image(seed=i) for i in range(4)]
    # One anchor of 32 x 32 px around (20, 20), the only positive of the whole batch.
    one = [image([[4.0, 4, 36, 36]]), *empty[1:]]
    return {
        "all have boxes": full,
        "one process has no boxes": [*full[:2], *empty[2:]],
        "no process has boxes": empty,
        "one box in all": one,
    }


def changed_batch(rank):
    """The second process has no boxes, and no ignore regions either."""
    regions = {"gt_ignore": [False, False, True]}
    return [d2.image(d2.BOXES, 0, **regions)] if rank == 0 else [d2.image((), 1)]


def changed_model(name):
    return use_atss(CHANGED[name](), ignore_ioa_thresh=0.5)


def train_one_of_two(folder):
    """Body of a process: each model with its part of each batch; the first one writes."""
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    results = {}
    for detector, make in DETECTORS.items():
        for name, batch in scenario_batches().items():
            model = DistributedDataParallel(make())
            half = batch[2 * rank : 2 * rank + 2]
            losses = torch.stack(list(d2.losses_of(model, half).values())).detach()
            torch.distributed.all_reduce(losses)
            results[detector, name] = losses / 2, d2.gradients_of(model, half)
    for name in CHANGED:
        model = DistributedDataParallel(changed_model(name))
        results[name] = [d2.gradients_of(model, changed_batch(rank)) for _ in range(2)]
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    leave_process_group()


@pytest.fixture(scope="module")
def results_of_two_processes(tmp_path_factory):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    folder = str(tmp_path_factory.mktemp("two_processes"))
    timeout = datetime.timedelta(minutes=5)
    launch(train_one_of_two, 2, dist_url="auto", args=(folder,), timeout=timeout)
    return torch.load(f"{folder}/results.pth")


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("scenario", scenario_batches())
def test_two_processes_train_like_one(results_of_two_processes, detector, scenario):
    """Losses, averaged over processes, and DDP's gradients are those of the whole batch."""
    model, batch = DETECTORS[detector](), scenario_batches()[scenario]
    losses = torch.stack(list(d2.losses_of(model, batch).values()))
    two_losses, two_gradients = results_of_two_processes[detector, scenario]
    torch.testing.assert_close(two_losses, losses.detach(), rtol=1e-5, atol=1e-6)
    for name, gradient in d2.gradients_of(model, batch).items():
        atol = 1e-5 * gradient.abs().max().item()
        found = two_gradients[f"module.{name}"]
        torch.testing.assert_close(found, gradient, rtol=0, atol=atol, msg=name)
    assert (losses[1] == 0) == (scenario == "no process has boxes")


@pytest.mark.parametrize("name", CHANGED)
def test_gradients_of_changed_models_are_the_means(results_of_two_processes, name):
    models = [changed_model(name) for _ in range(2)]  # Detectron2's normalizer differs by process
    for found in results_of_two_processes[name]:
        first, second = (d2.gradients_of(m, changed_batch(r)) for r, m in enumerate(models))
        expected = {f"module.{key}": (first[key] + second[key]) / 2 for key in first}
        assert any(gradient.any() for gradient in first.values())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
