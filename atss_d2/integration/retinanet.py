"""A RetinaNet with our sample selection, for yaml configs."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from ..modeling.build import build_matcher
from ..modeling.matchers import DenseMatcher
from .detector import replace_label_anchors


@META_ARCH_REGISTRY.register()
class RetinaNetWithMatcher(RetinaNet):
    """Detectron2's RetinaNet with our sample selection.

    Set ``MODEL.META_ARCHITECTURE: RetinaNetWithMatcher`` in a config of Detectron2's RetinaNet. All
    keys keep their meaning except ``MODEL.RETINANET.IOU_*``, which are replaced by
    ``MODEL.ATSS.MATCHER.NAME`` and the node of that matcher (see :func:`add_atss_config`).
    """

    @configurable
    def __init__(self, *, matcher: DenseMatcher, **kwargs: Any) -> None:
        """
        Args:
            matcher: Sample selection: any :class:`DenseMatcher`.
            **kwargs: The arguments of :class:`RetinaNet`.
        """
        super().__init__(**kwargs)
        replace_label_anchors(self, matcher, None, {})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns Detectron2's parts and the matcher that ``MODEL.ATSS.MATCHER.NAME`` names."""
        return {**super().from_config(cfg), "matcher": build_matcher(cfg)}
