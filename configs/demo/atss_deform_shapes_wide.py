"""ATSS with the deformable convolutions of DDOD's head, on generated scenes.

python train_net.py --config-file configs/demo/atss_deform_shapes_wide.py
"""

from ..common.shapes_wide import dataloader, lr_multiplier, optimizer
from .atss_shapes_wide import model, train

model.head.deform_first_conv = True
train.output_dir = "output/atss_deform_shapes_wide"
