"""The ATSS meta-architecture: anchors are labelled by statistics of each object.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A) anchors,
M ground-truth boxes of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .anchor_generator import grid_sizes
from .build import build_parts, check_parts
from .candidates import RANKINGS, SCORE_TYPES
from .choices import check_choice
from .labels import ignore_flags, labels_from_matches
from .losses import (
    BOX_REG_LOSS_TYPES,
    box_reg_loss,
    centerness_loss,
    centerness_targets,
    loss_normalizers,
    positive_rows,
    sigmoid_focal_loss,
)
from .matchers import DenseMatcher
from .postprocess import postprocess
from .scripting import ScriptableATSS
from .training_log import TrainingLog
from .training_pictures import draw_training, is_time_to_draw


@META_ARCH_REGISTRY.register()
class ATSS(DenseDetector):
    """RetinaNet with adaptive training sample selection (arXiv 1912.02424).

    One square anchor per location, a head with GroupNorm, centerness and per-level scalars, GIoU
    loss; sample selection is the ``matcher``. The experiments of the paper, from RetinaNet to FCOS,
    are other parts and switches of this class: see ``configs/ablations/``.
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
        box_reg_loss_type: str = "giou",
        smooth_l1_beta: float = 0.11,
        box_reg_loss_weight: float = 2.0,
        centerness_weighted_box_loss: bool = True,
        centerness_loss_weight: float = 1.0,
        centerness_inset: float = 0.0,
        floor_per_image: bool = False,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        test_score_type: str = "sqrt",
        test_rank_by: str = "score",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: Gives a dict of feature maps, usually an FPN with P3 to P7.
            head: Maps L features to class logits, box deltas and, if it predicts it, centerness,
                see :class:`ATSSHead`.
            anchor_generator: Gives L levels of anchors with A anchors per location.
            box2box_transform: Box coder between anchors and boxes.
            matcher: Sample selection, any :class:`DenseMatcher`.
            num_classes: K. Background is label K.
            head_in_features: Feature maps of the backbone that the head uses, from high to low
                resolution. Default: all.
            focal_loss_alpha: Weight of positives in the focal loss.
            focal_loss_gamma: Exponent of the focal loss.
            box_reg_loss_type: "giou", "diou", "ciou" (of decoded boxes) or "smooth_l1" (of deltas,
                RetinaNet's).
            smooth_l1_beta: Where smooth L1 turns from a parabola to a line.
            box_reg_loss_weight: Weight of the box loss.
            centerness_weighted_box_loss: Whether the box loss of a positive weighs as much as its
                centerness target, if the head predicts centerness. Otherwise all weigh the same.
            centerness_loss_weight: Weight of the centerness loss.
            centerness_inset: Pixels taken off each of the four distances that the centerness
                target is made of. 0 is continuous geometry; 0.5 gives the targets of the authors'
                inclusive-corner geometry.
            floor_per_image: Whether an image without positives counts as one positive in the
                number that classification and centerness losses are divided by, as in mmdetection.
            test_score_thresh: Least class score (before centerness) of a detection.
            test_topk_candidates: Most candidates per level before NMS.
            test_nms_thresh: IoU threshold of NMS.
            max_detections_per_image: Most detections per image after NMS.
            test_score_type: What the score of a detection is: "sqrt" of class score x centerness,
                or the plain "product", as in mmdetection.
            test_rank_by: By what the candidates of a level are chosen: this "score", or the
                "class_score" alone, as in mmdetection.
            pixel_mean: Mean per channel, 0..255, in the order of ``input_format``.
            pixel_std: Standard deviation per channel; 1 for the MSRA ResNets.
            input_format: Channel order of the images that the model takes, "BGR" or "RGB".
            vis_period: Every so many iterations, the boxes and the detections of the first training
                image are drawn for TensorBoard; 0 draws nothing.

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
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        self.centerness_weighted_box_loss = centerness_weighted_box_loss
        self.box_reg_loss_weight = box_reg_loss_weight
        self.centerness_loss_weight = centerness_loss_weight
        self.centerness_inset = centerness_inset
        self.floor_per_image = floor_per_image
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.test_score_type = test_score_type
        self.test_rank_by = test_rank_by
        self.input_format = input_format
        self.vis_period = vis_period
        self._training_log = TrainingLog()
        self._check_parts()

    def _check_parts(self) -> None:
        check_parts(
            backbone_shapes=self.backbone.output_shape(),
            head_in_features=self.head_in_features,
            anchor_generator=self.anchor_generator,
            head=self.head,
            matcher=self.matcher,
            box2box_transform=self.box2box_transform,
            num_classes=self.num_classes,
        )
        if self.input_format not in ("BGR", "RGB"):
            raise ValueError(f'input_format must be "BGR" or "RGB", got "{self.input_format}"')
        if self.centerness_inset < 0:
            raise ValueError(f"centerness_inset must be >= 0, got {self.centerness_inset}")
        if self.vis_period < 0:
            raise ValueError(f"vis_period must be >= 0, got {self.vis_period}")
        check_choice("box_reg_loss_type", self.box_reg_loss_type, BOX_REG_LOSS_TYPES)
        check_choice("test_score_type", self.test_score_type, SCORE_TYPES)
        check_choice("test_rank_by", self.test_rank_by, RANKINGS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Builds the parts from ``MODEL.ATSS`` and Detectron2's own keys."""
        return build_parts(cfg, cls)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Sequence[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Labels the anchors and computes the losses."""
        if self.vis_period > 0 and is_time_to_draw(self.vis_period):
            draw_training(self, images, features, predictions, gt_instances)
        logits, deltas, centerness = self._flatten_predictions(predictions)
        anchors = self.anchor_generator(features)
        sizes = grid_sizes(self.anchor_generator, features)
        gt_labels, matched_gt_boxes = self.label_anchors(anchors, gt_instances, sizes)
        return self.losses(anchors, logits, gt_labels, deltas, matched_gt_boxes, centerness)

    def _flatten_predictions(
        self, predictions: Sequence[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """Per level: logits (N, Ri, K), deltas (N, Ri, 4), centerness (N, Ri) if predicted."""
        logits, deltas, *centerness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1][: len(predictions)]
        )
        return logits, deltas, [c.squeeze(2) for c in centerness[0]] if centerness else None

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Finds the class and the box that every anchor is trained for.

        Args:
            anchors: L levels of anchors.
            gt_instances: N images with ``gt_boxes`` and ``gt_classes``; boxes that the optional
                field ``gt_ignore`` (bool) marks are ignore regions, never matched.
            grid_sizes: (Hi, Wi) of the L levels, if anchors lie on grids, see
                :class:`DenseMatcher`.

        Returns:
            gt_labels (N, R) int64: class, K for background, -1 for ignored anchors; and
            matched_gt_boxes (N, R, 4): the matched box, for an anchor without one itself.
        """
        gt_ignore = ignore_flags(gt_instances)
        matched_idxs = self.matcher.match_batch(
            anchors, [x.gt_boxes for x in gt_instances], gt_ignore, grid_sizes
        )  # (N, R)
        gt_labels, matched_gt_boxes, rows = labels_from_matches(
            matched_idxs,
            Boxes.cat(anchors).tensor,
            gt_instances,
            num_classes=self.num_classes,
        )
        self._log_labels(rows, [len(x) for x in gt_instances], gt_ignore, [len(a) for a in anchors])
        return gt_labels, matched_gt_boxes

    def _log_labels(
        self,
        rows: Tensor,
        counts: list[int],
        gt_ignore: list[Tensor] | None,
        level_sizes: list[int],
    ) -> None:
        """Logs means per image: positives, positives of each level, boxes without a positive."""
        num_images = len(rows)
        is_positive = (rows > 0).split(level_sizes, dim=1)
        per_level = torch.stack([x.sum() for x in is_positive]) / num_images  # (L,)
        is_unused = torch.ones(1 + sum(counts), dtype=torch.bool, device=rows.device)
        is_unused[:1].zero_()  # `[0] = False` would make the host wait for a GPU
        if gt_ignore is not None:
            is_unused[1:] = ~torch.cat(gt_ignore)
        is_unused.scatter_(0, rows.flatten(), False)
        self._training_log.put(
            {
                "num_positives": per_level.sum(),
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
        pred_centerness: list[Tensor] | None,
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch (Sec. 3.1).

        Args:
            anchors: L levels of anchors.
            pred_logits: L levels, each (N, Ri, K).
            gt_labels: (N, R), see :meth:`label_anchors`.
            pred_anchor_deltas: L levels, each (N, Ri, 4).
            matched_gt_boxes: (N, R, 4), see :meth:`label_anchors`.
            pred_centerness: L levels, each (N, Ri) logits; None for a head that predicts none.

        Returns:
            ``loss_cls`` (focal loss per positive), ``loss_box_reg`` (mean over the positives,
            weighted by the centerness targets) and, if predicted, ``loss_centerness``.
        """
        num_images = len(gt_labels)
        # (N x R, ...): the anchors of the batch as one list, in float32 under any autocast.
        with torch.autocast(gt_labels.device.type, enabled=False):
            logits = torch.cat(pred_logits, dim=1).flatten(0, 1)
            labels = gt_labels.flatten()
            loss_cls = sigmoid_focal_loss(
                logits, labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
            )

            is_positive = (labels >= 0) & (labels != self.num_classes)
            rows = positive_rows(is_positive)
            is_positive = is_positive[rows]  # (P,), as all from here on
            boxes = matched_gt_boxes.flatten(0, 1)[rows]
            row_anchors = Boxes.cat(anchors).tensor.repeat(num_images, 1)[rows]
            deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)[rows].float()

            targets = centerness_targets(row_anchors, boxes, self.centerness_inset) * is_positive
            is_weighted = pred_centerness is not None and self.centerness_weighted_box_loss
            weights = targets if is_weighted else is_positive.to(targets.dtype)
            num_positives = is_positive.sum()
            if self.floor_per_image:
                of_images = ((gt_labels >= 0) & (gt_labels != self.num_classes)).sum(dim=1)  # (N,)
                num_positives = of_images.clamp(min=1).sum()
            num_positives, sum_weights = loss_normalizers(num_positives, weights.sum())

            # Weight 0 does not silence a background anchor whose box has overflowed: 0 x inf.
            deltas = torch.where(is_positive[:, None], deltas, 0.0)
            loss_box_reg = box_reg_loss(
                deltas,
                row_anchors,
                boxes,
                box2box_transform=self.box2box_transform,
                loss_type=self.box_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
            )
            loss_box_reg = (loss_box_reg * weights).sum()
            losses = {
                "loss_cls": loss_cls / num_positives,
                "loss_box_reg": loss_box_reg * (self.box_reg_loss_weight / sum_weights),
            }
            if pred_centerness is not None:
                centerness = torch.cat(pred_centerness, dim=1).flatten()[rows]
                centerness = torch.where(is_positive, centerness, 0.0)  # 0 x inf, again
                loss_centerness = (centerness_loss(centerness, targets) * is_positive).sum()
                losses["loss_centerness"] = loss_centerness * (
                    self.centerness_loss_weight / num_positives
                )
        return losses

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
                None if centerness is None else [x[i] for x in centerness],
                image_size,
                **self.candidate_options(),
                nms_thresh=self.test_nms_thresh,
                max_detections=self.max_detections_per_image,
            )
            results.append(
                Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            )
        return results

    def candidate_options(self) -> dict:
        """Arguments of :mod:`.postprocess` that decide on the candidates, here and in exports."""
        return {
            "box2box_transform": self.box2box_transform,
            "score_thresh": self.test_score_thresh,
            "topk_candidates": self.test_topk_candidates,
            "score_type": self.test_score_type,
            "rank_by": self.test_rank_by,
        }

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of this class."""
        return ScriptableATSS(self)
