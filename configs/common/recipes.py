"""Settings of other implementations, for a config with their weights.

    from ..coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
    from ..common.recipes import apply_recipe

    apply_recipe(model, recipe="mmdet")

The recipes are "authors" and "mmdet"; docs/checkpoints.md says what they set.
"""

from atss_d2.checkpoint import apply_recipe
