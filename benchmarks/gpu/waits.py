"""Where the host waits for the device."""

from __future__ import annotations

import warnings
from collections import Counter

import torch

from .. import scenes
from ..cases.losses import training_pass
from ..models import ATSS, build
from ..pretend_gpu import count, pretend, pretended_gpu
from .registry import Environment, check
from .small import RULES

_NUM_CLASSES = 8


@check("the host does not wait in labels, losses and their gradients, with any rule", seconds=20)
def no_waits(env: Environment) -> str:
    """``torch.cuda.set_sync_debug_mode("error")`` raises where the host would wait."""
    size = env.choose(scenes.IMAGE_SIZE, (64, 96))
    for name, rule in RULES.items():
        model = build(ATSS, num_classes=_NUM_CLASSES).to(env.device).train()
        model.matcher = rule()
        run, _ = training_pass(model, size, 2, 10, pretended=not env.is_cuda)
        if not env.is_cuda:
            _, waits = count(run)
            assert not waits, f"{name} waits for {dict(waits)}"
            continue
        run()  # fills caches
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            raise AssertionError(f"{name}: {error}") from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"no wait with {len(RULES)} rules"


@check("where inference waits", seconds=15)
def inference_waits(env: Environment) -> str:
    """Post-processing waits to learn how many boxes there are, at most four times an image."""
    size = env.choose(scenes.IMAGE_SIZE, (64, 96))
    model = build(ATSS, num_classes=_NUM_CLASSES).to(env.device).eval()
    made = scenes.predictions(size, _NUM_CLASSES)
    deltas = [
        model.box2box_transform.get_deltas(a.tensor, boxes)
        for a, boxes in zip(scenes.anchors(size), made.boxes)
    ]
    parts = (made.logits, deltas, [level[:, None] for level in made.centerness])
    maps = [scenes.as_maps(part, size) for part in parts]
    features = scenes.feature_maps(size)
    images = type("Images", (), {"image_sizes": [size]})

    def move(x: torch.Tensor) -> torch.Tensor:
        return x.to(env.device) if env.is_cuda else pretend(x)

    maps, features = [[move(x) for x in part] for part in maps], [move(x) for x in features]
    if not env.is_cuda:
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, pretend(buffer))
        with pretended_gpu():
            anchors = model.anchor_generator(features)
        model.anchor_generator.forward = lambda features: anchors

    @torch.no_grad()
    def run() -> None:
        model.forward_inference(images, features, maps)

    found = Counter(_waits_on_cuda(run)) if env.is_cuda else count(run)[1]
    assert found.total() <= 4, f"waits for {dict(found)}"
    words = ", ".join(f"{name} ({num})" for name, num in found.most_common())
    return f"{found.total()} waits an image: {words or 'none'}"


def _waits_on_cuda(run) -> list[str]:
    """Returns the place of every wait, as torch warns of them."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [x for x in found if "synchroniz" in str(x.message)]
    return [f"{x.filename.rpartition('/')[2]}:{x.lineno}" for x in found]
