"""Generated scenes of several classes: a quick check that needs no download.

python train_net.py --config-file configs/demo/atss_mobilenetv2_shapes.py
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .atss_mobilenetv2_trees import dataloader, lr_multiplier, model, optimizer, train

model.num_classes = 6
dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations = []
train.output_dir = "output/shapes"
