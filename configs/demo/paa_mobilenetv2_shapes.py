"""Generated scenes of several classes, with the rule, the losses and the voting of PAA.

python train_net.py --config-file configs/demo/paa_mobilenetv2_shapes.py
"""

from ..coco.paa_R_50_FPN_1x import model as _paa
from .atss_mobilenetv2_shapes import dataloader, lr_multiplier, model, optimizer, train

model.update({key: _paa[key] for key in ("matcher", "criterion", "score_voting")})
train.output_dir = "output/shapes_paa"
