"""ATSS's detector with RTMDet's dynamic soft labels on generated scenes, on a CPU in two minutes.

python train_net.py --config-file configs/demo/atss_dsla_shapes_wide.py

The score learns the IoU of the predicted box; there is no centerness.
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DynamicSoftLabelMatcher

from .atss_simota_shapes_wide import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(DynamicSoftLabelMatcher)(topk=13)
train.output_dir = "output/atss_dsla_shapes_wide"
