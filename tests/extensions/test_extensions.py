"""Three rules and losses of a user's own, walked from a config file to an exported detector."""

import copy
import datetime
import logging
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import launch
from detectron2.export import scripting_with_instances
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atss_d2.commands import train as train_net
from atss_d2.config import load_config
from atss_d2.engine import leave_process_group
from atss_d2.export import Metadata, export_onnx, export_torchscript, load_exported
from atss_d2.modeling import ATSS, DenseDetectorWithTTA
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.geometry import paired_iou
from atss_d2.modeling.matchers import selection
from atss_d2.modeling.nouns import DecodedPredictions, Predictions, Targets
from atss_d2.modeling.scene import build_scene
from tests import toy
from tests.detector import image
from tests.exported import assert_same_detections
from tests.extensions import dfl, iou_branch, soft

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = {"soft": soft, "dfl": dfl, "iou_branch": iou_branch}
LOSSES = {
    "soft": ["loss_cls", "loss_box_reg"],
    "dfl": ["loss_cls", "loss_box_reg", "loss_dfl"],
    "iou_branch": ["loss_cls", "loss_box_reg", "loss_iou"],
}
BOXES = [[3.0, 5, 40, 47], [30, 8, 90, 60], [50, 10, 71, 33], [0, 0, 96, 64]]
each = pytest.mark.parametrize("name", EXTENSIONS)


def config(name, output_dir):
    cfg = toy.config(output_dir, **{"train.max_iter": 80, "train.eval_period": 80})
    cfg.train.checkpointer.period = 40
    cfg.model._target_ = ATSS
    cfg.train.ema.update(enabled=True, decay=0.9)
    EXTENSIONS[name].change(cfg.model)
    if name == "dfl":
        cfg.model.box2box_transform.anchor_scale = 4  # anchors of 32 px on stride 8
    return cfg


def build(name, **changes):
    """A detector with weights that give scores of all sizes, and many detections."""
    torch.manual_seed(0)
    node = config(name, "unused").model
    node.backbone.norm = "FrozenBN"  # a batch norm would see other batches in two processes
    node.test_score_thresh = 0.005
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    model = instantiate(node)
    for predictor in (model.head.cls_score, model.head.bbox_pred, model.head.ctrness):
        if predictor is not None:
            nn.init.normal_(predictor.weight, std=0.1)
    return model


def batch_of(*boxes, **extra):
    classes = [[i % 2 for i in range(len(b))] for b in boxes]
    return [image(b, c, seed=i, **extra) for i, (b, c) in enumerate(zip(boxes, classes))]


# -------------------------------------------------------------------- as a user trains it


