"""configs/coco/paa_R_50_FPN_1x.py on generated scenes: trains on a CPU in two minutes.

python train_net.py --config-file configs/demo/paa_shapes_wide.py
"""

from ..coco.paa_R_50_FPN_1x import model, train
from ..common.shapes_wide import dataloader, lr_multiplier, optimizer, shrink

shrink(model, train)
train.output_dir = "output/paa_shapes_wide"
