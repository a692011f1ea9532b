"""Shifted anchors, and the grids that anchors lie on."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)
from torch import Tensor, nn

from .geometry import box_centers


@ANCHOR_GENERATOR_REGISTRY.register()
class ShiftedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, shifted by the same number of pixels on every level.

    The authors' anchors include their corner pixels, so in continuous coordinates their centers are
    at (i + 0.5) x stride + 0.5: ``offset=0.5``, ``center_shift=0.5``. (``offset`` is in strides, so
    it is a different number of pixels on every level.)
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence,
        aspect_ratios: Sequence,
        strides: Sequence[int],
        offset: float = 0.5,
        center_shift: float = 0.0,
    ) -> None:
        """
        Args:
            sizes: As in ``DefaultAnchorGenerator``, as are the next three.
            aspect_ratios: Heights / widths.
            strides: Strides of the L levels.
            offset: Position of the first center, in strides.
            center_shift: Pixels added to x and y of every center.
        """
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)
        self.center_shift = center_shift
        self.cell_anchors = BufferList([anchors + center_shift for anchors in self.cell_anchors])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads Detectron2's own keys and ``MODEL.ATSS.ANCHOR_GENERATOR.CENTER_SHIFT``."""
        shift = cfg.MODEL.ATSS.ANCHOR_GENERATOR.CENTER_SHIFT
        return {**super().from_config(cfg, input_shape), "center_shift": shift}


def lays_out_cells(generator: nn.Module) -> bool:
    """Returns whether a generator repeats a cell of anchors at every location, like Detectron2."""
    kind = type(generator)
    return issubclass(kind, DefaultAnchorGenerator) and all(
        getattr(kind, name) is getattr(DefaultAnchorGenerator, name)
        for name in ("forward", "_grid_anchors")
    )


def makes_grids(generator: nn.Module) -> bool:
    """Returns whether the centers of a generator's anchors lie on a grid on each level.

    They do if the generator :func:`lays_out_cells` and the anchors of a cell share a center. The
    cells are read once per generator, for which the host may wait.
    """
    if not lays_out_cells(generator):
        return False
    if generator not in _HAS_CENTERED_CELLS:
        _HAS_CENTERED_CELLS[generator] = all(
            _is_centered(cell, stride)
            for cell, stride in zip(generator.cell_anchors, generator.strides)
        )
    return _HAS_CENTERED_CELLS[generator]


_HAS_CENTERED_CELLS: MutableMapping[nn.Module, bool] = weakref.WeakKeyDictionary()
# Maximum distance between the centers of the anchors of one location, in strides.
_MAX_DEVIATION = 1e-4


def _is_centered(cell: Tensor, stride: int) -> bool:
    """Returns whether the anchors (A, 4) of one location share a center."""
    centers = box_centers(cell)  # (A, 2)
    return cell.is_meta or bool((centers - centers[0]).abs().max() <= _MAX_DEVIATION * stride)


def grid_sizes(generator: nn.Module, features: Sequence[Tensor]) -> list[tuple[int, int]] | None:
    """Returns the sizes of the grids of a generator's anchors, without reading the anchors.

    Args:
        generator: The anchor generator.
        features: L feature maps (N, C, Hi, Wi).

    Returns:
        (Hi, Wi) of the L levels; None unless :func:`makes_grids`: a matcher then reads the anchors.
    """
    if not makes_grids(generator):
        return None
    return [tuple(feature.shape[-2:]) for feature in features]
