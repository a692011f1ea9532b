"""The losses of the toy detector in loops, with every switch."""

import math

import torch

from tests import reference, reference_matching


def predictions_of(model, batch):
    """L levels of anchors; logits (N, R, K), deltas (N, R, 4), centerness (N, R, 1), as lists."""
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    sizes = (model.num_classes, 4, 1)
    maps = [
        torch.cat([m.permute(0, 2, 3, 1).reshape(len(batch), -1, size) for m in levels], dim=1)
        for levels, size in zip(model.head(features), sizes)
    ]
    levels = [a.tensor.tolist() for a in model.anchor_generator(features)]
    return levels, [m.tolist() for m in maps]


def match(model, levels, boxes):
    return reference_matching.atss_match(levels, boxes, num_anchors=model.head.num_anchors)


def losses_by_loops(
    model,
    batch,
    *,
    alpha=0.25,
    gamma=2.0,
    box_weight=2.0,
    centerness_weight=1.0,
    centerness=True,
    weighted=True,
    loss="giou",
    beta=0.11,
    inset=0.0,
    floor_per_image=False,
):
    """The losses of Sec. 3.1 with the switches of Table 1, written down term by term."""
    levels, (logits, deltas, *centerness_logits) = predictions_of(model, batch)
    anchors = [anchor for level in levels for anchor in level]
    cls = box = ctr = sum_weights = 0.0
    num_positives = 0
    for n, x in enumerate(batch):
        gt_boxes = x["instances"].gt_boxes.tensor.tolist()
        gt_classes = x["instances"].gt_classes.tolist()
        matched = match(model, levels, gt_boxes)
        labels = [gt_classes[m] if m >= 0 else model.num_classes for m in matched]
        cls += reference.focal_loss(logits[n], labels, alpha=alpha, gamma=gamma)
        num_positives += floor_per_image and all(m < 0 for m in matched)
        for r, m in enumerate(matched):
            if m < 0:
                continue
            num_positives += 1
            x1, y1, x2, y2 = anchors[r]
            target = reference.centerness((x1 + x2) / 2, (y1 + y2) / 2, gt_boxes[m], inset)
            weight = target if centerness and weighted else 1.0
            sum_weights += weight
            if loss == "giou":
                decoded = reference.decode(deltas[n][r], anchors[r])
                box += weight * (1 - reference.giou(decoded, gt_boxes[m]))
            else:
                box += weight * smooth_l1(deltas[n][r], encode(anchors[r], gt_boxes[m]), beta)
            if centerness:
                ctr += reference.binary_cross_entropy(centerness_logits[0][n][r][0], target)
    num_positives = max(num_positives, 1)
    result = {
        "loss_cls": cls / num_positives,
        "loss_box_reg": box_weight * box / sum_weights if sum_weights else 0.0,
    }
    if centerness:
        result["loss_centerness"] = centerness_weight * ctr / num_positives
    return result


def encode(anchor, box):
    """(dx, dy, dw, dh) with weights (10, 10, 5, 5)."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        10 * ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width,
        10 * ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height,
        5 * math.log((box[2] - box[0]) / width),
        5 * math.log((box[3] - box[1]) / height),
    ]


def smooth_l1(values, targets, beta):
    total = 0.0
    for value, target in zip(values, targets, strict=True):
        error = abs(value - target)
        total += 0.5 * error**2 / beta if error < beta else error - 0.5 * beta
    return total
