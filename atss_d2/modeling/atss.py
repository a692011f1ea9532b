"""The ATSS meta-architecture: anchors are labelled by statistics of each object.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A) anchors,
M ground-truth boxes of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..config import cfg_to_kwargs, signature_to_cfg
from .box_coding import box2box_transform as build_box2box_transform
from .head import ATSSHead
from .losses import (
    centerness_loss,
    centerness_targets,
    giou_loss,
    loss_normalizers,
    sigmoid_focal_loss,
)
from .matchers import IGNORED, ATSSMatcher, DenseMatcher
from .postprocess import postprocess
from .training_log import TrainingLog

# Arguments that Detectron2's own cfg keys give, or that the rest of the cfg determines.
_ARGS_FROM_ELSEWHERE = ("input_format",)
_HEAD_ARGS_FROM_ELSEWHERE = ("num_anchors",)
_MATCHER_ARGS_FROM_ELSEWHERE = ("num_anchors",)


@META_ARCH_REGISTRY.register()
class ATSS(DenseDetector):
    """RetinaNet with adaptive training sample selection (arXiv 1912.02424).

    One square anchor per location, a head with GroupNorm, centerness and per-level scalars, GIoU
    loss; sample selection is the ``matcher``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        anchor_generator: nn.Module,
        box2box_transform,
        matcher: DenseMatcher,
        num_classes: int,
        head_in_features: Sequence[str] | None = None,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_weight: float = 2.0,
        centerness_loss_weight: float = 1.0,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ) -> None:
        """
        Args:
            backbone: Gives a dict of feature maps, usually an FPN with P3 to P7.
            head: Maps L features to class logits, box deltas and centerness, see
                :class:`ATSSHead`.
            anchor_generator: Gives L levels of anchors with A anchors per location.
            box2box_transform: Box coder between anchors and boxes.
            matcher: Sample selection, any :class:`DenseMatcher`.
            num_classes: K. Background is label K.
            head_in_features: Feature maps of the backbone that the head uses, from high to low
                resolution. Default: all.
            focal_loss_alpha: Weight of positives in the focal loss.
            focal_loss_gamma: Exponent of the focal loss.
            box_reg_loss_weight: Weight of the box loss.
            centerness_loss_weight: Weight of the centerness loss.
            test_score_thresh: Least class score (before centerness) of a detection.
            test_topk_candidates: Most candidates per level before NMS.
            test_nms_thresh: IoU threshold of NMS.
            max_detections_per_image: Most detections per image after NMS.
            pixel_mean: Mean per channel, 0..255, in the order of ``input_format``.
            pixel_std: Standard deviation per channel; 1 for the MSRA ResNets.
            input_format: Channel order of the images that the model takes, "BGR" or "RGB".

        Raises:
            ValueError: Parts do not fit each other; the message names the values.
        """
        if head_in_features is not None:
            head_in_features = list(head_in_features)  # not an omegaconf list: exporters refuse it
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.matcher = matcher
        self.num_classes = num_classes
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_reg_loss_weight = box_reg_loss_weight
        self.centerness_loss_weight = centerness_loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format
        self._training_log = TrainingLog()
        self._check_parts()

    def _check_parts(self) -> None:
        shapes = self.backbone.output_shape()
        missing = [name for name in self.head_in_features if name not in shapes]
        if missing:
            raise ValueError(
                f"head_in_features {missing} are not among the backbone's features {list(shapes)}"
            )
        if self.input_format not in ("BGR", "RGB"):
            raise ValueError(f'input_format must be "BGR" or "RGB", got "{self.input_format}"')
        num_anchors = self.anchor_generator.num_anchors
        strides = [shapes[name].stride for name in self.head_in_features]
        if len(num_anchors) != len(strides) or list(self.anchor_generator.strides) != strides:
            raise ValueError(
                f"the anchor generator has strides {list(self.anchor_generator.strides)}, but the "
                f"features {self.head_in_features} have strides {strides}"
            )
        for part, name in ((self.head, "head"), (self.matcher, "matcher")):
            expected = getattr(part, "num_anchors", None)
            if expected is not None and set(num_anchors) != {expected}:
                raise ValueError(
                    f"the {name} was built for num_anchors={expected} per location, but the anchor "
                    f"generator gives {num_anchors} on its levels"
                )
        head_classes = getattr(self.head, "num_classes", self.num_classes)
        if head_classes != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but the head was built for {head_classes} classes"
            )

    @classmethod
    def config_node(cls) -> CfgNode:
        """The yaml keys of the detector, ``MODEL.ATSS``, derived from the signatures."""
        node = signature_to_cfg(cls.__init__, skip=_ARGS_FROM_ELSEWHERE)
        node.NUM_CLASSES = 80
        node.HEAD = signature_to_cfg(ATSSHead, skip=_HEAD_ARGS_FROM_ELSEWHERE)
        node.MATCHER = signature_to_cfg(ATSSMatcher, skip=_MATCHER_ARGS_FROM_ELSEWHERE)
        node.BOX2BOX_TRANSFORM = signature_to_cfg(build_box2box_transform)
        return node

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Builds the parts from ``MODEL.ATSS`` and Detectron2's own keys."""
        node = cfg.MODEL.ATSS
        kwargs = cfg_to_kwargs(node, cls.__init__, skip=_ARGS_FROM_ELSEWHERE)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        names = kwargs["head_in_features"] or sorted(shapes, key=lambda name: shapes[name].stride)
        input_shape = [shapes[name] for name in names]
        anchor_generator = build_anchor_generator(cfg, input_shape)
        num_anchors = anchor_generator.num_anchors[0]
        return {
            **kwargs,
            "backbone": backbone,
            "head": ATSSHead(
                input_shape=input_shape,
                num_classes=node.NUM_CLASSES,
                num_anchors=num_anchors,
                **cfg_to_kwargs(node.HEAD, ATSSHead, skip=_HEAD_ARGS_FROM_ELSEWHERE),
            ),
            "anchor_generator": anchor_generator,
            "box2box_transform": build_box2box_transform(
                **cfg_to_kwargs(node.BOX2BOX_TRANSFORM, build_box2box_transform)
            ),
            "matcher": ATSSMatcher(
                num_anchors=num_anchors,
                **cfg_to_kwargs(node.MATCHER, ATSSMatcher, skip=_MATCHER_ARGS_FROM_ELSEWHERE),
            ),
            "num_classes": node.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Sequence[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Labels the anchors and computes the three losses."""
        logits, deltas, centerness = self._flatten_predictions(predictions)
        anchors = self.anchor_generator(features)
        gt_labels, matched_gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, matched_gt_boxes, centerness)

    def _flatten_predictions(
        self, predictions: Sequence[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: logits (N, Ri, K), deltas (N, Ri, 4), centerness (N, Ri)."""
        logits, deltas, centerness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        return logits, deltas, [c.squeeze(2) for c in centerness]

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Finds the class and the box that every anchor is trained for.

        Args:
            anchors: L levels of anchors.
            gt_instances: N images with ``gt_boxes`` and ``gt_classes``.

        Returns:
            gt_labels (N, R) int64: class, K for background, -1 for ignored anchors; and
            matched_gt_boxes (N, R, 4): the matched box, for an anchor without one itself.
        """
        matched_idxs = self.matcher(anchors, [x.gt_boxes for x in gt_instances])  # (N, R)
        all_anchors = Boxes.cat(anchors).tensor  # (R, 4)

        counts = torch.tensor([len(x) for x in gt_instances])
        first_idxs = (counts.cumsum(0) - counts).to(all_anchors.device)  # (N,)
        is_positive = matched_idxs >= 0  # (N, R)
        # Row 0 stands for "no box", so that a batch without boxes needs no branch.
        rows = torch.where(is_positive, matched_idxs + first_idxs[:, None] + 1, 0)  # (N, R)
        classes = torch.cat(
            [counts.new_tensor([self.num_classes]).to(all_anchors.device)]
            + [x.gt_classes for x in gt_instances]
        )  # (1 + M,)
        boxes = torch.cat(
            [all_anchors.new_zeros(1, 4)]
            + [x.gt_boxes.tensor.to(all_anchors) for x in gt_instances]
        )
        gt_labels = torch.where(matched_idxs == IGNORED, -1, classes[rows])  # (N, R)
        matched_gt_boxes = torch.where(is_positive[..., None], boxes[rows], all_anchors)

        self._log_labels(is_positive, rows, len(boxes), [len(a) for a in anchors])
        return gt_labels, matched_gt_boxes

    def _log_labels(
        self, is_positive: Tensor, rows: Tensor, num_rows: int, level_sizes: list[int]
    ) -> None:
        """Logs means per image: positives, positives of each level, boxes without a positive."""
        num_images = len(is_positive)
        per_level = [x.sum() / num_images for x in is_positive.split(level_sizes, dim=1)]
        is_unused = torch.ones(num_rows, dtype=torch.bool, device=rows.device)
        is_unused[0] = False
        is_unused.scatter_(0, rows.flatten(), False)
        self._training_log.put(
            {
                "num_positives": sum(per_level),
                **{
                    f"num_positives_{name}": value
                    for name, value in zip(self.head_in_features, per_level)
                },
                "gt_without_positive": is_unused.sum() / num_images,
                **self.matcher.last_stats,
            }
        )

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: Tensor,
        pred_anchor_deltas: list[Tensor],
        matched_gt_boxes: Tensor,
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch (Sec. 3.1).

        Args:
            anchors: L levels of anchors.
            pred_logits: L levels, each (N, Ri, K).
            gt_labels: (N, R), see :meth:`label_anchors`.
            pred_anchor_deltas: L levels, each (N, Ri, 4).
            matched_gt_boxes: (N, R, 4), see :meth:`label_anchors`.
            pred_centerness: L levels, each (N, Ri) logits.

        Returns:
            ``loss_cls`` (focal loss per positive), ``loss_box_reg`` (GIoU, weighted by the
            centerness target) and ``loss_centerness``.
        """
        num_images = len(gt_labels)
        # (N x R, ...): the anchors of the batch as one list, in float32 under any autocast.
        with torch.autocast(gt_labels.device.type, enabled=False):
            logits = torch.cat(pred_logits, dim=1).flatten(0, 1)
            deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1).float()
            centerness = torch.cat(pred_centerness, dim=1).flatten()
            boxes = matched_gt_boxes.flatten(0, 1)
            labels = gt_labels.flatten()
            all_anchors = Boxes.cat(anchors).tensor.repeat(num_images, 1)

            is_positive = (labels >= 0) & (labels != self.num_classes)
            targets = centerness_targets(all_anchors, boxes) * is_positive
            num_positives, sum_centerness = loss_normalizers(is_positive.sum(), targets.sum())

            loss_cls = sigmoid_focal_loss(
                logits, labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
            )
            # Weight 0 does not silence a background anchor whose box has overflowed: 0 x inf.
            deltas = torch.where(is_positive[:, None], deltas, 0.0)
            pred_boxes = self.box2box_transform.apply_deltas(deltas, all_anchors)
            loss_box_reg = (giou_loss(pred_boxes, boxes) * targets).sum()
            loss_centerness = (centerness_loss(centerness, targets) * is_positive).sum()
        return {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": loss_box_reg * (self.box_reg_loss_weight / sum_centerness),
            "loss_centerness": loss_centerness * (self.centerness_loss_weight / num_positives),
        }

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Sequence[list[Tensor]]
    ) -> list[Instances]:
        """Detections of every image, in the coordinates of the images that the model was given."""
        logits, deltas, centerness = self._flatten_predictions(predictions)
        anchors = [a.tensor for a in self.anchor_generator(features)]
        results = []
        for i, image_size in enumerate(images.image_sizes):
            boxes, scores, classes = postprocess(
                anchors,
                [x[i] for x in logits],
                [x[i] for x in deltas],
                [x[i] for x in centerness],
                image_size,
                box2box_transform=self.box2box_transform,
                score_thresh=self.test_score_thresh,
                topk_candidates=self.test_topk_candidates,
                nms_thresh=self.test_nms_thresh,
                max_detections=self.max_detections_per_image,
            )
            results.append(
                Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            )
        return results
