"""Our sample selection and losses in Detectron2's region proposal network (RPN).

Shapes: N images, L levels of size Hi x Wi, A anchors per location, Ri anchors of level i,
R = sum(Ri).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN,
    StandardRPNHead,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.anchor_generator import grid_sizes
from ..modeling.box_coding import num_box_values
from ..modeling.build import build_criterion, build_matcher
from ..modeling.criterion import Criterion
from ..modeling.fit import check_head
from ..modeling.labels import label_stats
from ..modeling.matchers import DenseMatcher
from ..modeling.nouns import Predictions, Targets
from ..modeling.predictions import decode_predictions, predictions_from_maps
from ..modeling.training_log import TrainingLog
from .rpn_head import ATSSRPNHead, proposal_logits
from .rpn_labels import check_rpn_rule, label_and_sample, rpn_targets

# Losses of a criterion -> Detectron2's names, under which ROI heads have losses of their own.
_LOSS_NAMES = {"loss_cls": "loss_rpn_cls", "loss_box_reg": "loss_rpn_loc"}


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
                counts (losses that it does not name have the weight of ``loss_rpn_cls``), but
                sampling (``batch_size_per_image``, ``positive_fraction``) does not take place.

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
        """Reads Detectron2's ``MODEL.RPN``, and rule and losses from ``MODEL.ATSS``.

        Raises:
            ValueError: A key of ``MODEL.ATSS`` was changed that has no effect here.
        """
        _check_keys(cfg.MODEL.ATSS)
        parts = {**super().from_config(cfg, input_shape), "anchor_matcher": build_matcher(cfg)}
        if not cfg.MODEL.ATSS.RPN.SAMPLE_ANCHORS:
            parts["criterion"] = build_criterion(cfg)
        return parts

    def _check_parts(self) -> None:
        head, rule = self.rpn_head, type(self.anchor_matcher).__name__
        predicts_quality = getattr(head, "predicts_quality", False)
        num_values = num_box_values(self.box2box_transform)
        if num_values != 4:
            raise ValueError(
                f"proposals are decoded from 4 values of an anchor, but "
                f"{type(self.box2box_transform).__name__} takes {num_values}"
            )
        check_head(
            head,
            anchor_generator=self.anchor_generator,
            box2box_transform=self.box2box_transform,
            num_classes=1,
        )
        if self.criterion is None:
            if predicts_quality:
                raise ValueError(
                    f"{type(head).__name__} predicts a quality, which Detectron2's losses do not "
                    "train: set head.with_centerness=False, or a criterion (in yaml "
                    "MODEL.ATSS.HEAD.WITH_CENTERNESS False, or MODEL.ATSS.RPN.SAMPLE_ANCHORS False)"
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
        self.criterion.check_quality(predicts_quality)
        num_levels = len(self.anchor_generator.num_anchors)
        self.criterion.check_fit(head, self.anchor_matcher, num_levels=num_levels)

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
            if gt_instances is None:
                raise ValueError(f"{type(self).__name__} needs gt_instances in training, got none")
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
            return super().label_and_sample_anchors(anchors, [_objects(x) for x in gt_instances])
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
        # A number weights all losses; Detectron2 turns it into the weights of its own two.
        default = self.loss_weight.get("loss_rpn_cls", 1.0)
        for name, loss in self.criterion(predictions, targets).items():
            name = _LOSS_NAMES.get(name, name.replace("loss_", "loss_rpn_", 1))
            losses[name] = loss * self.loss_weight.get(name, default)
        return losses

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what ``torch.jit.script`` compiles in place of this class: Detectron2's RPN.

        Raises:
            ValueError: It has a criterion, or a head of ours.
        """
        if self.criterion is not None or isinstance(self.rpn_head, ATSSRPNHead):
            raise ValueError(
                "an ATSSRPN with a criterion or an ATSSRPNHead cannot be scripted: use tracing"
            )
        twin = copy.copy(self)
        twin.__class__ = RPN
        return twin


def _check_keys(node: CfgNode) -> None:
    """Checks keys of ``MODEL.ATSS`` that a person may take for those of the RPN.

    Raises:
        ValueError: They were changed and have no effect.
    """
    if node.BOX_CODER != "Box2BoxTransform":
        raise ValueError(
            f"MODEL.ATSS.BOX_CODER is '{node.BOX_CODER}', which an RPN does not read: leave it at "
            "'Box2BoxTransform', whose weights are MODEL.RPN.BBOX_REG_WEIGHTS"
        )
    criterion = node.CRITERION.NAME
    if node.RPN.SAMPLE_ANCHORS and criterion != "ATSSCriterion":
        raise ValueError(
            f"MODEL.ATSS.CRITERION.NAME is '{criterion}', but sampled anchors have "
            "Detectron2's losses: set MODEL.ATSS.RPN.SAMPLE_ANCHORS False"
        )


def _objects(instances: Instances) -> Instances:
    """Returns the boxes of an image that are not ignore regions."""
    if not instances.has("gt_ignore"):
        return instances
    return Instances(instances.image_size, gt_boxes=instances.gt_boxes[~instances.gt_ignore])
