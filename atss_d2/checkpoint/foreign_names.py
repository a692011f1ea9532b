"""Maps parameter names in the checkpoints of other implementations to ours.

Both implementations build a ResNet whose blocks have torchvision's names, an FPN and two towers.
mmdetection has several detectors of these parts, :mod:`atss_d2.checkpoint.mmdet_heads`. This module
handles only names; :mod:`atss_d2.checkpoint.conversion` handles values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from .mmdet_heads import MMDET_HEADS

Rule = tuple[str, str | Callable[[re.Match], str]]

_STEM = "backbone.bottom_up.stem.conv1"
# In a ResNet block: theirs -> ours. The offset predictor of a deformable convolution is called
# conv2.offset (authors), conv2.conv_offset (mmcv) or conv2_offset (early mmdetection).
_IN_BLOCK = {
    r"conv([123])": r"conv\3",
    r"bn([123])": r"conv\3.norm",
    r"downsample\.0": "shortcut",
    r"downsample\.1": "shortcut.norm",
    r"conv2\.conv": "conv2",
    r"(?:conv2\.offset|conv2\.conv_offset|conv2_offset)": "conv2_offset",
}


def _resnet_rules(stem: str, stages: str) -> list[Rule]:
    def rule(theirs: str, ours: str) -> Rule:
        return (
            rf"{stages}layer([1-4])\.(\d+)\.{theirs}",
            lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.{m.expand(ours)}",
        )

    blocks = [rule(theirs, ours) for theirs, ours in _IN_BLOCK.items()]
    return [(rf"{stem}conv1", _STEM), (rf"{stem}bn1", f"{_STEM}.norm"), *blocks]


def _tower_rule(theirs: str, ours: str, place: int) -> Rule:
    """Maps mmdetection's numbered tower blocks to ours, which are three consecutive modules."""
    name = {"cls": "cls_subnet", "reg": "bbox_subnet"}
    return (
        rf"bbox_head\.(cls|reg)_convs\.(\d+)\.{theirs}",
        lambda m: f"head.{name[m[1]]}.{3 * int(m[2]) + place}{ours}",
    )


_DYHEAD = r"neck\.1\.dyhead_blocks\.(\d+)\."
# Where there is DyHead, it is our backbone, and has the FPN and its ResNet as a part.
_AROUND, _WITHIN = "backbone.blocks.", "backbone.backbone."
# In a block of DyHead: theirs -> ours.
_IN_DYHEAD = {
    r"spatial_conv_offset": "offset",
    r"spatial_conv_mid\.conv": "same",
    r"spatial_conv_mid\.norm": "same.norm",
    r"spatial_conv_low\.conv": "lower",
    r"spatial_conv_low\.norm": "lower.norm",
    r"spatial_conv_high\.conv": "upper",
    r"spatial_conv_high\.norm": "upper.norm",
    r"scale_attn_module\.1": "level_weight",
    r"task_attn_module\.conv1\.conv": "activation.squeeze",
    r"task_attn_module\.conv2\.conv": "activation.expand",
}


