"""Training as in the authors' release: what the convention reproduces, how much the rest differs.

    python -m pytest -s tests/checkpoint/test_authors_geometry.py

prints the numbers that docs/checkpoints.md quotes. The authors' corners are pixels that belong to
the box: (x1, y1, x2 - 1, y2 - 1) in continuous coordinates. Their centerness targets and their GIoU
loss are written here in those corners, in float64.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from atss_d2 import ATSS
from atss_d2.modeling.criterion.box_losses import giou_loss
from atss_d2.modeling.criterion.centerness import centerness_targets
from atss_d2.modeling.nouns import Predictions, Targets
from tests import reference
from tests.checkpoint.test_conversion import published_model

SIZE = (288, 224)  # height, width
SHAPES = [(36, 28), (18, 14), (9, 7), (5, 4), (3, 2)]
SIDES = {  # least and most of the shorter and of the longer side, pixels
    "small": ((6, 16), (6, 16)),
    "thin": ((2, 6), (100, 200)),
    "other": ((32, 120), (32, 200)),
}
NUM_SCENES, NUM_BOXES = 60, 6
# What the document says, in percent: of the centerness loss without the inset, of the box loss,
# and of the gradients of single GIoUs, the median and the largest.
QUOTED = {
    "small": (4.0, 7.2, 3.8, 25),
    "thin": (10.6, 13.1, 9.3, 68),
    "other": (0.4, 1.4, 1.0, 3),
}


@dataclass
class Scene:
    """Positives (P) of an image under the convention, and predictions not far from their boxes."""

    anchors: list[Boxes]
    labels: Tensor  # (1, R)
    boxes: Tensor  # (1, R, 4)
    deltas: Tensor  # (1, R, 4)
    logits: Tensor  # (1, R), of the centerness

    @property
    def positives(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors (P, 4), boxes (P, 4), deltas (P, 4) and logits (P,)."""
        rows = self.labels[0] == 0
        anchors = Boxes.cat(self.anchors).tensor
        return anchors[rows], self.boxes[0][rows], self.deltas[0][rows], self.logits[0][rows]


@lru_cache
def model() -> ATSS:
    return published_model("authors.atss_box").train()


@lru_cache
def scenes(kind) -> list[Scene]:
    """Those with a positive: thin boxes often lie between the centers."""
    made = [make_scene(kind, seed) for seed in range(NUM_SCENES)]
    made = [scene for scene in made if (scene.labels == 0).any()]
    assert len(made) > NUM_SCENES / 2
    return made


