"""Generated scenes of several classes, with a block of DyHead in place of the head's towers.

python train_net.py --config-file configs/demo/atss_dyhead_mobilenetv2_shapes.py
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DyHead

from .atss_mobilenetv2_shapes import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(DyHead)(backbone=model.backbone, channels=96, num_blocks=1, size_divisibility=64)
model.head.update(conv_dims=[], pred_kernel_size=1)
train.output_dir = "output/shapes_dyhead"
