"""A detector with DDOD's parts: its counters, all ways of training it, exports."""

import copy
import datetime
import functools
import logging
import warnings

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine import launch
from detectron2.export import scripting_with_instances
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from atss_d2 import get_config
from atss_d2.checkpoint import SafeCheckpointer
from atss_d2.engine import leave_process_group
from atss_d2.engine.step import StepTrainer
from atss_d2.export import Metadata, export_onnx, export_torchscript, load_exported
from atss_d2.modeling import (
    ATSSHead,
    ATSSMatcher,
    DDODCriterion,
    DDODMatcher,
    DenseDetectorWithTTA,
    Predictions,
    Targets,
    anchor_generator,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.criterion.ddod import level_weights
from atss_d2.modeling.matchers import grid
from benchmarks import scenes
from tests import detector
from tests.detector import BOXES, image
from tests.exported import assert_same_detections, needs_graphs

LOSSES = ["loss_cls", "loss_box_reg", "loss_iou"]


def build(**options):
    """DDOD with weights that give scores of all sizes, and offsets of some pixels."""
    parts = {
        "matcher": DDODMatcher(),
        "criterion": DDODCriterion(num_levels=2),
        "test_score_type": "product",
        **options,
    }
    torch.manual_seed(0)
    model = detector.build(head=detector.toy_head(deform_first_conv=True), **parts)
    for subnet in (model.head.cls_subnet, model.head.bbox_subnet):
        nn.init.normal_(subnet[0].offset.weight, std=0.02)
    nn.init.normal_(model.head.ctrness.weight, std=0.15)
    return model


def batch_of(*boxes, **extra):
    return [image(b, seed=i, **extra) for i, b in enumerate(boxes)]


def scenarios():
    """Four images each; the first half belongs to the first of two processes."""
    return {
        "all have boxes": batch_of(BOXES, BOXES[:1], BOXES[1:3], BOXES[2:]),
        "one process has no boxes": batch_of(BOXES, BOXES[1:], [], []),
        "no process has boxes": batch_of([], [], [], []),
        "one box in all": batch_of([[4.0, 4, 36, 36]], [], [], []),
    }


# ------------------------------------------------------------------------------- weights


def test_level_weights_by_hand():
    found = level_weights(torch.tensor([[10, 30, 20], [0, 0, 0], [7, 7, 7]]))
    assert found.tolist() == [[2, 1, 1.5], [2, 2, 2], [2, 2, 2]]
    assert level_weights(torch.tensor([5])).tolist() == [2]
    # As many positives as in 180,000 iterations of 64 images, where float32 no longer counts.
    large = torch.tensor([10**10, 10**10 + 1, 10**10 + 4])
    assert level_weights(large).tolist() == [2, 1.75, 1]


def made_up(box_labels=None):
    """Two anchors on each of two levels, one image, two classes; the box coder is exact."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 32, 32], [8, 0, 40, 32], [0, 0, 64, 64], [16, 0, 80, 64]])
    shapes = {"logits": (2,), "regression": (4,), "quality": ()}
    parts = [
        [torch.rand(1, 2, *shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        for shape in shapes.values()
    ]
    labels = torch.tensor([[0, 2, 1, 1]])
    boxes = anchors[None] + torch.tensor([2.0, 3.0, 5.0, -3.0])
    targets = Targets(anchors.double(), labels, boxes.double(), box_labels=box_labels)
    return Predictions(*parts), targets


def made_up_criterion(**arguments):
    criterion = DDODCriterion(num_levels=2, **arguments)
    criterion.bind(box2box_transform=PointDistances(anchor_scale=4), num_classes=2)
    return criterion


def test_both_kinds_of_positives_have_counters_of_their_own():
    predictions, targets = made_up(box_labels=torch.tensor([[0, 2, 2, 2]]))
    separate, shared = made_up_criterion(), made_up_criterion(shared_counter=True)
    plain = made_up_criterion().eval()(predictions, targets)  # all weights are 2
    found = {x: x(predictions, targets) for x in (separate, shared)}
    for criterion in found:
        assert criterion.num_positives.tolist() == [[1, 2], [1, 0]]
    # Box positives: level 0 has the most of them; with those of the classification, both have two.
    for name in LOSSES[1:]:
        torch.testing.assert_close(found[separate][name], plain[name] / 2)
        torch.testing.assert_close(found[shared][name], plain[name])
    torch.testing.assert_close(found[shared]["loss_cls"], found[separate]["loss_cls"])
    # Now with [3, 4] positives of the classification, [2, 4] before those of boxes are added.
    second = shared(predictions, targets)
    weights = level_weights(torch.tensor([[2 + 1, 4], [2 + 2, 4]]))
    assert weights.tolist() == [[2, 1], [2, 2]]
    torch.testing.assert_close(second["loss_box_reg"], plain["loss_box_reg"])
    torch.testing.assert_close(second["loss_cls"], found[shared]["loss_cls"])


def test_only_training_steps_count():
    model, batch = build(), batch_of(BOXES, [])
    model(batch)
    counts = model.criterion.num_positives.clone()
    assert (counts.sum(dim=1) > 0).all()
    with torch.no_grad():
        model(batch)
    model.criterion.eval()  # as in engine/validation_loss.py
    losses = [model(batch) for _ in range(2)]
    torch.testing.assert_close(*losses)
    model.eval()(batch)
    assert torch.equal(model.criterion.num_positives, counts)
    model.train()(batch)
    assert torch.equal(model.criterion.num_positives, 2 * counts)


def test_atss_has_no_further_state():
    assert not [key for key in detector.build().state_dict() if "criterion" in key]
    assert [key for key in build().state_dict() if "criterion" in key] == [
        "criterion.num_positives"
    ]


def test_a_new_training_counts_from_zero(tmp_path):
    trained = build()
    trained(batch_of(BOXES))
    SafeCheckpointer(trained, str(tmp_path)).save("model")
    path = str(tmp_path / "model.pth")
    model = build()
    SafeCheckpointer(model).load_for_use(path)
    assert torch.equal(model.criterion.num_positives, trained.criterion.num_positives)
    for num_levels in (2, 3):
        model.criterion = DDODCriterion(num_levels=num_levels)
        SafeCheckpointer(model, str(tmp_path / "new")).resume_or_load(path)
        assert not model.criterion.num_positives.any()
    # The other way round, and into a model without counters.
    SafeCheckpointer(detector.build(), str(tmp_path)).save("atss")
    model = build()
    SafeCheckpointer(model).load(str(tmp_path / "atss.pth"))
    assert not model.criterion.num_positives.any()
    SafeCheckpointer(detector.build()).load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_levels": 0}, "num_levels must be >= 1, got 0"),
        ({"box_reg_loss_type": "iou"}, "box_reg_loss_type must be one of"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDODCriterion(**arguments)


def test_another_number_of_levels_is_named():
    with pytest.raises(ValueError, match=r"for 5 levels, but the head has 2: set criterion\.num_l"):
        build(criterion=DDODCriterion())(batch_of(BOXES))


def test_it_needs_a_quality():
    model = get_config("demo/ddod_shapes_wide").model
    model.head.with_centerness = False
    with torch.device("meta"), pytest.raises(ValueError, match="trains a quality, which the head"):
        instantiate(model)


# ---------------------------------------------------------------------------------- head


def test_only_the_first_convolution_is_deformable():
    shape = {"input_shape": [ShapeSpec(channels=32)], "num_classes": 2, "conv_dims": [32] * 3}
    head, plain = ATSSHead(**shape, deform_first_conv=True), ATSSHead(**shape)
    names = [name for name, _ in head.named_modules() if name.endswith("offset")]
    assert names == ["cls_subnet.0.offset", "bbox_subnet.0.offset"]
    assert head.cls_subnet[0].offset.out_channels == 18  # no masks
    assert not head.cls_subnet[0].offset.weight.any()
    names = {name.replace("subnet.0.conv", "subnet.0"): x for name, x in head.state_dict().items()}
    plain.load_state_dict({name: names[name] for name in plain.state_dict()})
    feature = torch.randn(1, 32, 5, 6)
    torch.testing.assert_close(head([feature]), plain([feature]))  # offsets start at zero


def test_a_first_convolution_is_needed():
    with pytest.raises(ValueError, match="deform_first_conv needs at least one convolution in con"):
        ATSSHead(
            input_shape=[ShapeSpec(channels=32)],
            num_classes=2,
            conv_dims=[],
            deform_first_conv=True,
        )


# ----------------------------------------------------------------- every way of training


@pytest.mark.parametrize("boxes", [(BOXES, []), ([], [])])
def test_losses_and_gradients(boxes):
    model = build()
    losses = model(batch_of(*boxes))
    assert list(losses) == LOSSES
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    is_empty = not any(boxes)
    for name in LOSSES[1:]:
        assert (losses[name] == 0) == is_empty
    assert model.head.cls_subnet[0].offset.weight.grad.any()


def test_losses_are_the_same_by_the_way_of_a_gpu(monkeypatch):
    batch = batch_of(BOXES, [])
    expected = build()(batch)
    monkeypatch.setattr(positives_module, "positive_rows", lambda _: slice(None))
    torch.testing.assert_close(build()(batch), expected)


def test_nothing_waits_for_a_gpu():
    """A fake tensor has a device, but no values: what reads one, or mixes devices, fails."""
    size = (64, 96)
    grid._cached_grid.cache_clear()
    with warnings.catch_warnings(), FakeTensorMode(), torch.device("cuda"):
        warnings.filterwarnings("ignore", "User provided device_type of 'cuda'")
        model = build().train()
        anchor_generator._HAS_CENTERED_CELLS[model.anchor_generator] = True
        with torch.device("cpu"):
            sizes = [(8, 12), (4, 6)]
            maps = [[torch.zeros(2, c, *s) for s in sizes] for c in (3, 4, 1)]
            features = [torch.zeros(2, 1, *s) for s in sizes]
            instances = scenes.ground_truth(2, 10, size, 3)
        maps = [[x.cuda().requires_grad_() for x in part] for part in maps]
        losses = model.forward_training(
            None, [x.cuda() for x in features], maps, [x.to("cuda") for x in instances]
        )
    grid._cached_grid.cache_clear()
    assert list(losses) == LOSSES
    for loss in losses.values():
        assert (loss.device.type, loss.dtype, loss.dim()) == ("cuda", torch.float32, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    batch = batch_of(BOXES, [])
    expected = {key: loss.item() for key, loss in build()(batch).items()}
    model = build()
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    # Samples are selected by predictions, which are rounded.
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=0.1)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_have_finite_gradients(size):
    predictions, targets = made_up()
    parts = {
        "logits": [size * x.float() for x in predictions.logits],
        "quality": [size * x.float() for x in predictions.quality],
    }
    predictions = predictions._replace(
        **parts, regression=[x.float() for x in predictions.regression]
    )
    inputs = [x.requires_grad_() for part in predictions[:3] for x in part]
    losses = made_up_criterion()(predictions, targets)
    gradients = torch.autograd.grad(sum(losses.values()), inputs)
    assert all(x.isfinite().all() for x in (*losses.values(), *gradients))


def test_a_predicted_box_without_area_has_a_quality_of_0():
    predictions, targets = made_up()
    predictions = predictions._replace(
        regression=[torch.zeros_like(x) for x in predictions.regression],
        quality=[torch.zeros_like(x) for x in predictions.quality],
    )
    losses = made_up_criterion().eval()(predictions, targets)
    # BCE(0.5, 0) = log 2 of three positives, weight 2.
    assert losses["loss_iou"].item() == pytest.approx(2 * torch.tensor(2.0).log().item())
    assert losses["loss_box_reg"].isfinite()


def test_gradients_equal_finite_differences():
    predictions, targets = made_up(box_labels=torch.tensor([[0, -1, 2, 1]]))
    criterion = made_up_criterion()
    criterion(predictions, targets)  # unequal weights, which evaluation mode keeps
    criterion.eval()
    wanted = {"loss_cls": "logits", "loss_box_reg": "regression", "loss_iou": "quality"}
    for loss, part in wanted.items():

        def compute(*x, loss=loss, part=part):
            return criterion(predictions._replace(**{part: list(x)}), targets)[loss]

        inputs = [x.clone().requires_grad_() for x in getattr(predictions, part)]
        assert torch.autograd.gradcheck(compute, inputs, atol=1e-6), loss
        # What a loss takes as given has no gradient.
        for name in wanted.values():
            inputs = [x.clone().requires_grad_() for x in getattr(predictions, name)]
            result = criterion(predictions._replace(**{name: inputs}), targets)[loss]
            assert result.requires_grad == (name == part)


def losses_and_counts(model, batch, steps=2):
    """Losses of some steps, gradients of the last, and the counters."""
    results = []
    for _ in range(steps):
        model.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        results.append(torch.stack([loss.detach() for loss in losses.values()]))
    plain = getattr(model, "module", model)
    gradients = {key: p.grad for key, p in plain.named_parameters()}
    return torch.stack(results), gradients, plain.criterion.num_positives


def train_one_of_two(folder):
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    results = {}
    for name, batch in scenarios().items():
        model = DistributedDataParallel(build())
        losses, gradients, counts = losses_and_counts(model, batch[2 * rank : 2 * rank + 2])
        torch.distributed.all_reduce(losses)
        both = [torch.zeros_like(counts) for _ in range(2)]
        torch.distributed.all_gather(both, counts)
        results[name] = losses / 2, gradients, both
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    leave_process_group()


def test_two_processes_train_like_one(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    # Copies of this process do not import everything again.
    forked = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", forked)
    timeout = datetime.timedelta(minutes=5)
    launch(train_one_of_two, 2, dist_url="auto", args=(str(tmp_path),), timeout=timeout)
    results = torch.load(tmp_path / "results.pth")
    for name, batch in scenarios().items():
        losses, gradients, counts = losses_and_counts(build(), batch)
        two_losses, two_gradients, both = results[name]
        assert all(torch.equal(x, counts) for x in both), name
        assert counts.any() == (name != "no process has boxes")
        torch.testing.assert_close(two_losses, losses, rtol=1e-5, atol=1e-6)
        largest = max(x.abs().max().item() for x in gradients.values())
        for key, gradient in gradients.items():
            atol = 1e-5 * max(gradient.abs().max().item(), 0.01 * largest)
            torch.testing.assert_close(
                two_gradients[key], gradient, rtol=0, atol=atol, msg=f"{name}: {key}"
            )


def test_micro_batches_count_like_the_batch(caplog):
    """They have their own normalizers, and the log says so; nothing is counted twice."""
    batch, counts = scenarios()["all have boxes"], []
    for num_parts in (1, 4):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with caplog.at_level(logging.INFO, "atss_d2"):
            StepTrainer(model, None, optimizer, accumulate=num_parts).compute(batch)
        counts.append(model.criterion.num_positives)
        assert ("normalized within each micro-batch" in caplog.text) == (num_parts == 4)
    assert torch.equal(*counts)
    assert counts[0].any()


def test_any_rule_goes_with_the_losses():
    model = build(matcher=ATSSMatcher())
    model(batch_of(BOXES))
    first, second = model.criterion.num_positives
    assert torch.equal(first, second)


# ------------------------------------------------------------- exports and several scales

FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}


def check_exported(path, exporter, **options):
    model = build().eval()
    sample = image(size=(48, 80))["image"][None]
    metadata = Metadata.from_model(model, class_names=["a", "b", "c"])
    exported = load_exported(exporter(model, sample, path, metadata=metadata, **options))
    for size in ((64, 96), (65, 97), (130, 71)):
        images = torch.stack([image(size=size, seed=i)["image"] for i in range(2)])
        assert min(assert_same_detections(exported(images), model, images)) > 0


@pytest.mark.parametrize("method", ["tracing", "scripting"])
def test_torchscript_files_detect_the_same(method, tmp_path):
    check_exported(tmp_path / "model.ts", export_torchscript, method=method)


@needs_graphs
def test_onnx_files_detect_the_same(tmp_path):
    """Their graph is also that of a .pt2 file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    check_exported(tmp_path / "model.onnx", export_onnx)


def test_scripted_models_detect_the_same():
    model = build().eval()
    scripted = scripting_with_instances(copy.deepcopy(model), FIELDS)
    (found,) = scripted([{"image": image()["image"]}])
    (expected,) = model([{"image": image()["image"]}])
    assert len(found.scores) >= len(expected["instances"].scores) > 0


def test_several_scales_are_merged():
    tta = DenseDetectorWithTTA(build().eval(), min_sizes=[64, 96])
    (found,) = tta([{"image": image()["image"]}])
    assert len(found["instances"]) > 0
