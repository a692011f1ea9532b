"""Your own data set: neutral augmentation; replace the names with those that you register."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from atss_d2.data import BoxDatasetMapper, build_test_loader
from atss_d2.engine import build_train_loader
from atss_d2.engine.evaluation import COCOEvaluatorWithAR

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="my_train"),
        mapper=L(BoxDatasetMapper)(
            is_train=True,
            augmentations=[
                # A random shorter side between the two, so that an object is seen at several sizes.
                L(T.ResizeShortestEdge)(
                    short_edge_length=[640, 800], max_size=1333, sample_style="range"
                ),
                L(T.RandomFlip)(horizontal=True),
                L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
                L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
                L(T.RandomSaturation)(intensity_min=0.8, intensity_max=1.2),
            ],
            image_format="${model.input_format}",
        ),
        total_batch_size=8,
        num_workers=4,
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="my_val", filter_empty=False),
        mapper=L(BoxDatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="${model.input_format}",
        ),
        num_workers=4,
    ),
    evaluator=L(COCOEvaluatorWithAR)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
    ),
)
