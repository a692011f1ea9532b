"""The losses on the test set, computed without any trace in the training."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Mapping

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from ..config import ConfigError
from ..modeling.criterion.positives import local_normalizers
from ..modeling.training_log import training_iteration
from .datasets import instantiate_test_loader
from .fast_dev_run import shortened
from .models import autocast_dtype, is_enabled
from .rng import preserved_rng

logger = logging.getLogger(__name__)

# Keys of a mapper for annotations that losses need.
_KEPT = (
    *("keep_ignored", "use_instance_mask", "instance_mask_format"),
    *("use_keypoint", "keypoint_hflip_indices"),
)
# The detector, and what in it asks whether it is in training to return losses or what these need.
# What it contains stays in evaluation mode.
_PARTS_WITH_LOSSES = (
    *("", "head", "proposal_generator", "sem_seg_head"),
    *("roi_heads", "roi_heads.mask_head", "roi_heads.keypoint_head"),
)


def validation_losses(cfg: DictConfig, model: nn.Module) -> dict[str, float]:
    """Computes the losses on ``dataloader.test``, with its augmentations and annotations.

    All processes must call this. It works on a copy of the model whose norms and other layers are
    in evaluation mode, so that running statistics, state of the losses and averages stay.

    Args:
        cfg: A config with Detectron2's five keys. It is not changed.
        model: The model, in evaluation mode or not.

    Returns:
        Means over all images, on the first process: "total" and each loss without its prefix
        "loss_". Empty on the others. Each image's losses are normalized by its own positives, so
        they do not depend on the number of processes.

    Raises:
        ConfigError: The test set has no annotations, its mapper cannot keep them, or the model
            returns no losses.
    """
    loader = shortened(cfg, instantiate_test_loader(_with_annotations(cfg)))
    model = _copy_for_losses(model)
    device_type = next(model.parameters()).device.type
    dtype = autocast_dtype(cfg) if is_enabled(cfg, "amp") else None
    sums: dict[str, torch.Tensor | float] = defaultdict(float)
    num_images = 0
    # What the model logs, it logs about training. Outside training, no warm-up goes on.
    iteration = training_iteration()
    storage = EventStorage(cfg.train.max_iter if iteration is None else iteration)
    with preserved_rng(), storage, local_normalizers(), torch.no_grad():
        for batch in loader:
            for image in batch:
                if "instances" not in image:
                    raise ConfigError(
                        f"train.validation_loss needs annotations, and '{image['file_name']}' of "
                        "the test set has none: set train.validation_loss.enabled=false"
                    )
                # What an R-CNN samples then depends neither on the iteration nor on the number of
                # processes.
                torch.manual_seed(0)
                with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
                    losses = model([image])
                if not losses or not isinstance(losses, Mapping):
                    raise ConfigError(
                        f"train.validation_loss needs a model that returns losses, and "
                        f"{type(model).__name__} returns none: set "
                        "train.validation_loss.enabled=false"
                    )
                for name, loss in losses.items():
                    sums[name] += loss.double()
                num_images += 1
    parts = comm.gather(({name: float(x) for name, x in sums.items()}, num_images))
    num_images = sum(num for _, num in parts)
    if not comm.is_main_process() or not num_images:
        return {}
    names = dict.fromkeys(name for part, _ in parts for name in part)
    means = {
        name.removeprefix("loss_"): sum(part.get(name, 0.0) for part, _ in parts) / num_images
        for name in names
    }
    means = {"total": sum(means.values()), **means}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
    logger.info(f"Validation loss: {shown}")
    return means


def _with_annotations(cfg: DictConfig) -> DictConfig:
    """Returns a config of the test loader whose mapper keeps the annotations."""
    cfg = copy.deepcopy(cfg)  # which its interpolations need
    mapper = cfg.dataloader.test.get("mapper")
    if not isinstance(mapper, Mapping) or "is_train" not in mapper:
        raise ConfigError(
            "train.validation_loss needs dataloader.test.mapper with the key is_train, as in "
            "configs/common/data/coco.py: a mapper that keeps annotations"
        )
    mapper.is_train = True
    of_training = cfg.dataloader.train.get("mapper")
    if isinstance(of_training, Mapping):
        mapper.update({key: of_training[key] for key in _KEPT if key in of_training})
    return cfg.dataloader.test


def _copy_for_losses(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        if name in _PARTS_WITH_LOSSES:
            module.training = True
    return model
