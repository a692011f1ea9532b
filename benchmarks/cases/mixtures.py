"""Mixtures of two Gaussians in PAA's sample selection: all boxes at once, or one after the other.

scikit-learn takes part if it is installed; a folder made by ``pip install --target FOLDER
scikit-learn`` in PYTHONPATH is enough.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from atss_d2.modeling.gaussian_mixture import fit_two_gaussians
from atss_d2.modeling.matchers import PAAMatcher
from atss_d2.modeling.nouns import DecodedPredictions, Scene
from atss_d2.modeling.scene import build_scene

from .. import scenes
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Mixtures of PAA"
CASE = "mixtures"
OURS = "fit_two_gaussians"
BOX_LOOP = "fit_two_gaussians, box by box"
RULE = "PAAMatcher, all of the selection"
SCIKIT_LEARN = "scikit-learn, box by box"
NO_SCIKIT_LEARN = f"{SCIKIT_LEARN}: skipped, sklearn is not installed."
_TARGET = 50.0
_NUM_IMAGES, _NUM_CLASSES = 2, 80


def steps(settings: Settings) -> list[Step]:
    """Returns steps by number of boxes."""
    numbers = settings.choose((10, 100), (3,))
    size = settings.choose(scenes.IMAGE_SIZE, (64, 96))
    return [
        Step(f"{num} boxes an image", functools.partial(_measure, settings, size, num))
        for num in numbers
    ]


def _scene(size: tuple[int, int], num_boxes: int, device: torch.device) -> Scene:
    """Returns images with predictions like those of a trained detector, and their objects."""
    found = [
        scenes.predictions(size, _NUM_CLASSES, num_boxes, seed).to(device)
        for seed in range(_NUM_IMAGES)
    ]
    predictions = DecodedPredictions(
        torch.stack([torch.cat(x.logits) for x in found]),
        torch.stack([torch.cat(x.boxes) for x in found]),
    )
    truth = scenes.ground_truth(_NUM_IMAGES, num_boxes, size, _NUM_CLASSES)
    boxes = [x.gt_boxes.to(device) for x in truth]
    classes = torch.cat([x.gt_classes for x in truth]).to(device)
    anchors = [x.to(device) for x in scenes.anchors(size)]
    return build_scene(anchors, boxes)._replace(classes=classes, predictions=predictions)


def _by_scikit_learn(costs: Tensor, mask: Tensor) -> Tensor:
    """Fits a mixture to the costs of each box on the host, as PAA's public implementations do."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    densities = torch.zeros(costs.shape, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i, (row, is_cost) in enumerate(zip(costs.cpu(), mask.cpu())):
            values = row[is_cost].double()[:, None].numpy()
            mixture = GaussianMixture(
                2,
                weights_init=[0.5, 0.5],
                means_init=[values.min(axis=0), values.max(axis=0)],
                precisions_init=[[[1.0]], [[1.0]]],
            )
            mixture.fit(values)
            mixture.predict(values)
            densities[i, is_cost] = torch.from_numpy(mixture.score_samples(values))
    return densities


def _by_boxes(costs: Tensor, mask: Tensor) -> Tensor:
    rows = zip(costs.split(1), mask.split(1))
    return torch.cat([fit_two_gaussians(row, is_cost).log_density for row, is_cost in rows])


def _measure(settings: Settings, size: tuple[int, int], num_boxes: int) -> list[Measurement]:
    scene = _scene(size, num_boxes, settings.torch_device)
    matcher = PAAMatcher()
    costs = _costs(matcher, scene)
    mask = costs < torch.inf
    is_pair = mask.sum(dim=1) > 1  # scikit-learn refuses single values
    costs, mask = costs[is_pair], mask[is_pair]
    ways: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: fit_two_gaussians(costs, mask).log_density,
        BOX_LOOP: lambda: _by_boxes(costs, mask),
    }
    has_scikit_learn = importlib.util.find_spec("sklearn") is not None
    if has_scikit_learn:
        ways[SCIKIT_LEARN] = lambda: _by_scikit_learn(costs, mask)
    expected = ways[OURS]()[mask].cpu()
    for way in ways.values():
        torch.testing.assert_close(way()[mask].cpu(), expected, rtol=0, atol=1e-5)
    ways[RULE] = lambda: matcher.assign(scene).matched_idxs
    targets = ()
    if has_scikit_learn and num_boxes == 100:
        targets = (Target(_TARGET, SCIKIT_LEARN),)
    return [
        Measurement(
            case=CASE,
            scene=f"{_NUM_IMAGES} x {size[0]} x {size[1]}, {num_boxes} boxes an image",
            quantity="time",
            unit="s",
            samples=race([Contestant(name, way) for name, way in ways.items()], settings),
            ours=OURS,
            targets=targets,
            notes=(
                f"{num_boxes} boxes: {len(costs)} mixtures of {mask.sum().item()} costs; all ways "
                "agree within 1e-5.",
                *(() if has_scikit_learn else (NO_SCIKIT_LEARN,)),
            ),
        )
    ]


def _costs(matcher: PAAMatcher, scene: Scene) -> Tensor:
    """Returns the costs (M, C) of the candidates of all boxes, lowest first, then infinity."""
    matched = matcher.match_by_iou(scene)
    rows = torch.arange(matched.numel(), device=matched.device)
    return matcher.candidates(scene, matched, rows, matcher.costs(scene, matched, rows))[1]
