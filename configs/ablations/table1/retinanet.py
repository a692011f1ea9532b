"""RetinaNet with one square anchor per location.

    python train_net.py --config-file configs/ablations/table1/retinanet.py --num-gpus 8

Quoted COCO val2017 box AP: 32.5 (paper, Table 1).
"""

from detectron2.config import LazyCall as L

from atss_d2 import IoUMatcher

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(IoUMatcher)()
model.head.update(norm="", with_centerness=False, with_scales=False)
# The authors divide the sum by 4 times the number of positives.
model.update(box_reg_loss_type="smooth_l1", box_reg_loss_weight=0.25)
