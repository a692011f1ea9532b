"""Draws ground truth beside detections: objects found, objects missed, false alarms."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..data.images import read_image
from ..plain.drawing import Color
from ..plain.files import output_names, write_image
from .detections import draw_detections, draw_ground_truth, parse_annotations
from .matching import match_detections

FOUND: Color = (0.25, 1.0, 0.25)
FALSE_ALARM: Color = (1.0, 0.6, 0.0)
MISSED: Color = (1.0, 0.25, 0.3)
NEUTRAL: Color = (0.85, 0.85, 0.85)  # crowd regions and detections in them: not counted
_TEXT: Color = (1.0, 1.0, 1.0)

# Longer side of one panel, pixels: large enough for small objects, small enough for a screen.
_MIN_PANEL_SIDE, _MAX_PANEL_SIDE = 800, 1280
_IOU_THRESH = 0.5

Caption = list[tuple[str, Color]]


def side_by_side(
    image: np.ndarray,
    annotations: Sequence[dict],
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    score_thresh: float = 0.5,
    titles: tuple[str, str] = ("ground truth", "detections"),
) -> np.ndarray:
    """Draws ground truth on the left, detections on the right, and a line of counts above.

    A box is found (green) if a detection of its class matches it with an IoU of at least 0.5, as in
    AP50; other boxes are missed (red), and other detections are false alarms (orange). Crowd
    regions and detections in them are gray and not counted.

    Args:
        image: (H, W, 3) uint8, BGR.
        annotations: ``"annotations"`` of a dict from Detectron2's ``DatasetCatalog``.
        instances: Detections in pixels of ``image``.
        class_names: Names by class, for the labels.
        score_thresh: Detections below this score are neither drawn nor counted.
        titles: First words of the two captions.

    Returns:
        uint8, BGR: two panels whose longer side is 800 to 1280 pixels, below a caption.
    """
    instances = instances.to("cpu")
    instances = instances[instances.scores >= score_thresh]
    gt_boxes, gt_classes, is_crowd = parse_annotations(annotations)
    matches = match_detections(instances, gt_boxes, gt_classes, is_crowd, iou_thresh=_IOU_THRESH)

    longer_side = max(image.shape[:2])
    scale = float(np.clip(longer_side, _MIN_PANEL_SIDE, _MAX_PANEL_SIDE)) / longer_side
    left = draw_ground_truth(
        image,
        annotations,
        class_names=class_names,
        colors=_choose(matches.is_found, is_crowd, MISSED),
        scale=scale,
    )
    right = draw_detections(
        image,
        instances,
        class_names=class_names,
        colors=_choose(matches.is_hit, matches.is_ignored, FALSE_ALARM),
        scale=scale,
    )
    captions = _captions(titles, matches, is_crowd, score_thresh)
    gap = np.full((left.shape[0], 6, 3), 255, dtype=np.uint8)
    pictures = np.concatenate([left, gap, right], axis=1)
    bar = _caption_bar(captions, left.shape[1], pictures.shape[1])
    return np.concatenate([bar, pictures])


def save_comparisons(
    dataset_name: str,
    results: str | os.PathLike | Sequence[dict],
    output_dir: str | os.PathLike,
    *,
    score_thresh: float = 0.5,
    max_images: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Writes a :func:`side_by_side` picture for each image of a registered data set.

    Args:
        dataset_name: Name in Detectron2's ``DatasetCatalog``.
        results: Detections in COCO format, or the JSON file that ``COCOEvaluator`` writes:
            ``inference/coco_instances_results.json``.
        output_dir: Folder for one PNG file per image, named after it.
        score_thresh: Detections below this score are left out.
        max_images: Draw only the first images of the data set, up to this number; None for all.
        progress: Whether to show a progress bar, if standard error is a terminal.

    Returns:
        The files, in the order of the data set.

    Raises:
        ValueError: The results are from another data set, or ``max_images`` is negative.
    """
    if max_images is not None and max_images < 0:
        raise ValueError(f"max_images must be >= 0 or None, got {max_images}")
    images = load_results(dataset_name, results)[:max_images]
    names = output_names([image.file_name for image in images])
    paths = []
    for image, name in tqdm(
        zip(images, names),
        total=len(images),
        desc=f"drawing {dataset_name}",
        unit="image",
        disable=None if progress else True,
    ):
        paths.append(Path(output_dir, name).with_suffix(".png"))
        image.draw(paths[-1], score_thresh=score_thresh)
    return paths


