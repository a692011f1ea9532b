"""What the device computes equals what the CPU computes."""

from __future__ import annotations

import copy

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from atss_d2.modeling import DenseDetectorWithTTA
from atss_d2.modeling.deform_conv import DeformConv2d
from atss_d2.modeling.nms import batched_nms
from atss_d2.modeling.nouns import Predictions
from atss_d2.modeling.postprocess import postprocess

from .. import scenes
from ..cases.losses import random_predictions
from ..models import ATSS, build
from .registry import Environment, check, full_float32, largest_difference, require
from .small import RULES, crowded_scene, mobile_detector, unmatched

# Sums in another order, and exp, log and sigmoid of another library: a few units in the last place.
_LOSS, _GRADIENT = 1e-5, 1e-4
_PIXELS, _SCORE = 1e-2, 1e-5
_CONVOLUTION = 1e-4  # accumulates thousands of products in another order


@check("labels of all rules, bit for bit", seconds=15)
def labels(env: Environment) -> str:
    """All ties are broken by integers, so that nothing may differ."""
    anchors, boxes, flags = crowded_scene(
        env.choose(scenes.IMAGE_SIZE, (128, 192)), env.choose(300, 20)
    )
    num = 0
    for name, rule in RULES.items():
        expected = rule()(anchors, boxes, flags)
        with env.branches():
            found = rule()(*([x.to(env.device) for x in part] for part in (anchors, boxes, flags)))
        num_wrong = int((found.cpu() != expected).sum())
        assert not num_wrong, f"{name}: {num_wrong} of {expected.numel()} anchors differ"
        assert (expected >= 0).any(), name
        num += expected.numel()
    return f"0 of {num} labels differ"


@check("the same labels in every run, with deterministic algorithms on", seconds=15)
def determinism(env: Environment) -> str:
    """Repeats the rules; an operator without a deterministic kernel raises an error."""
    scene = crowded_scene(env.choose(scenes.IMAGE_SIZE, (128, 192)), env.choose(300, 20))
    parts = [[x.to(env.device) for x in part] for part in scene]
    repeats = env.choose(20, 3)
    torch.use_deterministic_algorithms(True)
    try:
        with env.branches():
            for name, rule in RULES.items():
                runs = [rule()(*parts) for _ in range(repeats)]
                assert all(torch.equal(run, runs[0]) for run in runs), name
    finally:
        torch.use_deterministic_algorithms(False)
    return f"{repeats} runs of {len(RULES)} rules"


def _losses(env: Environment, device: str, **options) -> tuple[dict, list[torch.Tensor]]:
    """Returns losses, and gradients of the head's maps, of one training pass."""
    size = env.choose(scenes.IMAGE_SIZE, (64, 96))
    num_classes = env.choose(80, 5)
    model = build(ATSS, num_classes=num_classes).to(device).train()
    for name, value in options.items():
        setattr(model.criterion, name, value)
    maps = random_predictions(model, size, 2)
    maps = [[x.to(device).requires_grad_() for x in part] for part in maps]
    features = [x.to(device) for x in scenes.feature_maps(size, 2)]
    instances = [x.to(device) for x in scenes.ground_truth(2, 10, size, num_classes)]
    instances[1] = instances[1][:0]  # an image without boxes
    with EventStorage():
        losses = model.forward_training(None, features, maps, instances)
    sum(losses.values()).backward()
    return losses, [level.grad for part in maps for level in part]


@check("losses and their gradients, float32", seconds=15)
def losses(env: Environment) -> str:
    """The losses of ATSS on random maps, one of the images without boxes."""
    expected, expected_gradients = _losses(env, "cpu")
    with env.branches():
        found, gradients = _losses(env, env.device)
    loss = max(largest_difference(found[name], expected[name]) for name in expected)
    require(loss, _LOSS, "losses")
    gradient = max(map(largest_difference, gradients, expected_gradients))
    require(gradient, _GRADIENT, "gradients")
    return f"losses differ by {loss:.1e}, gradients by {gradient:.1e}"


@check("NMS in one call and in groups of classes", seconds=10)
def nms(env: Environment) -> str:
    """Compares what stays, in its order; 30,000 boxes go through the groups on a GPU as well."""
    figures = []
    for num in env.choose((1000, 5000, 30_000), (50, 1500)):
        boxes = scenes.random_boxes(num, scenes.IMAGE_SIZE)
        classes = scenes.random_classes(num, 8)
        scores = torch.randperm(num, generator=torch.Generator().manual_seed(0)) / num
        arguments = boxes, scores, classes
        expected = batched_nms(*arguments, 0.5)
        with env.branches():
            found = batched_nms(*(x.to(env.device) for x in arguments), 0.5)
        assert torch.equal(found.cpu(), expected), f"{num} boxes: others stay"
        figures.append(f"{len(expected)} of {num}")
    return f"kept alike: {', '.join(figures)}"