class Finished:
    """A run of train_net.py from a config file that imports an extension."""

    def __init__(self, name, folder):
        self.output_dir = folder / "output"
        self.file = folder / "config.py"
        self.file.write_text(
            "from tests import toy\n"
            "from tests.extensions import test_extensions\n\n"
            f"_cfg = test_extensions.config({name!r}, {str(self.output_dir)!r})\n"
            f"{', '.join(toy.KEYS)} = (_cfg[key] for key in toy.KEYS)\n"
        )
        command = ("--config-file", str(self.file))
        if name == "soft":  # as a command; the others are spared the seconds of its imports
            command = [sys.executable, "train_net.py", *command, "train.seed=0"]
            process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            assert process.returncode == 0, process.stderr
        else:
            train_net.run(train_net.get_parser().parse_args([*command, "train.seed=0"]))
        self.metrics = toy.read_metrics(self.output_dir)

    def mean(self, loss, iterations):
        values = [self.metrics[i][loss] for i in iterations]
        return sum(values) / len(values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        toy.write_dataset(tmp_path_factory.mktemp("toy_data"))
        yield {name: Finished(name, tmp_path_factory.mktemp(name)) for name in EXTENSIONS}
    logger = logging.getLogger("atss_d2")
    logger.handlers.clear()
    logger.propagate = True


@each
def test_training_learns(finished, name):
    run = finished[name]
    losses = {key for key in run.metrics[79] if key.startswith("loss_")}
    assert losses == set(LOSSES[name])
    # At first what they weigh by, scores or alignments, grows.
    for loss in ("loss_box_reg", "total_loss"):
        assert run.mean(loss, range(70, 80)) < 0.95 * run.mean(loss, range(40, 50)), loss
    assert run.metrics[80]["bbox/AP50"] > 45


def test_soft_targets_follow_the_warm_up(finished):
    metrics = finished["soft"].metrics
    assert [i for i in range(80) if "loss_centerness" in metrics[i]] == []
    assert [i for i in range(80) if "atss/sum_soft" in metrics[i]] == list(range(10, 80))
    assert [i for i in range(80) if "atss/mean_threshold" in metrics[i]] == list(range(10))


@each
def test_saved_configs_evaluate_to_the_same(finished, name, tmp_path):
    run = finished[name]
    saved = run.output_dir / "config.yaml"
    again = tmp_path / "again.yaml"
    LazyConfig.save(load_config(saved), str(again))
    assert again.read_text() == saved.read_text()
    weights = run.output_dir / "model_final.pth"
    command = ["--config-file", str(again), "--eval-only", f"train.init_checkpoint={weights}"]
    args = train_net.get_parser().parse_args([*command, f"train.output_dir={tmp_path}"])
    results = train_net.run(args)
    assert results["bbox"]["AP"] == pytest.approx(run.metrics[80]["bbox/AP"])


# ----------------------------------------------------------------- every way of training


@each
def test_losses_and_gradients(name):
    """Also without boxes, in one image and in all."""
    for boxes in ((BOXES, []), ([], [])):
        model = build(name)
        losses = model(batch_of(*boxes))
        assert list(losses) == LOSSES[name]
        for loss in losses.values():
            assert loss.shape == ()
            assert loss.isfinite()
        sum(losses.values()).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        is_empty = not any(boxes)
        for loss in LOSSES[name][1:]:
            assert (losses[loss] == 0) == is_empty
        assert (model.head.bbox_pred.weight.grad == 0).all() == is_empty


@each
def test_losses_are_the_same_by_the_way_of_a_gpu(name, monkeypatch):
    model, batch = build(name), batch_of(BOXES, [])
    expected = model(batch)
    monkeypatch.setattr(positives_module, "positive_rows", lambda _: slice(None))
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each
def test_autocast(name, dtype):
    model, batch = build(name), batch_of(BOXES, [])
    # Soft targets follow from predictions, by a power of 6: they move with the rounding.
    expected = {key: loss.item() for key, loss in model(batch).items()}
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    rel = 0.15 if name == "soft" else 0.05
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=rel)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_is_widened_before_any_loss_sees_it():
    """A criterion need not know that the head ran under autocast."""
    labels = torch.tensor([[0, 1, 2]])
    halves = [torch.randn(1, 3, *size).bfloat16() for size in ((2,), (4,), ())]
    boxes = torch.rand(1, 3, 4)
    found = positives_module.find_positives(
        Predictions(*([x] for x in halves)), Targets(boxes[0], labels, boxes), num_classes=2
    )
    assert found.regression.dtype == found.quality.dtype == torch.float32


def scenarios():
    """Four images each; the first half belongs to the first of two processes."""
    small = [[4.0, 4, 36, 36]]
    return {
        "all have boxes": batch_of(BOXES, BOXES[:1], BOXES[1:3], BOXES[2:]),
        "one process has no boxes": batch_of(BOXES, BOXES[1:], [], []),
        "no process has boxes": batch_of([], [], [], []),
        "one box in all": batch_of(small, [], [], []),
    }


def train_one_of_two(folder):
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    results = {}
    for name in EXTENSIONS:
        for scenario, batch in scenarios().items():
            model = DistributedDataParallel(build(name))
            losses = model(batch[2 * rank : 2 * rank + 2])
            sum(losses.values()).backward()
            mean = torch.stack([loss.detach() for loss in losses.values()])
            torch.distributed.all_reduce(mean)
            gradients = {key: p.grad for key, p in model.module.named_parameters()}
            results[name, scenario] = mean / 2, gradients
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    leave_process_group()


