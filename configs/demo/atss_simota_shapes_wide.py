"""ATSS's detector with SimOTA on generated scenes: trains on a CPU in two minutes.

python train_net.py --config-file configs/demo/atss_simota_shapes_wide.py

The score learns the IoU of the predicted box; there is no centerness.
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import SimOTAMatcher, SoftTargetCriterion

from .atss_shapes_wide import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(SimOTAMatcher)(topk=10, center_radius=1.5)
model.head.with_centerness = False
model.criterion = L(SoftTargetCriterion)(box_weights="quality", normalized_by="quality")
train.output_dir = "output/atss_simota_shapes_wide"
