"""configs/coco/vfnet_R_50_FPN_1x.py on generated scenes: trains on a CPU in a few minutes.

python train_net.py --config-file configs/demo/vfnet_shapes_wide.py
"""

from ..coco.vfnet_R_50_FPN_1x import model, train
from ..common.shapes_wide import dataloader, lr_multiplier, optimizer, shrink

shrink(model, train)
train.output_dir = "output/vfnet_shapes_wide"