def make_scene(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.stack(
        [
            low + (high - low) * torch.rand(NUM_BOXES, generator=generator)
            for low, high in SIDES[kind]
        ],
        dim=1,
    )
    sides[::2] = sides[::2].flip(1)  # upright or flat
    places = torch.rand(NUM_BOXES, 2, generator=generator)
    lower = places * (torch.tensor([SIZE[1], SIZE[0]]) - sides)
    gt_boxes = torch.cat((lower, lower + sides), dim=1)
    classes = torch.zeros(NUM_BOXES, dtype=torch.int64)
    instances = Instances(SIZE, gt_boxes=Boxes(gt_boxes), gt_classes=classes)
    anchors = model().anchor_generator([torch.zeros(1, 1, *shape) for shape in SHAPES])
    _, labels, boxes, *_ = model().label_anchors(anchors, [instances])
    all_anchors = Boxes.cat(anchors).tensor
    deltas = model().box2box_transform.get_deltas(all_anchors, boxes[0])
    deltas = deltas + torch.randn(deltas.shape, generator=generator)  # 0.1 of the anchor's side
    logits = torch.randn(len(all_anchors), generator=generator)
    return Scene(anchors, labels, boxes, deltas[None], logits[None])


# ------------------------------------------------------------------------- by the authors' formulas


def inclusive(boxes):
    """Corners (P, 4) as the authors have them."""
    return boxes.double() - torch.tensor([0, 0, 1, 1])


def authors_targets(anchors, boxes):
    """Centerness (P,)."""
    anchors, boxes = inclusive(anchors), inclusive(boxes)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    to_lower, to_upper = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(to_lower, to_upper) / torch.maximum(to_lower, to_upper)
    return ratios.prod(dim=1).sqrt()


def authors_giou_loss(boxes, targets):
    """1 - GIoU (P,) of continuous boxes; sides are x2 - x1 of inclusive corners."""
    return giou_loss(inclusive(boxes), inclusive(targets))


def authors_losses(scene):
    anchors, boxes, deltas, logits = scene.positives
    targets = authors_targets(anchors, boxes)
    decoded = model().box2box_transform.apply_deltas(deltas, anchors)
    of_centers = [
        reference.binary_cross_entropy(x, t) for x, t in zip(logits.tolist(), targets.tolist())
    ]
    box_loss = (authors_giou_loss(decoded, boxes) * targets).sum() / targets.sum()
    return {
        "loss_box_reg": 2 * box_loss.item(),
        "loss_centerness": sum(of_centers) / len(of_centers),
    }


def losses(scene):
    """Ours, with the settings of the model."""
    sizes = [len(level) for level in scene.anchors]
    predictions = Predictions(
        list(torch.full((1, sum(sizes), 5), -5.0).split(sizes, dim=1)),
        list(scene.deltas.split(sizes, dim=1)),
        list(scene.logits.split(sizes, dim=1)),
    )
    targets = Targets(Boxes.cat(scene.anchors).tensor, scene.labels, scene.boxes)
    results = model().losses(predictions, targets)
    return {name: loss.item() for name, loss in results.items()}


def largest_difference(kind, name):
    """Of a loss, relative to theirs, over all scenes."""
    return max(abs(losses(s)[name] / authors_losses(s)[name] - 1) for s in scenes(kind))


def giou_gradient_differences(kind):
    """|ours - theirs| / |theirs| (P,) of the gradients of single GIoUs by the deltas."""
    differences = []
    for scene in scenes(kind):
        anchors, boxes, deltas, _ = scene.positives
        gradients = []
        for loss in (giou_loss, authors_giou_loss):
            leaf = deltas.clone().requires_grad_()
            decoded = model().box2box_transform.apply_deltas(leaf, anchors)
            gradients.append(torch.autograd.grad(loss(decoded, boxes).sum(), leaf)[0])
        ours, theirs = gradients
        differences.append((ours - theirs).norm(dim=1) / theirs.norm(dim=1))
    return torch.cat(differences)


# ----------------------------------------------------------------------------------------- tests


def test_the_giou_is_that_of_inclusive_corners():
    anchors, boxes, deltas, _ = scenes("small")[0].positives
    decoded = model().box2box_transform.apply_deltas(deltas, anchors)
    expected = [
        1 - reference.giou(a, b)
        for a, b in zip(inclusive(decoded).tolist(), inclusive(boxes).tolist())
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(authors_giou_loss(decoded, boxes), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", SIDES)
def test_centerness_targets_are_theirs(kind):
    assert model().criterion.centerness_inset == 0.5
    for scene in scenes(kind):
        anchors, boxes, _, _ = scene.positives
        targets = centerness_targets(anchors, boxes, model().criterion.centerness_inset)
        expected = authors_targets(anchors, boxes).float()
        torch.testing.assert_close(targets, expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("kind", SIDES)
def test_the_centerness_loss_is_theirs(kind):
    assert largest_difference(kind, "loss_centerness") < 1e-5


@pytest.mark.parametrize("kind", SIDES)
def test_the_differences_are_those_that_the_document_quotes(kind, monkeypatch):
    gradients = giou_gradient_differences(kind)
    box_loss = largest_difference(kind, "loss_box_reg")
    monkeypatch.setattr(model().criterion, "centerness_inset", 0.0)
    differences = [
        100 * float(x)
        for x in (
            largest_difference(kind, "loss_centerness"),
            box_loss,
            gradients.median(),
            gradients.max(),
        )
    ]
    print(f"{kind} boxes:", *(f"{x:.3g} %" for x in differences))
    assert differences == pytest.approx(QUOTED[kind], rel=0.1)


def test_the_document_quotes_them():
    document = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = [line for line in document.splitlines() if line.startswith("| boxes of ")]
    numbers = [tuple(float(x) for x in re.findall(r"([\d.]+) %", row)) for row in rows]
    assert numbers == list(QUOTED.values())
