"""A second stage that multiplies the probabilities of its proposals into its scores.

Shapes: P proposals of an image, K classes.
"""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor


@ROI_HEADS_REGISTRY.register()
class ProbabilisticCascadeROIHeads(CascadeROIHeads):
    """Cascade heads whose score is sqrt(class score x score of the proposal).

    As in "Probabilistic two-stage detection" (arXiv 2103.07461). The scores of proposals must be
    probabilities, as those of :class:`ATSSRPN` with a criterion; those of an RPN that was trained
    on sampled anchors are not. Training is that of :class:`CascadeROIHeads`.
    """

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Works as the method of the base class, with other scores of detections."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        maps = [features[name] for name in self.box_in_features]
        sizes = [x.image_size for x in proposals]
        priors = [x.objectness_logits.sigmoid()[:, None] for x in proposals]  # (P, 1)
        boxes, scores_of_stages = [], []
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            scores_of_stages.append(predictor.predict_probs(predictions, proposals))
        scores = [
            (torch.stack(of_image).mean(dim=0) * prior).sqrt()  # (P, K + 1)
            for *of_image, prior in zip(*scores_of_stages, priors)
        ]
        detections, _ = fast_rcnn_inference(
            boxes,
            scores,
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return detections
