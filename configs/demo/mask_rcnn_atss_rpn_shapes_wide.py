"""configs/rcnn/mask_rcnn_atss_rpn_R_50_FPN_1x.py on generated scenes, for a CPU.

python train_net.py --config-file configs/demo/mask_rcnn_atss_rpn_shapes_wide.py
"""

from ..common.rcnn_shapes_wide import dataloader, lr_multiplier, optimizer, shrink, with_masks
from ..rcnn.mask_rcnn_atss_rpn_R_50_FPN_1x import model, train

shrink(model, train)
with_masks(dataloader)
train.output_dir = "output/mask_rcnn_atss_rpn_shapes_wide"
