"""Draws detections beside ground truth, and the curves of a training run."""

from ..plain.files import output_names, write_image
from .comparisons import save_comparisons, side_by_side
from .detections import draw_detections, draw_ground_truth
from .matching import match_detections
from .report import Report, draw_worst_images
from .training_curves import plot_training_curves, read_metrics

__all__ = [
    "Report",
    "draw_detections",
    "draw_ground_truth",
    "draw_worst_images",
    "match_detections",
    "output_names",
    "plot_training_curves",
    "read_metrics",
    "save_comparisons",
    "side_by_side",
    "write_image",
]
