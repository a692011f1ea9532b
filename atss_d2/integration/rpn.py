"""Our sample selection and losses in Detectron2's region proposal network (RPN).

Shapes: N images, L levels of size Hi x Wi, A anchors per location, Ri anchors of level i,
R = sum(Ri).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN,
    RPN_HEAD_REGISTRY,
    StandardRPNHead,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.anchor_generator import grid_sizes
from ..modeling.box_coding import num_box_values
from ..modeling.build import build_criterion, build_matcher
from ..modeling.criterion import Criterion
from ..modeling.gflv2_head import product_logits
from ..modeling.labels import label_stats
from ..modeling.matchers import DenseMatcher
from ..modeling.nouns import Predictions, Targets
from ..modeling.predictions import decode_predictions, predictions_from_maps
from ..modeling.training_log import TrainingLog
from .rpn_labels import check_rpn_rule, label_and_sample, rpn_targets

# Losses of a criterion -> Detectron2's names, under which ROI heads have losses of their own.
_LOSS_NAMES = {"loss_cls": "loss_rpn_cls", "loss_box_reg": "loss_rpn_loc"}


@RPN_HEAD_REGISTRY.register()
class ATSSRPNHead(StandardRPNHead):
    """Detectron2's RPN head with scores that start at a prior, and a 3x3 branch for a quality.

    Names of the other weights are Detectron2's.
    """

    @configurable
    def __init__(
        self, *, prior_prob: float = 0.01, with_centerness: bool = True, **kwargs: Any
    ) -> None:
        """
        Args:
            prior_prob: Initial objectness, as a focal loss over all anchors needs it.
            with_centerness: Whether a quality, centerness or IoU, is predicted.
            **kwargs: The arguments of :class:`StandardRPNHead`.

        Raises:
            ValueError: ``prior_prob`` is not between 0 and 1.
        """
        super().__init__(**kwargs)
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must be between 0 and 1, got {prior_prob}")
        nn.init.constant_(self.objectness_logits.bias, -math.log((1 - prior_prob) / prior_prob))
        self.predicts_quality = with_centerness
        self.ctrness = None
        if with_centerness:
            channels, num_anchors = (
                self.objectness_logits.in_channels,
                self.objectness_logits.out_channels,
            )
            self.ctrness = nn.Conv2d(channels, num_anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.ctrness.weight, std=0.01)
            nn.init.zeros_(self.ctrness.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads Detectron2's keys, and two of ``MODEL.ATSS.HEAD``."""
        node = cfg.MODEL.ATSS.HEAD
        return {
            **super().from_config(cfg, input_shape),
            "prior_prob": node.PRIOR_PROB,
            "with_centerness": node.WITH_CENTERNESS,
        }

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts objectness, boxes and, optionally, a quality from all levels.

        Args:
            features: L maps (N, C, Hi, Wi).

        Returns:
            Three lists of L maps: objectness logits (N, A, Hi, Wi), deltas (N, 4 A, Hi, Wi) and
            quality logits (N, A, Hi, Wi); only the first two without ``with_centerness``.
        """
        hidden = [self.conv(x) for x in features]
        maps = [
            [predict(x) for x in hidden] for predict in (self.objectness_logits, self.anchor_deltas)
        ]
        return maps if self.ctrness is None else [*maps, [self.ctrness(x) for x in hidden]]


@PROPOSAL_GENERATOR_REGISTRY.register()
class ATSSRPN(RPN):
    """Detectron2's RPN with our sample selection, and on request with our losses.

    There are two settings. Without a ``criterion``, sampling and losses are Detectron2's: of the
    labeled anchors, 256 of an image are drawn for the losses. With one, all anchors are trained, by
    a focal loss that is normalized by the positives of all processes, and the score of a proposal
    is a probability: the objectness, or sqrt(objectness x quality) if the head predicts a quality.
    Only such scores may be multiplied into the class scores of a second stage.

    All objects have one class here, whatever their ``gt_classes`` are. A rule of ATSS has k x A
    candidates per level: 27 with k = 9 and Detectron2's three ratios.
    """

    @configurable
    def __init__(
        self,
        *,
        anchor_matcher: DenseMatcher | Matcher,
        criterion: Criterion | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            anchor_matcher: Sample selection: any :class:`DenseMatcher`; without a criterion also
                Detectron2's ``Matcher``.
            criterion: Losses of all anchors; their names get the prefix ``loss_rpn_``. None:
                Detectron2's losses of sampled anchors.
            **kwargs: The other arguments of :class:`RPN`; with a criterion, ``loss_weight`` still
                counts, but sampling (``batch_size_per_image``, ``positive_fraction``) does not
                take place.

        Raises:
            ValueError: Parts do not fit together; the message names them.
        """
        super().__init__(anchor_matcher=anchor_matcher, **kwargs)
        self.criterion = criterion
        self._training_log = TrainingLog()
        self._check_parts()
        self._bind_parts()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Reads Detectron2's ``MODEL.RPN``, and rule and losses from ``MODEL.ATSS``."""
        parts = {**super().from_config(cfg, input_shape), "anchor_matcher": build_matcher(cfg)}
        if not cfg.MODEL.ATSS.RPN.SAMPLE_ANCHORS:
            parts["criterion"] = build_criterion(cfg)
        return parts

    def _check_parts(self) -> None:
        head, rule = self.rpn_head, type(self.anchor_matcher).__name__
        predicts_quality = getattr(head, "predicts_quality", False)
        if self.criterion is None:
            if predicts_quality:
                raise ValueError(
                    f"{type(head).__name__} predicts a quality, which Detectron2's losses do not "
                    "train: set head.with_centerness=False, or a criterion"
                )
            if not isinstance(self.anchor_matcher, Matcher):
                check_rpn_rule(self, self.anchor_matcher)
            return
        if not isinstance(self.anchor_matcher, DenseMatcher):
            raise ValueError(
                f"a criterion needs anchor_matcher of atss_d2, got {rule}: IoUMatcher is "
                "Detectron2's rule"
            )
        check_rpn_rule(self, self.anchor_matcher, allow_predictions=True)
        if type(head) is StandardRPNHead:
            raise ValueError(
                "a focal loss over all anchors diverges from the scores of 0.5 that "
                "StandardRPNHead starts with: use ATSSRPNHead"
            )
        if (self.box_reg_loss_type, self.smooth_l1_beta) != ("smooth_l1", 0.0):
            raise ValueError(
                f"box_reg_loss_type={self.box_reg_loss_type} and smooth_l1_beta="
                f"{self.smooth_l1_beta} would have no effect beside criterion="
                f"{type(self.criterion).__name__}: set them there"
            )
        num_values = num_box_values(self.box2box_transform)
        if num_values != 4:
            raise ValueError(
                f"proposals are decoded from 4 values of an anchor, but "
                f"{type(self.box2box_transform).__name__} takes {num_values}"
            )
        self.criterion.check_quality(predicts_quality)

    def _bind_parts(self) -> None:
        generator = self.anchor_generator
        if isinstance(self.anchor_matcher, DenseMatcher):
            self.anchor_matcher.bind(generator.num_anchors[0], tuple(generator.strides))
        if self.criterion is not None:
            self.criterion.bind(box2box_transform=self.box2box_transform, num_classes=1)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposes boxes and, in training, computes the losses; see :class:`RPN`."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        predictions = predictions_from_maps(
            self.rpn_head(maps),
            num_anchors=self.anchor_generator.num_anchors,
            num_classes=1,
            num_box_values=4,
        )
        losses = {}
        if self.training:
            sizes = grid_sizes(self.anchor_generator, maps)
            losses = self._training_losses(anchors, predictions, gt_instances, sizes)
        with torch.no_grad():
            scores = proposal_logits(predictions)
        proposals = self.predict_proposals(
            anchors, scores, predictions.regression, images.image_sizes
        )
        return proposals, losses

    def _training_losses(
        self,
        anchors: list[Boxes],
        predictions: Predictions,
        gt_instances: list[Instances],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> dict[str, Tensor]:
        self._bind_parts()  # parts may have been set after the model was built
        if self.criterion is not None:
            return self.dense_losses(
                predictions, self.label_anchors(anchors, gt_instances, predictions, sizes)
            )
        gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances, sizes)
        logits = [level.squeeze(2) for level in predictions.logits]
        return self.losses(anchors, logits, gt_labels, predictions.regression, gt_boxes)

    @torch.no_grad()
    def label_and_sample_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels the anchors and draws those that are trained; see :class:`RPN`.

        Args:
            anchors: L levels of anchors.
            gt_instances: N images with ``gt_boxes``; boxes marked by the optional field
                ``gt_ignore`` (bool) are ignore regions, which are never matched.
            grid_sizes: (Hi, Wi) of the L levels, if the anchors lie on grids.
        """
        if isinstance(self.anchor_matcher, Matcher):
            return super().label_and_sample_anchors(anchors, gt_instances)
        return label_and_sample(
            self, self.anchor_matcher, anchors, gt_instances, grid_sizes, log=self._log
        )

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        predictions: Predictions | None = None,
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Targets:
        """Finds the training targets of all anchors, for a criterion.

        Args:
            anchors: As in :meth:`label_and_sample_anchors`, as are the next one and the last.
            gt_instances: See there.
            predictions: Predictions of the head; only rules with ``needs_predictions`` use them.
            grid_sizes: See there.
        """
        decoded = None
        if self.anchor_matcher.needs_predictions and predictions is not None:
            decoded = decode_predictions(
                predictions, [a.tensor for a in anchors], self.box2box_transform
            )
        return rpn_targets(
            self,
            self.anchor_matcher,
            anchors,
            gt_instances,
            grid_sizes,
            predictions=decoded,
            log=self._log,
        )

    def _log(self, assignment, scene) -> None:
        stats = {**label_stats(assignment, scene, self.in_features), **assignment.stats}
        self._training_log.put({f"rpn_{name}": value for name, value in stats.items()})

    def dense_losses(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes the losses of all anchors with the criterion, under the names of an RPN."""
        losses = {}
        for name, loss in self.criterion(predictions, targets).items():
            name = _LOSS_NAMES.get(name, name.replace("loss_", "loss_rpn_", 1))
            losses[name] = loss * self.loss_weight.get(name, 1.0)
        return losses

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what ``torch.jit.script`` compiles in place of this class: Detectron2's RPN.

        Raises:
            ValueError: The head predicts a quality.
        """
        if getattr(self.rpn_head, "predicts_quality", False):
            raise ValueError(
                "an ATSSRPN whose head predicts a quality cannot be scripted: use tracing"
            )
        twin = copy.copy(self)
        twin.__class__ = RPN
        return twin


def proposal_logits(predictions: Predictions) -> list[Tensor]:
    """Returns the logits L x (N, Ri) of the scores of proposals.

    With a quality, the score is sqrt(objectness x quality), in at least float32.
    """
    logits = [level.squeeze(2) for level in predictions.logits]
    if predictions.quality is None:
        return logits
    return [sqrt_product_logits(x, y) for x, y in zip(logits, predictions.quality)]


def sqrt_product_logits(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Computes the logits of sqrt(sigmoid(x) sigmoid(y)) of tensors of one shape.

    With z the logit of the product s and p = sqrt(s): log p = -log(1 + exp(-z)) / 2, and
    1 - p = (1 - s) / (1 + p). Nothing underflows, so the result is finite for all finite x and y.
    """
    z = product_logits(logits, other_logits)
    log_p = -F.softplus(-z) / 2
    return log_p + F.softplus(z) + log_p.exp().log1p()
