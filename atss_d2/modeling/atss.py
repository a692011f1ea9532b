"""The ATSS meta-architecture: anchors are labeled by statistics of each object.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A) anchors, K
classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .anchor_generator import grid_sizes
from .box_coding import num_box_values
from .build import build_parts
from .choices import check_choice
from .criterion import ATSSCriterion, Criterion
from .fit import check_parts
from .labels import label_stats, look_up
from .matchers import DenseMatcher
from .nouns import Predictions, Targets
from .postprocess import postprocess
from .pre_nms import RANKINGS, SCORE_TYPES
from .predictions import decode_predictions, predictions_from_maps
from .scene import scene_of_instances
from .scripting import ScriptableATSS
from .training_log import TrainingLog, training_iteration
from .training_pictures import draw_training, is_time_to_draw


@META_ARCH_REGISTRY.register()
class ATSS(DenseDetector):
    """RetinaNet with adaptive training sample selection (arXiv 1912.02424).

    It has one square anchor per location, a head with GroupNorm, centerness and per-level scalars,
    and a GIoU loss; the ``matcher`` selects samples. The paper's experiments, from RetinaNet to
    FCOS, use other parts and switches of this class: see ``configs/ablations/``.
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
        criterion: Criterion | None = None,
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
        test_thresh_on: str = "class_score",
        score_voting: float | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: Returns a dict of feature maps, usually an FPN with P3 to P7.
            head: Maps L features to class logits, box deltas and, optionally, centerness, see
                :class:`ATSSHead`.
            anchor_generator: Returns L levels of anchors with A anchors per location.
            box2box_transform: Box coder between anchors and boxes.
            matcher: Sample selection: any :class:`DenseMatcher`.
            num_classes: K. Background is label K.
            head_in_features: Feature maps of the backbone that the head uses, from high to low
                resolution. Default: all.
            criterion: The losses. Default: an :class:`ATSSCriterion` built from the following
                arguments, which must keep their defaults if a criterion is given.
            focal_loss_alpha: See :class:`ATSSCriterion`, as for the next eight.
            focal_loss_gamma: See there.
            box_reg_loss_type: See there.
            smooth_l1_beta: See there.
            box_reg_loss_weight: See there.
            centerness_weighted_box_loss: See there.
            centerness_loss_weight: See there.
            centerness_inset: See there.
            floor_per_image: See there.
            test_score_thresh: Minimum class score (before centerness) of a detection.
            test_topk_candidates: Maximum number of pre-NMS detections per level.
            test_nms_thresh: IoU threshold of NMS.
            max_detections_per_image: Maximum number of detections per image after NMS.
            test_score_type: Score of a detection: "sqrt", the square root of class score x
                centerness, or the plain "product", as in mmdetection.
            test_rank_by: What ranks the pre-NMS detections of a level: this "score", or the
                "class_score" alone, as in mmdetection.
            test_thresh_on: What ``test_score_thresh`` applies to: the "class_score", or the
                "score", as in mmdetection's PAA.
            score_voting: ``sigma`` of :func:`.vote_by_scores` after NMS; None for no voting.
            pixel_mean: Mean per channel, 0..255, in the order of ``input_format``.
            pixel_std: Standard deviation per channel; 1 for the MSRA ResNets.
            input_format: Channel order of the input images, "BGR" or "RGB".
            vis_period: Number of iterations after which the first training image is drawn for
                TensorBoard, with its boxes and detections; 0 draws nothing.

        Raises:
            ValueError: Parts do not fit together; the message names the values.
        """
        if head_in_features is not None:
            head_in_features = list(head_in_features)  # exporters reject an omegaconf list
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.matcher = matcher
        self.num_classes = num_classes
        self.criterion = _criterion(
            criterion,
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
            box_reg_loss_type=box_reg_loss_type,
            smooth_l1_beta=smooth_l1_beta,
            box_reg_loss_weight=box_reg_loss_weight,
            centerness_weighted_box_loss=centerness_weighted_box_loss,
            centerness_loss_weight=centerness_loss_weight,
            centerness_inset=centerness_inset,
            floor_per_image=floor_per_image,
        )
        self._bind_criterion()
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.test_score_type = test_score_type
        self.test_rank_by = test_rank_by
        self.test_thresh_on = test_thresh_on
        self.score_voting = score_voting
        self.input_format = input_format
        self.vis_period = vis_period
        self._training_log = TrainingLog()
        self._check_parts()

    def _bind_matcher(self) -> None:
        generator = self.anchor_generator
        self.matcher.bind(generator.num_anchors[0], tuple(generator.strides))

    def _bind_criterion(self) -> None:
        self.criterion.bind(box2box_transform=self.box2box_transform, num_classes=self.num_classes)

    def _check_parts(self) -> None:
        check_parts(
            backbone_shapes=self.backbone.output_shape(),
            head_in_features=self.head_in_features,
            anchor_generator=self.anchor_generator,
            head=self.head,
            matcher=self.matcher,
            box2box_transform=self.box2box_transform,
            num_classes=self.num_classes,
            criterion=self.criterion,
        )
        if self.input_format not in ("BGR", "RGB"):
            raise ValueError(f'input_format must be "BGR" or "RGB", got "{self.input_format}"')
        if self.vis_period < 0:
            raise ValueError(f"vis_period must be >= 0, got {self.vis_period}")
        check_choice("test_score_type", self.test_score_type, SCORE_TYPES)
        check_choice("test_rank_by", self.test_rank_by, RANKINGS)
        check_choice("test_thresh_on", self.test_thresh_on, RANKINGS)
        if self.score_voting is not None and self.score_voting <= 0:
            raise ValueError(f"score_voting must be None or > 0, got {self.score_voting}")

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
        predictions = self.as_predictions(predictions)
        anchors = self.anchor_generator(features)
        sizes = grid_sizes(self.anchor_generator, features)
        targets = self.label_anchors(anchors, gt_instances, predictions, sizes)
        return self.losses(predictions, targets)

    def as_predictions(self, maps: Sequence[Sequence[Tensor]]) -> Predictions:
        """Rearranges the maps of the head by anchor; see :func:`predictions_from_maps`."""
        return predictions_from_maps(
            maps,
            num_anchors=self.anchor_generator.num_anchors,
            num_classes=self.num_classes,
            num_box_values=num_box_values(self.box2box_transform),
        )

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        predictions: Predictions | None = None,
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Targets:
        """Finds the training targets of all anchors, by the rule of the matcher.

        Args:
            anchors: L levels of anchors.
            gt_instances: N images with ``gt_boxes`` and ``gt_classes``; boxes marked by the
                optional field ``gt_ignore`` (bool) are ignore regions, which are never matched.
            predictions: Predictions of the head; only rules with ``needs_predictions`` use them.
            grid_sizes: (Hi, Wi) of the L levels, if the anchors lie on grids, see :class:`Scene`.
        """
        self._bind_matcher()  # a matcher may have been set after the model was built
        anchors = [a.tensor for a in anchors]
        decoded = None
        if self.matcher.needs_predictions and predictions is not None:
            decoded = decode_predictions(predictions, anchors, self.box2box_transform)
        scene = scene_of_instances(
            anchors,
            gt_instances,
            grid_sizes,
            num_classes=self.num_classes,
            predictions=decoded,
            iteration=training_iteration(),
        )
        assignment = self.matcher.assign(scene)
        self._training_log.put(
            {**label_stats(assignment, scene, self.head_in_features), **assignment.stats}
        )
        return look_up(assignment, scene, num_classes=self.num_classes)

    def losses(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes the losses of a batch with the criterion."""
        self._bind_criterion()  # the criterion, or the coder, may have been set later
        return self.criterion(predictions, targets)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Sequence[list[Tensor]]
    ) -> list[Instances]:
        """Returns the detections of every image, in coordinates of the input images."""
        detections = postprocess(
            self.as_predictions(predictions),
            [a.tensor for a in self.anchor_generator(features)],
            images.image_sizes,
            nms_thresh=self.test_nms_thresh,
            max_detections=self.max_detections_per_image,
            score_voting=self.score_voting,
            **self.pre_nms_options(),
        )
        return [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for size, (boxes, scores, classes) in zip(images.image_sizes, detections)
        ]

    def pre_nms_options(self) -> dict:
        """Returns the arguments of :func:`pre_nms_detections`, for inference and exports."""
        return {
            "box2box_transform": self.box2box_transform,
            "score_thresh": self.test_score_thresh,
            "topk_candidates": self.test_topk_candidates,
            "score_type": self.test_score_type,
            "rank_by": self.test_rank_by,
            "thresh_on": self.test_thresh_on,
        }

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what ``torch.jit.script`` compiles in place of this class."""
        return ScriptableATSS(self)


def _criterion(criterion: Criterion | None, **arguments: Any) -> Criterion:
    """Returns the given criterion, or one built from arguments of the model."""
    if criterion is None:
        return ATSSCriterion(**arguments)
    defaults = inspect.signature(ATSSCriterion).parameters
    changed = [name for name, value in arguments.items() if value != defaults[name].default]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} would have no effect beside criterion="
            f"{type(criterion).__name__}: set what the criterion takes there"
        )
    return criterion