def test_two_processes_train_like_one(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    timeout = datetime.timedelta(minutes=5)
    launch(train_one_of_two, 2, dist_url="auto", args=(str(tmp_path),), timeout=timeout)
    results = torch.load(tmp_path / "results.pth")
    for (name, scenario), (two_losses, two_gradients) in results.items():
        model = build(name)
        losses = model(scenarios()[scenario])
        sum(losses.values()).backward()
        losses = torch.stack([loss.detach() for loss in losses.values()])
        largest = max(p.grad.abs().max().item() for p in model.parameters())
        torch.testing.assert_close(two_losses, losses, rtol=1e-5, atol=1e-6)
        for key, parameter in model.named_parameters():
            # Of a bias before a GroupNorm the gradient is 0, but for rounding.
            atol = 1e-5 * max(parameter.grad.abs().max().item(), 0.01 * largest)
            message = f"{name}, {scenario}: {key}"
            torch.testing.assert_close(
                two_gradients[key], parameter.grad, rtol=0, atol=atol, msg=message
            )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@each
def test_copies_train_the_same(name, duplicate):
    model, batch = build(name), batch_of(BOXES, [])
    with EventStorage():
        model(batch)
    twin = duplicate(model)
    torch.testing.assert_close(twin(batch), model(batch))
    assert twin.criterion.box2box_transform is twin.box2box_transform
    assert twin.criterion.box2box_transform is not model.box2box_transform


def test_a_coder_may_be_a_module():
    """Its buffers are in the state once, and move with what is scripted."""
    model = build("dfl").eval()
    keys = {key for key in model.state_dict() if not key.startswith(("backbone", "head"))}
    assert keys == {"box2box_transform.project"}
    scripted = scripting_with_instances(copy.deepcopy(model), FIELDS)
    assert "project" in scripted.detect.code


# ------------------------------------------------------------------- finite differences


def one_scene(coder):
    """Predictions (1, R, ...) and targets in float64, with positives, background and ignored."""
    generator = torch.Generator().manual_seed(3)
    centers = 8 * torch.rand(6, 2, generator=generator, dtype=torch.float64) + 20
    anchors = torch.cat((centers - 16, centers + 16), dim=1)
    margins = 4 + 12 * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    boxes = torch.cat((centers - margins[:, :2], centers + margins[:, 2:]), dim=1)
    labels = torch.tensor([[0, 1, 2, -1, 1, 2]])
    values = {
        "logits": torch.randn(1, 6, 2, generator=generator, dtype=torch.float64),
        "regression": 1 + torch.rand(1, 6, coder.num_values, generator=generator).double(),
        "quality": torch.randn(1, 6, generator=generator, dtype=torch.float64),
    }
    quality = torch.tensor([[0.7, 0.2, 0, 0, 0.9, 0]], dtype=torch.float64)
    return values, Targets(anchors, labels, boxes[None], quality)


class Points(PointDistances):
    num_values = 4  # Detectron2's Box2BoxTransform computes in float32


# What each loss is differentiated by; what it takes as given has no gradient at all.
GRADIENTS = {
    "soft": {"loss_cls": "logits", "loss_box_reg": "regression"},
    "dfl": {"loss_cls": "logits", "loss_box_reg": "regression", "loss_dfl": "regression"},
    "iou_branch": {"loss_cls": "logits", "loss_box_reg": "regression", "loss_iou": "quality"},
}


@each
def test_gradients_equal_finite_differences(name):
    coder = dfl.DistanceDistributions(anchor_scale=4) if name == "dfl" else Points(anchor_scale=4)
    criterion = build(name).criterion
    criterion.bind(box2box_transform=coder, num_classes=2)
    values, targets = one_scene(coder)
    if name != "soft":
        targets = targets._replace(soft=None)
    for loss, wanted in GRADIENTS[name].items():

        def compute(x, loss=loss, wanted=wanted):
            inputs = {**values, wanted: x}
            return criterion(Predictions(*([inputs[key]] for key in values)), targets)[loss]

        x = values[wanted].clone().requires_grad_()
        assert torch.autograd.gradcheck(compute, (x,), atol=1e-6), loss
        inputs = {key: value.clone().requires_grad_() for key, value in values.items()}
        result = criterion(Predictions(*([x] for x in inputs.values())), targets)[loss]
        gradients = torch.autograd.grad(result, list(inputs.values()), allow_unused=True)
        used = {key for key, x in zip(inputs, gradients) if x is not None and x.any()}
        assert used == {wanted}


# -------------------------------------------------------------- evaluation and exports

FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
SIZES = [(64, 96), (65, 97), (130, 71), (1, 1)]


@torch.no_grad()
def eager(model, batch):
    """Detections as a scripted model gives them: before Detectron2 removes those of no area."""
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    return model.forward_inference(images, features, model.head(features))


@each
def test_scripted_models_detect_the_same(name):
    model = build(name).eval()
    scripted = scripting_with_instances(copy.deepcopy(model), FIELDS)
    for size in SIZES:
        batch = [{"image": image(size=size)["image"]}, {"image": image(size=(40, 40))["image"]}]
        for found, expected in zip(scripted(batch), eager(model, batch), strict=True):
            assert len(expected) > 0
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            torch.testing.assert_close(found.scores, expected.scores)
            assert torch.equal(found.pred_classes, expected.pred_classes)


def export(model, path, exporter, **options):
    metadata = Metadata.from_model(model, class_names=toy.CLASSES)
    sample = image(size=(48, 80))["image"][None]
    return load_exported(exporter(model, sample, path, metadata=metadata, **options))


def assert_exported_detects_the_same(exported, model):
    for size in SIZES:
        images = torch.stack([image(size=size, seed=i)["image"] for i in range(2)])
        counts = assert_same_detections(exported(images), model, images)
        assert min(counts) > 0


@pytest.mark.parametrize("method", ["tracing", "scripting"])
@each
def test_torchscript_files_detect_the_same(name, method, tmp_path):
    model = build(name).eval()
    exported = export(model, tmp_path / "model.ts", export_torchscript, method=method)
    assert_exported_detects_the_same(exported, model)


@each
def test_onnx_files_detect_the_same(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = build(name).eval()
    assert_exported_detects_the_same(export(model, tmp_path / "model.onnx", export_onnx), model)


@each
def test_several_scales_are_merged(name):
    tta = DenseDetectorWithTTA(build(name).eval(), min_sizes=[64, 96])
    (found,) = tta([{"image": image()["image"]}])
    assert len(found["instances"]) > 0


# ---------------------------------------------------------------- soft: the rule by loops


def aligned_by_loops(scene, topk, alpha, beta):
    """Labels and soft targets (N, R), box by box; and how many anchors several boxes want."""
    anchors = torch.cat(scene.anchors)
    shape = scene.num_images, len(anchors)
    matched, soft_targets = torch.full(shape, -1), torch.zeros(shape)
    wanted = {}  # (image, anchor) -> [(IoU, box, alignment)]
    for box, (target, n, k) in enumerate(zip(scene.boxes, scene.image_idxs, scene.classes)):
        ious = paired_iou(scene.predictions.boxes[n], target)
        alignments = scene.predictions.logits[n, :, k].sigmoid() ** alpha * ious**beta
        ranks = sorted(range(len(anchors)), key=lambda r: (-alignments[r].item(), r))
        for r in ranks[:topk]:
            x, y = ((anchors[r, :2] + anchors[r, 2:]) / 2).tolist()
            x1, y1, x2, y2 = target.tolist()
            if alignments[r] > 0 and min(x - x1, y - y1, x2 - x, y2 - y) > 0.01:
                entry = ious[r].item(), -box, alignments[r].item()
                wanted.setdefault((int(n), r), []).append(entry)
    won = {}
    for place, entries in wanted.items():
        iou, box, alignment = max(entries)
        matched[place] = -box
        won.setdefault(-box, []).append((place, iou, alignment))
    for entries in won.values():
        best_iou = max(iou for _, iou, _ in entries)
        best = max(alignment for _, _, alignment in entries)
        for place, _, alignment in entries:
            soft_targets[place] = alignment / (best + 1e-7) * best_iou
    return matched, soft_targets, sum(len(entries) > 1 for entries in wanted.values())


def random_scene(seed, counts, num_anchors=(96, 24)):
    generator = torch.Generator().manual_seed(seed)

    def boxes(num, size=40):
        corners = 100 * torch.rand(num, 2, generator=generator)
        sides = 4 + size * torch.rand(num, 2, generator=generator)
        return torch.cat((corners, corners + sides), dim=1)

    total, num_images = sum(num_anchors), len(counts)
    predictions = DecodedPredictions(
        torch.randn(num_images, total, 3, generator=generator),
        torch.stack([boxes(total) for _ in counts]),
    )
    return build_scene(
        [boxes(num) for num in num_anchors],
        [boxes(num, 80) for num in counts],
        gt_classes=[torch.randint(3, (num,), generator=generator) for num in counts],
        predictions=predictions,
    )


@pytest.mark.parametrize("chunk", [1, 300, 2**18])
@pytest.mark.parametrize(
    ("topk", "alpha", "beta"), [(13, 1.0, 6.0), (3, 0.5, 2.0), (1000, 1.0, 1.0)]
)
def test_alignment_equals_the_loops(topk, alpha, beta, chunk, monkeypatch):
    monkeypatch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", chunk)  # boxes at once: 1, 2, all
    num_positives = num_contested = 0
    for seed, counts in enumerate([(4, 7), (0, 3), (5, 0, 2), (0, 0), (12,)]):
        scene = random_scene(seed, counts)
        matcher = soft.TaskAlignedMatcher(topk=topk, alpha=alpha, beta=beta)
        matched, soft_targets, *_ = matcher.assign(scene)
        expected, expected_soft, contested = aligned_by_loops(scene, topk, alpha, beta)
        assert torch.equal(matched, expected)
        torch.testing.assert_close(soft_targets, expected_soft)
        assert ((soft_targets > 0) == (matched >= 0)).all()
        num_positives += (matched >= 0).sum()
        num_contested += contested
    assert num_positives >= 10
    assert num_contested > 0


def test_alignment_by_hand():
    """Two anchors inside one box; scores 1/2 and 1/2, IoUs 1 and 1/2."""
    box = torch.tensor([[0.0, 0, 8, 8]])
    anchors = torch.tensor([[1.0, 1, 5, 5], [3.0, 3, 7, 7], [8.0, 8, 12, 12]])
    predictions = DecodedPredictions(
        torch.zeros(1, 3, 1), torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 8]]])
    )
    scene = build_scene([anchors], [box], gt_classes=[torch.tensor([0])], predictions=predictions)
    matched, soft_targets, stats, _ = soft.TaskAlignedMatcher(beta=2.0).assign(scene)
    assert matched.tolist() == [[0, 0, -1]]  # the third anchor's center is outside
    # Alignments 1/2 x 1^2 and 1/2 x (1/2)^2; the best is scaled to the best IoU, 1.
    assert soft_targets[0].tolist() == pytest.approx([1, 1 / 4, 0], rel=1e-5)
    assert stats["sum_soft"] == pytest.approx(1.25, rel=1e-5)


