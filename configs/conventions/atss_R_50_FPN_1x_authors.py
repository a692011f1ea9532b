r"""ATSS, ResNet-50-FPN, as the authors' release computes it: for its weights, or for training.

    python train_net.py --config-file configs/conventions/atss_R_50_FPN_1x_authors.py --eval-only \
        train.init_checkpoint=authors://ATSS_R_50_FPN_1x.pth

Quoted COCO val2017 box AP: 39.3 (authors' release).
"""

from atss_d2.checkpoint import apply_convention

from ..coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

apply_convention(model, convention="authors")