@check("detections from the same maps", seconds=10)
def detections(env: Environment) -> str:
    """Post-processing of predictions like those of a trained detector, compared as sets."""
    size, num_classes = env.choose((scenes.IMAGE_SIZE, 80), ((128, 192), 5))
    model = build(ATSS, num_classes=num_classes)
    made = scenes.predictions(size, num_classes)
    coder = model.box2box_transform
    anchors = [a.tensor for a in scenes.anchors(size)]
    deltas = [coder.get_deltas(a, boxes) for a, boxes in zip(anchors, made.boxes)]

    def run(device: str) -> tuple[torch.Tensor, ...]:
        parts = ([level[None].to(device) for level in x] for x in (made.logits, deltas))
        quality = [level[None].to(device) for level in made.centerness]
        return postprocess(
            Predictions(*parts, quality),
            [a.to(device) for a in anchors],
            [size],
            **model.pre_nms_options(),
        )[0]

    expected = run("cpu")
    with env.branches():
        found = run(env.device)
    num = unmatched(found, expected, pixels=_PIXELS, score=_SCORE)
    assert len(expected[0]), "nothing was detected"
    assert not num, f"{num} of {len(expected[0])} detections have no partner"
    return f"{len(expected[0])} alike to {_PIXELS} px and a score of {_SCORE:g}"


@check("a whole detector: maps in float32, detections and TTA in float64", seconds=20)
def tta(env: Environment) -> str:
    """Detects at two scales and mirrored, merged in three ways.

    In float64 no rounding of a convolution changes which detections pass a threshold.
    """
    full_float32()
    model = mobile_detector().double()
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(3)) * 255
    inputs = [{"image": image.double(), "height": 96, "width": 128}]
    moved = copy.deepcopy(model).to(env.device)

    def instances(x: Instances) -> tuple[torch.Tensor, ...]:
        return x.pred_boxes.tensor, x.scores, x.pred_classes

    with torch.no_grad():
        on_cpu = _maps(copy.deepcopy(model).float(), image)
        there = _maps(copy.deepcopy(moved).float(), image.to(env.device))
    difference = max(map(largest_difference, there, on_cpu))
    require(difference, _CONVOLUTION, "maps of the head")
    figures = [f"maps differ by {difference:.1e}"]
    for merge in ("nms", "vote", "soft_vote"):
        options = {"min_sizes": [96, 128], "merge": merge, "max_detections_per_image": 1000}
        expected = instances(DenseDetectorWithTTA(model, **options)(inputs)[0]["instances"])
        with env.branches():
            found = instances(DenseDetectorWithTTA(moved, **options)(inputs)[0]["instances"])
        num = unmatched(found, expected, pixels=_PIXELS, score=_SCORE)
        assert len(expected[0]), "nothing was detected"
        assert not num, f"{merge}: {num} of {len(expected[0])} differ"
        figures.append(f"{merge} {len(expected[0])}")
    return ", ".join(figures)


def _maps(model: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Returns the maps of the head on an image."""
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    parts = model.head([features[name] for name in model.head_in_features])
    return [level for part in parts for level in part]


@check("deformable convolution, forward and backward, and under autocast", seconds=10)
def deformable_convolution(env: Environment) -> str:
    """Versions 1 and 2, float32; float16 and bfloat16 autocast keep positions in float32."""
    full_float32()
    torch.manual_seed(0)
    largest = 0.0
    for modulated in (False, True):
        layer = DeformConv2d(8, 16, 3, padding=1)
        inputs = [torch.randn(2, 8, 20, 24), 2 * torch.randn(2, 18, 20, 24)]
        inputs += [torch.rand(2, 9, 20, 24)] * modulated
        on_cpu = _gradients(layer, inputs)
        there = copy.deepcopy(layer).to(env.device)
        moved = [x.to(env.device) for x in inputs]
        largest = max(largest, *map(largest_difference, _gradients(there, moved), on_cpu))
        for dtype in (torch.float16, torch.bfloat16):
            with torch.autocast(env.device, dtype=dtype):
                out = there(*moved)
            assert out.dtype == dtype, out.dtype
            require(largest_difference(out, on_cpu[0]), 2e-2, f"{dtype} output")
    require(largest, _CONVOLUTION, "output or gradient")
    return f"differs by {largest:.1e}"


def _gradients(layer: torch.nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the output of a layer and all gradients of a weighted sum of it."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    layer.zero_grad()
    out = layer(*inputs)
    weights = torch.linspace(-1, 1, out.numel()).to(out.device).view_as(out)
    (out * weights).sum().backward()
    gradients = [x.grad for x in inputs] + [p.grad for p in layer.parameters()]
    return [out.detach(), *gradients]


@check("a training step with deterministic algorithms, twice, bit for bit", seconds=20)
def deterministic_steps(env: Environment) -> str:
    """Three steps of SGD from the same weights give the same weights."""
    size, steps = env.choose((256, 320), (64, 96)), env.choose(3, 2)
    images = scenes.random_images(2, size)
    instances = scenes.ground_truth(2, 5, size, 6)

    def run() -> list[torch.Tensor]:
        model = mobile_detector().to(env.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(steps):
            batch = [{"image": image, "instances": x} for image, x in zip(images, instances)]
            with EventStorage():
                loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        with env.branches():
            first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second)), "the weights differ"
    assert all(x.isfinite().all() for x in first), "the weights are not finite"
    return f"{steps} steps, {len(first)} tensors"