def test_predictions_that_overflowed_align_with_nothing():
    scene = random_scene(0, (4, 7))
    logits, boxes, _ = scene.predictions
    logits[:, ::3], boxes[:, 1::3] = math.nan, torch.tensor([-math.inf, 0, math.inf, math.nan])
    matched, soft_targets, *_ = soft.TaskAlignedMatcher().assign(scene)
    assert soft_targets.isfinite().all()
    assert (matched >= 0).any()
    assert (matched[:, ::3] == -1).all()
    assert (matched[:, 1::3] == -1).all()


def test_ignore_regions_have_no_positives_and_ignore_background():
    regions = image(BOXES, [0, 1, 0, 1])
    regions["instances"].gt_ignore = torch.tensor([False, False, False, True])
    model = build("soft", **{"matcher.ignore_ioa_thresh": 0.5})
    with EventStorage() as storage:
        storage.iter = 10
        losses = model([regions])
        assert storage.latest()["atss/num_ignored"][0] > 30
        assert storage.latest()["atss/gt_without_positive"][0] < 3
    assert sum(losses.values()).isfinite()


def test_the_warm_up_is_a_matter_of_the_iteration():
    """Nothing is counted: a resumed training goes on where it was."""
    model, batch = build("soft"), batch_of(BOXES)
    for start, wanted in ((0, "mean_threshold"), (9, "mean_threshold"), (10, "sum_soft")):
        with EventStorage(start) as storage:
            model(batch)
            assert f"atss/{wanted}" in storage.latest()
    assert model.matcher.warm_up.num_anchors == 1  # bound by the rule that it is in