# The first rule that matches a module's name gives ours. A module's name is a key without its last
# part (weight, bias, running_mean, running_var, scale), which stays.
_RULES: Mapping[str, list[Rule]] = {
    "authors": [
        (r"rpn\.head\.cls_tower\.(.+)", r"head.cls_subnet.\1"),
        (r"rpn\.head\.bbox_tower\.(.+)", r"head.bbox_subnet.\1"),
        (r"rpn\.head\.cls_logits", "head.cls_score"),
        (r"rpn\.head\.bbox_pred", "head.bbox_pred"),
        (r"rpn\.head\.centerness", "head.ctrness"),
        (r"rpn\.head\.scales\.(\d+)", r"head.scales.\1"),
        # They count from C2, which is 1 and which their FPN leaves out: C3 is 2.
        (r"backbone\.fpn\.fpn_inner([234])", lambda m: f"backbone.fpn_lateral{int(m[1]) + 1}"),
        (r"backbone\.fpn\.fpn_layer([234])", lambda m: f"backbone.fpn_output{int(m[1]) + 1}"),
        (r"backbone\.fpn\.top_blocks\.(p6|p7)", r"backbone.top_block.\1"),
        *_resnet_rules(stem=r"backbone\.body\.stem\.", stages=r"backbone\.body\."),
    ],
    "mmdet": [
        _tower_rule("conv", "", 0),
        _tower_rule(r"conv\.conv_offset", ".offset", 0),
        _tower_rule("gn", "", 1),
        (r"bbox_head\.scales\.(\d+)", r"head.scales.\1"),
        # C3, C4 and C5 are 0, 1 and 2; then come the convolutions that make P6 and P7.
        (
            r"neck\.(?:0\.)?lateral_convs\.([012])\.conv",
            lambda m: f"backbone.fpn_lateral{int(m[1]) + 3}",
        ),
        (
            r"neck\.(?:0\.)?fpn_convs\.([012])\.conv",
            lambda m: f"backbone.fpn_output{int(m[1]) + 3}",
        ),
        (
            r"neck\.(?:0\.)?fpn_convs\.([34])\.conv",
            lambda m: f"backbone.top_block.p{int(m[1]) + 3}",
        ),
        *((_DYHEAD + x, rf"{_AROUND}\1.{ours}") for x, ours in _IN_DYHEAD.items()),
        *_resnet_rules(stem=r"backbone\.", stages=r"backbone\."),
    ],
}
# Keys of a file that are not weights: pattern of the key -> why it is skipped.
_NO_WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "authors": {r"rpn\.(anchor_generator|box_coder)\..+": "computed anew"},
    "mmdet": {
        r".+\.num_batches_tracked": "a counter of the training",
        r"data_preprocessor\.(mean|std)": "pixel_mean and pixel_std of the convention",
        r"bbox_head\.(anchor|prior)_generator\..+": "computed anew",
    },
}
# Prefix of a key that only this implementation has.
_SIGNS = {"authors": "rpn.head.", "mmdet": "bbox_head."}


def recognize(keys: Iterable[str]) -> str | None:
    """Returns the convention that uses these names, or None."""
    for convention, sign in _SIGNS.items():
        if any(key.startswith(sign) for key in keys):
            return convention
    return None


def reason_to_leave(key: str, convention: str, detector: str = "atss") -> str | None:
    """Returns why a key is skipped; None if it may be a weight."""
    for pattern, reason in {**_NO_WEIGHTS[convention], **MMDET_HEADS[detector].left}.items():
        if re.fullmatch(pattern, key):
            return reason
    return None


def our_names(
    keys: Iterable[str], convention: str, detector: str = "atss"
) -> dict[str, str | None]:
    """Returns our names for the keys of another implementation's state dict; None if there is none.

    Args:
        keys: All weights of the state dict, as other keys tell whether a convolution is deformable.
        convention: Convention of the keys.
        detector: Key of :data:`MMDET_HEADS`.
    """
    rules = _RULES[convention]
    if convention == "mmdet":
        rules = [*MMDET_HEADS[detector].modules.items(), *rules]
    names = {key: _our_name(key, rules) for key in keys}
    # mmcv's deformable convolution has its weight itself; ours has it in a part called conv.
    packs = {name.removesuffix(".offset.weight") for name in names.values() if _is_offset(name)}
    for key, name in names.items():
        module, _, parameter = (name or "").rpartition(".")
        if module in packs:
            names[key] = f"{module}.conv.{parameter}"
    if any(name and name.startswith(_AROUND) for name in names.values()):
        names = {key: _within_dyhead(name) for key, name in names.items()}
    return names


def _within_dyhead(name: str | None) -> str | None:
    if name is None or name.startswith(_AROUND) or not name.startswith("backbone."):
        return name
    return _WITHIN + name.removeprefix("backbone.")


def without_dyhead(name: str) -> str:
    """Returns the name that a weight of ours would have if there were no DyHead."""
    return f"backbone.{name.removeprefix(_WITHIN)}" if name.startswith(_WITHIN) else name


def _is_offset(name: str | None) -> bool:
    return name is not None and name.endswith(".offset.weight")


def _our_name(key: str, rules: Iterable[Rule]) -> str | None:
    module, _, parameter = key.rpartition(".")
    for pattern, ours in rules:
        match = re.fullmatch(pattern, module)
        if match is not None:
            name = ours(match) if callable(ours) else match.expand(ours)
            return f"{name}.{parameter}"
    return None
