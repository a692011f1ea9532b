"""Turns any config of configs/ablations/ into a small experiment on photographs of tree crowns.

Uses the model and schedule of ablation_shapes.py, and the demo's data with smaller crops. Crowns
differ little in size (10 to 100 px), so the levels of the pyramid can hardly be told apart here.
"""

from ..demo.atss_mobilenetv2_trees import dataloader
from .ablation_shapes import lr_multiplier, model, optimizer, train

model.num_classes = 1
model.test_nms_thresh = 0.45  # crowns overlap less than COCO's objects

# Enlarged 1.5 times, like the demo's crops of 256 px.
_augmentations = dataloader.train.mapper.augmentations
_augmentations[0].update(min_size=int(192 / 1.3), max_size=int(192 * 1.3))
_augmentations[-1].shape = [288, 288]
dataloader.train.total_batch_size = 2