# ------------------------------------------------------ numbers by hand, and mmdetection's


def test_quality_focal_loss_by_hand():
    """|y - p|^2 BCE(p, y) with p = 1/2: BCE is ln 2 for any y."""
    labels = torch.tensor([1, 2, -1])
    quality = torch.tensor([0.9, 0, 0])
    loss = soft.quality_focal_loss(torch.zeros(3, 2), labels, quality)
    assert loss.item() == pytest.approx((0.4**2 + 3 * 0.5**2) * math.log(2))


# Inputs and losses of single rows, computed with mmdetection 3.3.0 (quality_focal_loss with beta 2,
# distribution_focal_loss with 17 bins).
MMDET_QUALITY = [
    (3, 0.11735966, [30, -30, 80, -80, 0], 110.3026),
    (5, 0.0, [30, -30, 80, -80, 0], 110.17329),
    (1, 1.0, [-2.6956358, 1.4406697, -1.9034741, 1.2779474, -0.7054662], 0.9862865),
    (5, 0.0, [3.1822779, 0.15900443, -2.1645927, 2.1256595, 1.5454201], 6.1661177),
]
_ROW0 = [
    *(-0.3610104, 2.0114157, -2.1233032, -0.046971824, -2.0766745, -1.0539601, 1.5469657),
    *(0.48061237, -1.7899423, -0.12090111, -0.78152204, 0.9332098, 0.51258254, 0.60021967),
    *(3.9734628, 2.2214322, -0.31906593),
]
_ROW1 = [
    *(0.058162536, -3.440796, 2.1940145, -0.3313801, 3.6508443, 2.6847126, -1.7484778, 0.12377979),
    *(3.2527995, 1.3739105, -0.0072959336, 1.8824061, -4.4201493, -1.7728449, -2.7152448),
    *(-2.8512304, -3.5256448),
]


