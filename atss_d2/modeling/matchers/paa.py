"""Selection by a mixture of two Gaussians (PAA, arXiv 2007.08103, Sec. 3.2).

Shapes: N images, L levels, R anchors of all levels, M boxes of the batch, K classes, P anchors of
the batch that include all that are matched, C = L x topk places for the candidates of a box.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussian_mixture import Mixture, fit_two_gaussians
from ..geometry import paired_giou
from ..nouns import Scene
from .base import MATCHER_REGISTRY, DenseMatcher
from .iou import IoUMatcher
from .selection import BACKGROUND, box_chunks, ordered_bits

_MAX_COST = 1e9  # predictions that have overflowed; its square is far from overflowing


@MATCHER_REGISTRY.register()
class PAAMatcher(DenseMatcher):
    """Selects the anchors of each box whose losses a mixture of two Gaussians calls low.

    First each anchor is matched to at most one box, as by :class:`IoUMatcher`. The cost of a
    matched anchor is the loss that its prediction would have as a positive: the focal loss of all
    classes, and GIoU loss. The ``topk`` cheapest anchors of each level are the candidates of a box.
    A mixture of two Gaussians is fitted to their costs. Positives are the candidates that more
    likely belong to its low component, from the cheapest to the one where the density of the
    mixture is highest. All other anchors are background; none is ignored.

    Of equal costs, the lower anchor index is taken first.
    """

    needs_predictions = True

    def __init__(
        self,
        *,
        topk: int = 9,
        iou_thresh: float = 0.1,
        low_quality_override: bool = False,
        giou_cost_weight: float = 1.0,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        keep_undivided: bool = True,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: Candidates of a box per level.
            iou_thresh: IoU from which an anchor is matched to a box; the best anchors of a box are
                matched regardless of their IoU.
            low_quality_override: See :class:`IoUMatcher`: False in the authors' release, True in
                mmdetection.
            giou_cost_weight: Weight of the GIoU loss in the cost: 1 in the authors' release, 1.3,
                as in the loss, in mmdetection.
            focal_loss_alpha: Of the focal loss in the cost, see :class:`ATSSCriterion`.
            focal_loss_gamma: Likewise.
            keep_undivided: Whether all candidates of a box are positive if there is only one or
                none belongs to the low component, as in the authors' release. Otherwise none is, as
                in mmdetection.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        if topk < 1:
            raise ValueError(f"topk must be >= 1, got {topk}")
        if not 0 < iou_thresh <= 1:
            raise ValueError(f"iou_thresh must be in (0, 1], got {iou_thresh}")
        for name, value in (
            ("giou_cost_weight", giou_cost_weight),
            ("focal_loss_gamma", focal_loss_gamma),
        ):
            if value < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        self.topk = topk
        self.iou_thresh = iou_thresh
        self.low_quality_override = low_quality_override
        self.giou_cost_weight = giou_cost_weight
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.keep_undivided = keep_undivided

    def match(self, scene: Scene) -> Tensor:
        matched = self.match_by_iou(scene)  # (N, R)
        # On a GPU, the host would have to wait for the number of matched anchors.
        rows = torch.arange(matched.numel(), device=matched.device)  # (P,) into N x R
        if matched.device.type == "cpu":
            rows = (matched.flatten() >= 0).nonzero()[:, 0]
        return self.select(scene, matched, rows, self.costs(scene, matched, rows))

    def select(self, scene: Scene, matched: Tensor, rows: Tensor, costs: Tensor) -> Tensor:
        """Returns which of the matched anchors stay so (N, R), by the costs (P,) of ``rows``."""
        candidates, costs = self.candidates(scene, matched, rows, costs)  # (M, C)
        is_candidate = costs < torch.inf
        mixture = fit_two_gaussians(costs, is_candidate)
        positive = separate(mixture, is_candidate, keep_undivided=self.keep_undivided)
        selected = matched.new_full((matched.numel() + 1,), BACKGROUND)
        box_idxs = torch.arange(len(candidates), device=matched.device)[:, None]
        selected.scatter_(
            0,
            candidates.masked_fill(~positive, matched.numel()).flatten(),
            box_idxs.expand_as(candidates).flatten(),
        )
        return selected[:-1].view_as(matched)

    def match_by_iou(self, scene: Scene) -> Tensor:
        """Returns the box (N, R) that an anchor may become positive for, or BACKGROUND."""
        matcher = IoUMatcher(
            thresholds=(self.iou_thresh, self.iou_thresh),
            low_quality_override=self.low_quality_override,
        )
        return matcher.match(scene).matched_idxs

    def costs(self, scene: Scene, matched: Tensor, rows: Tensor) -> Tensor:
        """Returns the cost (P,) of anchors as positives of their box, 0 for those without one.

        Args:
            scene: The scene, with predictions and classes.
            matched: (N, R) index of the box of each anchor, or BACKGROUND.
            rows: (P,) indices into the N x R anchors.
        """
        logits, boxes = (x.flatten(0, 1) for x in scene.predictions[:2])  # (N x R, K or 4)
        # Row 0 stands for "no box", so that a batch without boxes needs no branch.
        gt_boxes = F.pad(scene.boxes, (0, 0, 1, 0))
        gt_classes = F.pad(scene.classes, (1, 0))
        box_rows = matched.flatten()[rows] + 1  # (P,)
        costs = []
        for chunk in box_chunks(rows, logits.shape[1]):
            anchors, own = rows[chunk], box_rows[chunk]
            focal = self._focal_losses(logits[anchors], gt_classes[own])
            giou = 1 - paired_giou(boxes[anchors], gt_boxes[own])
            costs.append(focal + self.giou_cost_weight * giou)
        costs = torch.cat(costs).nan_to_num(_MAX_COST).clamp(max=_MAX_COST)
        return torch.where(box_rows > 0, costs, 0.0)

    def _focal_losses(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Returns the focal loss (P,), summed over classes, of logits (P, K) for classes (P,)."""
        alpha = self.focal_loss_alpha
        weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        as_positive = self._focal_term(-logits.gather(1, classes[:, None]))[:, 0]  # (P,)
        others = self._focal_term(logits).scatter_(1, classes[:, None], 0.0)  # (P, K)
        return weights[0] * as_positive + weights[1] * others.sum(dim=1)

    def _focal_term(self, x: Tensor) -> Tensor:
        """Returns p^gamma x -log(1 - p) of negatives, p = sigmoid(x)."""
        return (self.focal_loss_gamma * F.logsigmoid(x)).exp() * F.softplus(x)

    def candidates(
        self, scene: Scene, matched: Tensor, rows: Tensor, costs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Finds the ``topk`` cheapest anchors of each level for each box.

        An anchor belongs to one box only, so that one sort of all anchors by box, level and cost
        replaces a matrix of boxes and anchors.

        Returns:
            Indices (M, C) into the N x R anchors, and their costs, lowest first; infinite costs
            where there is no candidate.
        """
        num_levels, num_boxes = len(scene.anchors), len(scene.boxes)
        num_groups = num_boxes * num_levels  # one per box and level; the last is for no box
        levels = torch.cat(
            [
                torch.full((len(anchors),), level, device=matched.device)
                for level, anchors in enumerate(scene.anchors)
            ]
        )
        boxes = matched.flatten()[rows]  # (P,), as all from here on
        groups = torch.where(
            boxes >= 0, boxes * num_levels + levels[rows % matched.shape[1]], num_groups
        )
        keys = (groups << 32) + (ordered_bits(costs).long() + 2**31)
        order = keys.argsort(stable=True)
        groups, rows, costs = groups[order], rows[order], costs[order]
        firsts = torch.searchsorted(groups, torch.arange(num_groups + 1, device=groups.device))
        ranks = torch.arange(len(groups), device=groups.device) - firsts[groups]
        is_candidate = (ranks < self.topk) & (groups < num_groups)
        num_places = num_groups * self.topk
        places = torch.where(is_candidate, groups * self.topk + ranks, num_places)
        shape = (num_boxes, num_levels * self.topk)
        best = rows.new_zeros(num_places + 1).scatter_(0, places, rows)[:-1].view(shape)
        lowest = costs.new_full((num_places + 1,), torch.inf).scatter_(0, places, costs)
        lowest, order = lowest[:-1].view(shape).sort(dim=1, stable=True)
        return best.gather(1, order), lowest


def separate(mixture: Mixture, is_candidate: Tensor, *, keep_undivided: bool = True) -> Tensor:
    """Returns which candidates (M, C) are positive (PAA, Sec. 3.2 and Fig. 3c).

    Args:
        mixture: Of the costs of the candidates of each box, lowest first.
        is_candidate: (M, C) bool, which places have a candidate.
        keep_undivided: See :class:`PAAMatcher`.
    """
    is_low = mixture.is_low & is_candidate
    density = mixture.log_density.masked_fill(~is_low, -torch.inf)
    places = torch.arange(is_low.shape[1], device=is_low.device)
    positive = is_low & (places <= density.argmax(dim=1, keepdim=True))
    is_divided = is_low.any(dim=1) & (is_candidate.sum(dim=1) > 1)  # (M,)
    return torch.where(is_divided[:, None], positive, is_candidate & keep_undivided)
