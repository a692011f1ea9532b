"""configs/coco/ddod_R_50_FPN_1x.py on generated scenes: trains on a CPU in two minutes.

python train_net.py --config-file configs/demo/ddod_shapes_wide.py
"""

from ..coco.ddod_R_50_FPN_1x import model, train
from ..common.shapes_wide import dataloader, lr_multiplier, optimizer, shrink

shrink(model, train)
train.output_dir = "output/ddod_shapes_wide"