def test_losses_of_mmdetection():
    for label, quality, logits, expected in MMDET_QUALITY:
        loss = soft.quality_focal_loss(
            torch.tensor([logits], dtype=torch.float32),
            torch.tensor([label]),
            torch.tensor([quality]),
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_distribution_focal_loss_by_hand():
    """Between bins 3 and 4, at a quarter: of equal logits each costs ln 17."""
    flat = torch.zeros(1, 17)
    assert dfl.distribution_focal_loss(flat, torch.tensor([3.25])).item() == pytest.approx(
        math.log(17)
    )
    peaked = flat.clone()
    peaked[0, 3] = math.log(16)  # p = 1/2 there, 1/32 elsewhere
    loss = dfl.distribution_focal_loss(peaked, torch.tensor([3.25])).item()
    assert loss == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(32))
    # Out of reach: cut off at 0 and at 15.9.
    for distance, cut in ((-3.0, 0.0), (50.0, 15.9)):
        torch.testing.assert_close(
            dfl.distribution_focal_loss(peaked, torch.tensor([distance])),
            dfl.distribution_focal_loss(peaked, torch.tensor([cut])),
        )


@pytest.mark.parametrize(
    ("row", "target", "expected"), [(_ROW0, 0.0, 1.2058488), (_ROW1, 15.9, 2.0231326)]
)
def test_distribution_focal_loss_of_mmdetection(row, target, expected):
    loss = dfl.distribution_focal_loss(torch.tensor([row]), torch.tensor([target]))
    assert loss.item() / 4 == pytest.approx(expected, rel=1e-5)  # 1/4: the weight in GFL


def test_the_coder_of_distributions_is_its_own_inverse():
    """Two bins a side hold a distance: their mean is between them."""
    coder = dfl.DistanceDistributions(anchor_scale=4)
    anchors = torch.tensor([[0.0, 0, 32, 32], [40.0, 8, 72, 40]])
    boxes = torch.tensor([[3.0, 5, 40, 47], [50.0, 10, 71, 33]])
    distances = coder.get_deltas(anchors, boxes)
    assert distances[0].tolist() == [13 / 8, 11 / 8, 24 / 8, 31 / 8]  # stride 8
    bins = torch.arange(17)
    weights = (1 - (distances[..., None] - bins).abs()).clamp(min=0)  # (2, 4, 17)
    logits = weights.log().clamp(min=-100).flatten(1)
    torch.testing.assert_close(coder.apply_deltas(logits, anchors), boxes)


def test_the_iou_branch_learns_the_iou_of_the_predicted_boxes():
    model = build("iou_branch")
    batch = batch_of(BOXES, BOXES[:2])
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    predictions = model.as_predictions(model.head(features))
    targets = model.label_anchors(
        model.anchor_generator(features), [x["instances"] for x in batch], predictions
    )
    total = count = 0
    for n, labels in enumerate(targets.labels.tolist()):
        for r, label in enumerate(labels):
            if label == 2:
                continue
            delta = torch.cat(predictions.regression, dim=1)[n, r][None]
            box = model.box2box_transform.apply_deltas(delta, targets.anchors[r][None])
            iou = paired_iou(box[0], targets.boxes[n, r]).item()
            p = torch.cat(predictions.quality, dim=1)[n, r].sigmoid().item()
            total -= iou * math.log(p) + (1 - iou) * math.log(1 - p)
            count += 1
    assert count > 5
    loss = model.losses(predictions, targets)["loss_iou"]
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
