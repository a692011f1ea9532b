"""configs/coco/atss_dyhead_R_50_FPN_1x.py on generated scenes, with one block instead of six.

python train_net.py --config-file configs/demo/atss_dyhead_shapes_wide.py
"""

from ..coco.atss_dyhead_R_50_FPN_1x import model, train
from ..common.shapes_wide import dataloader, lr_multiplier, optimizer, shrink

_dyhead = model.backbone
shrink(model, train)
_channels = model.backbone.out_channels
_dyhead.update(backbone=model.backbone, num_blocks=1, channels=_channels, size_divisibility=None)
model.backbone = _dyhead
model.head.conv_dims = []
train.output_dir = "output/atss_dyhead_shapes_wide"
