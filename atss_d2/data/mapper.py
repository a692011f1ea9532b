"""The dataset mapper: handles objects cut by a crop, ignore regions, and 16-bit gray images."""

import copy
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode, Instances

from .errors import DataError
from .images import read_image

__all__ = ["BoxDatasetMapper"]


class BoxDatasetMapper(DatasetMapper):
    """Detectron2's `DatasetMapper` for boxes, with two rules about boxes that mislead a detector.

    Images are read by :func:`~atss_d2.data.images.read_image`, so gray images of more than 8 bits
    keep their contrast; Detectron2 turns them white.

    An annotation with `iscrowd` or a true key `ignore` is an ignore region: it contains objects,
    but they are not labeled individually. It never becomes an object. `DatasetMapper` drops
    `iscrowd` annotations, so that their unlabeled objects are trained as background, and does not
    know `ignore`.

    Args:
        is_train: As in `DatasetMapper`.
        min_visible: Minimum fraction of an object's augmented area that must be inside the
            augmented image, in [0, 1]. A crop leaves only slivers of other objects, which teach
            wrong boxes; these objects are dropped, or become ignore regions with ``keep_ignored``.
        keep_ignored: Keep ignore regions in ``instances``, after the objects, and mark them in a
            field ``gt_ignore`` (M,) bool, which every training image then has. Use it only with
            models that know this field, such as ATSS; others train on the regions as objects.
        **kwargs: The other arguments of `DatasetMapper`. By default, and for annotations without
            the key `ignore`, the result is exactly that of `DatasetMapper`.

    Raises:
        ValueError: ``min_visible`` is outside [0, 1], or ``keep_ignored`` is combined with masks or
            keypoints.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        min_visible: float = 0.0,
        keep_ignored: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible must be in [0, 1], got {min_visible}")
        super().__init__(is_train, **kwargs)
        if keep_ignored and (self.use_instance_mask or self.use_keypoint):
            raise ValueError(
                "keep_ignored=True keeps boxes only, got "
                f"use_instance_mask={self.use_instance_mask} and use_keypoint={self.use_keypoint}: "
                "set both to False"
            )
        self.min_visible = min_visible
        self.keep_ignored = keep_ignored

    def __call__(self, dataset_dict: dict) -> dict:
        """Reads and augments the image of a dict from `DatasetCatalog`.

        Returns:
            A dict like that of `DatasetMapper`.

        Raises:
            DataError: The image cannot be read, or its size differs from that in its annotations.
        """
        dataset_dict = copy.deepcopy(dataset_dict)  # the catalog's dict must not change
        image = self._read(dataset_dict)
        sem_seg_file = dataset_dict.pop("sem_seg_file_name", None)
        sem_seg = None if sem_seg_file is None else read_image(sem_seg_file, "L").squeeze(2)
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        dataset_dict["image"] = _to_tensor(aug_input.image)
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        image_shape = aug_input.image.shape[:2]
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _read(self, dataset_dict: dict) -> np.ndarray:
        try:
            image = read_image(dataset_dict["file_name"], self.image_format)
            utils.check_image_size(dataset_dict, image)
        except Exception as error:  # decoders raise any type
            name = f"the image '{dataset_dict.get('file_name')}'"
            if "image_id" in dataset_dict:
                name += f" (image_id {dataset_dict['image_id']})"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{name} cannot be used: {reason}") from error
        return image

    def _transform_annotations(
        self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        annotations = dataset_dict.pop("annotations")
        # Must run before the base class clips the boxes, which loses their whole area.
        is_visible = [True] * len(annotations)
        if annotations and self.min_visible > 0:
            fractions = _visible_fractions(annotations, transforms, image_shape)
            is_visible = fractions >= self.min_visible
        objects, regions = [], []
        for annotation, visible in zip(annotations, is_visible):
            is_object = visible and not _is_ignored(annotation)
            (objects if is_object else regions).append(annotation)
        instances = self._to_instances(objects, transforms, image_shape)
        if self.keep_ignored:
            # The base class always drops iscrowd annotations.
            regions = [{**annotation, "iscrowd": 0} for annotation in regions]
            ignored = self._to_instances(regions, transforms, image_shape)
            instances.gt_ignore = torch.zeros(len(instances), dtype=torch.bool)
            ignored.gt_ignore = torch.ones(len(ignored), dtype=torch.bool)
            instances = Instances.cat([instances, ignored])
        dataset_dict["instances"] = instances

    def _to_instances(
        self, annotations: list[dict], transforms: TransformList, image_shape: tuple[int, int]
    ) -> Instances:
        """Transforms and clips annotations as `DatasetMapper` does, and drops empty boxes."""
        dataset_dict = {"annotations": annotations}
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict["instances"]


def unused_annotation_keys(mapper: Any) -> list[str]:
    """Returns keys of annotations that a mapper drops unread, so that no process must hold them.

    Mappers of other classes may read anything.
    """
    if type(mapper) not in (DatasetMapper, BoxDatasetMapper):
        return []
    uses = {"segmentation": mapper.use_instance_mask, "keypoints": mapper.use_keypoint}
    return [key for key, is_used in uses.items() if not is_used]


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Converts an image (H, W, C) to a tensor (C, H, W)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _is_ignored(annotation: dict) -> bool:
    # Detectron2 tests iscrowd in the same way.
    return annotation.get("iscrowd", 0) != 0 or bool(annotation.get("ignore", False))


def _visible_fractions(
    annotations: list[dict], transforms: TransformList, image_shape: tuple[int, int]
) -> np.ndarray:
    """Returns the fraction (M,) of each transformed box inside the image; 0 for an empty box."""
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    boxes = transforms.apply_box(np.array(boxes, np.float64))  # (M, 4)
    height, width = image_shape
    inside = boxes.clip(0, (width, height, width, height))
    visible, whole = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (inside, boxes))
    return np.divide(visible, whole, out=np.zeros_like(whole), where=whole > 0)
