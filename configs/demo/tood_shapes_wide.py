"""configs/coco/tood_R_50_FPN_1x.py on generated scenes: trains on a CPU in two minutes.

python train_net.py --config-file configs/demo/tood_shapes_wide.py
"""

from ..coco.tood_R_50_FPN_1x import model, train
from ..common.shapes_wide import dataloader, lr_multiplier, optimizer, shrink

shrink(model, train)
# Of 3 shared convolutions, as the towers of ATSS have 2 here and 4 in the paper, and TOOD has 6.
model.head.conv_dims = [64] * 3
model.matcher.warm_up_iterations = 133  # of 400
train.output_dir = "output/tood_shapes_wide"