class ImageResults(NamedTuple):
    """An image of a data set with its ground truth and detections."""

    dataset_dict: dict
    results: list[dict]
    metadata: Metadata

    @property
    def file_name(self) -> str:
        return self.dataset_dict["file_name"]

    @property
    def annotations(self) -> list[dict]:
        return self.dataset_dict.get("annotations", [])

    def instances(self) -> Instances:
        """Returns the detections; their image size is (0, 0) if the data set lacks it."""
        size = self.dataset_dict.get("height", 0), self.dataset_dict.get("width", 0)
        return _to_instances(self.results, size, self.metadata)

    def draw(self, path: Path, *, score_thresh: float) -> None:
        """Writes the :func:`side_by_side` picture of the image."""
        image = read_image(self.file_name)
        picture = side_by_side(
            image,
            self.annotations,
            _to_instances(self.results, image.shape[:2], self.metadata),
            class_names=self.metadata.get("thing_classes"),
            score_thresh=score_thresh,
        )
        write_image(path, picture)


def load_results(
    dataset_name: str, results: str | os.PathLike | Sequence[dict]
) -> list[ImageResults]:
    """Assigns detections in COCO format to the images of a registered data set.

    Raises:
        ValueError: The results are from another data set.
    """
    if isinstance(results, str | os.PathLike):
        with PathManager.open(os.fspath(results)) as f:
            results = json.load(f)
    dataset = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    results_by_image = defaultdict(list)
    for result in results:
        results_by_image[result["image_id"]].append(result)
    unknown = results_by_image.keys() - {x["image_id"] for x in dataset}
    if unknown:
        raise ValueError(
            f"{len(unknown)} images of the results are not in '{dataset_name}', such as image_id "
            f"{next(iter(unknown))!r}: were these results computed on another data set?"
        )
    return [ImageResults(x, results_by_image[x["image_id"]], metadata) for x in dataset]


def _to_instances(
    results: list[dict], image_size: tuple[int, int], metadata: Metadata
) -> Instances:
    """Converts COCO-format results of one image to Instances."""
    contiguous_ids = metadata.get("thing_dataset_id_to_contiguous_id")
    classes = [x["category_id"] for x in results]
    if contiguous_ids is not None:
        unknown = set(classes) - contiguous_ids.keys()
        if unknown:
            raise ValueError(
                f"category_id {unknown.pop()} of the results is not in '{metadata.name}', which "
                f"has {sorted(contiguous_ids)}: were they computed on another data set?"
            )
        classes = [contiguous_ids[c] for c in classes]
    boxes = torch.tensor([x["bbox"] for x in results], dtype=torch.float32).reshape(-1, 4)
    return Instances(
        image_size,
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor([x["score"] for x in results], dtype=torch.float32),
    )


def _choose(is_good: torch.Tensor, is_neutral: torch.Tensor, bad: Color) -> list[Color]:
    return [
        NEUTRAL if neutral else FOUND if good else bad
        for good, neutral in zip(is_good.tolist(), is_neutral.tolist())
    ]


def _captions(titles, matches, is_crowd, score_thresh: float) -> tuple[Caption, Caption]:
    num_boxes, num_found = int((~is_crowd).sum()), int(matches.is_found.sum())
    num_hits, num_false = int(matches.is_hit.sum()), int(matches.is_false_alarm.sum())
    left = [
        (f"{titles[0]}: {num_boxes}  ", _TEXT),
        (f"{num_found} found  ", FOUND),
        (f"{num_boxes - num_found} missed", MISSED),
    ]
    right = [
        (f"{titles[1]}, score >= {score_thresh:g}: {len(matches.is_hit)}  ", _TEXT),
        (f"{num_hits} right  ", FOUND),
        (f"{num_false} false", FALSE_ALARM),
    ]
    num_crowds, num_ignored = int(is_crowd.sum()), int(matches.is_ignored.sum())
    if num_crowds:
        left.append((f"  {num_crowds} crowd", NEUTRAL))
    if num_ignored:
        right.append((f"  {num_ignored} in crowd", NEUTRAL))
    return left, right


def _caption_bar(captions: tuple[Caption, Caption], panel_width: int, width: int) -> np.ndarray:
    """Draws a dark bar (h, width, 3) uint8, BGR, with one caption above each panel."""
    margin = 8
    # Matplotlib includes this font; Pillow alone may lack one of this size.
    font_file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for size in range(17, 6, -1):  # the largest that fits
        font = ImageFont.truetype(font_file, size)
        longest = max(sum(font.getlength(text) for text, _ in caption) for caption in captions)
        if longest + 2 * margin <= panel_width:
            break
    bar = Image.new("RGB", (width, 2 * size + 2), (24, 24, 24))
    draw = ImageDraw.Draw(bar)
    for caption, x in zip(captions, (margin, width - panel_width + margin)):
        for text, color in caption:
            fill = tuple(round(255 * c) for c in color)
            draw.text((x, bar.height / 2), text, font=font, fill=fill, anchor="lm")
            x += font.getlength(text)
    return np.asarray(bar)[:, :, ::-1]
