"""DDOD without its deformable convolutions, which are slow on a CPU, on generated scenes.

python train_net.py --config-file configs/demo/ddod_plain_shapes_wide.py
"""

from ..common.shapes_wide import dataloader, lr_multiplier, optimizer
from .ddod_shapes_wide import model, train

model.head.deform_first_conv = False
train.output_dir = "output/ddod_plain_shapes_wide"
