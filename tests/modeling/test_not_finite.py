"""NaN and infinity go through every model as such: no process dies of them, none vanishes.

What Detectron2's ``test_inf_nan_data`` does for its detectors. Everything runs in processes of its
own, since what goes wrong kills them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.exported import EXPORTS_GRAPHS

ROOT = Path(__file__).parents[2]

OPERATOR = """
import logging, sys
import torch
from torch import nn
from atss_d2.modeling.deform_conv import DeformConv2d

route, modulated = sys.argv[1], sys.argv[2] == "v2"
torch.manual_seed(0)
conv = DeformConv2d(4, 6, 3, padding=1, deformable_groups=2).eval()
x, offset, mask = torch.randn(2, 4, 7, 8), torch.randn(2, 36, 7, 8), torch.rand(2, 18, 7, 8)
inputs = (x, offset, mask) if modulated else (x, offset)
run = conv
if route == "traced":
    run = torch.jit.trace(conv, inputs, check_trace=False)
elif route == "scripted":
    run = torch.jit.script(conv)
elif route == "pt2":
    run = torch.export.export(conv, inputs).module()
elif route == "onnx":
    import onnxruntime
    logging.disable(logging.WARNING)
    program = torch.onnx.export(conv, inputs, dynamo=True, opset_version=20, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    def run(*inputs):
        found = session.run(None, {name: x.detach().numpy() for name, x in zip(names, inputs)})
        return torch.from_numpy(found[0])
normal = run(*inputs)
torch.testing.assert_close(normal, conv(*inputs))

for number in map(float, ("nan", "inf", "-inf", "1e30", "-1e30", "3e38", "2147483648", "-1e9")):
    for channel in (0, 35):  # dy of the first group, dx of the second
        broken = offset.clone()
        broken[1, channel, 3, 5] = broken[1, channel, 0, 0] = number
        out = run(x, broken, *inputs[2:])
        is_nan = out.isnan()
        at_broken = torch.zeros_like(is_nan)
        if not abs(number) < torch.inf:
            at_broken[1, :, 3, 5] = at_broken[1, :, 0, 0] = True
        assert torch.equal(is_nan, at_broken), (number, channel)
        elsewhere = torch.ones_like(is_nan)
        elsewhere[1, :, 3, 5] = elsewhere[1, :, 0, 0] = False
        assert torch.equal(out[elsewhere], normal[elsewhere])
        if abs(number) < torch.inf:  # as good as outside
            outside = offset.clone()
            outside[1, channel, 3, 5] = outside[1, channel, 0, 0] = 1000.0
            assert torch.equal(out, run(x, outside, *inputs[2:])), number
for place in range(len(inputs)):
    for number in (torch.nan, torch.inf):
        everything = [z.clone() for z in inputs]
        everything[place].fill_(number)
        assert not run(*everything).isfinite().any(), (place, number)

if route == "eager":
    for number in map(float, ("nan", "inf", "1e30")):
        leaves = [z.clone().requires_grad_() for z in inputs]
        with torch.no_grad():
            leaves[1][1, 7, 3, 5] = number
        conv.zero_grad()
        out = run(*leaves)
        out.square().sum().backward()  # a gradient of NaN where the output is
        for leaf in (*leaves, conv.weight):
            assert leaf.grad.isfinite().all() == (number == 1e30), number
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for number in map(float, ("nan", "inf")):
            assert run(x, torch.full_like(offset, number), *inputs[2:]).isnan().all()
print("survived")
"""

MODEL = """
import sys
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from atss_d2 import get_config

family = sys.argv[1]
mobile = family == "mobilenetv2"
name = "demo/atss_mobilenetv2_trees" if mobile else "coco/atss_R_50_FPN_1x"
model = get_config(name).model
bottom_up = model.backbone.bottom_up
bottom_up.freeze_at = 0
if mobile:
    bottom_up.norm = "BN"
    bottom_up.pop("weights", None)
else:
    bottom_up.stem.update(out_channels=8, norm="BN")
    bottom_up.stages.update(
        norm="BN", stem_out_channels=8, res2_out_channels=16, width_per_group=8
    )
    if family == "resnext":
        bottom_up.stages.update(num_groups=4, width_per_group=2, stride_in_1x1=False)
    if family.startswith("dcn") or family == "resnext":
        bottom_up.stages.update(
            deform_on_per_stage=[False, True, True, True], deform_modulated=family != "dcn v1"
        )
        model.head.deform_last_conv = True
    model.backbone.out_channels = 32
    model.head.update(conv_dims=[32])
    for shape in range(len(model.head.input_shape)):
        model.head.input_shape[shape].channels = 32
torch.manual_seed(0)
model = instantiate(model)
maps = []
model.head.register_forward_hook(lambda module, inputs, outputs: maps.append(outputs))


def broken(kind):
    image = torch.randint(0, 256, (3, 96, 128)).float()
    if kind == "a NaN":
        image[1, 40, 60] = torch.nan
    elif kind == "both":
        image[:] = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(3, image.shape)]
    elif kind != "healthy":
        image[:] = float(kind)
    return image


def predictions(levels, image):
    return torch.cat([x[image].flatten() for kind in levels for x in kind])


for kind in ("healthy", "nan", "inf", "-inf", "a NaN", "both"):
    inputs = []
    for image in (broken("healthy"), broken(kind)):
        instances = Instances(image.shape[-2:])
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 12, 70, 80], [60, 20, 120, 90]]))
        instances.gt_classes = torch.tensor([0, 0])
        inputs.append({"image": image, "instances": instances})

    maps.clear()
    model.eval()
    with torch.no_grad():
        found = model(inputs)
    assert predictions(maps[0], 0).isfinite().all(), kind  # of the healthy image
    assert predictions(maps[0], 1).isfinite().all() == (kind == "healthy"), kind
    for result in found:
        result = result["instances"]
        assert result.pred_boxes.tensor.isfinite().all()
        assert result.scores.isfinite().all()

    maps.clear()
    model.train()
    model.zero_grad()
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness"}
    for loss_name, loss in losses.items():
        assert loss.isfinite() == (kind == "healthy"), (kind, loss_name)
    sum(losses.values()).backward()
    # Biases may have a gradient of 0: ReLU6 and clamps have one at NaN.
    weights = [p.grad.isfinite().all() for p in model.parameters() if p.dim() == 4]
    assert len(weights) > 40
    assert {bool(x) for x in weights} == {kind == "healthy"}, kind
    # Running statistics of the broken batch would break the next healthy one.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()

# A weight that has exploded, as in a diverging run.
with torch.no_grad():
    next(iter(model.backbone.bottom_up.parameters())).fill_(1e30)
model.eval()(inputs)
model.train()
with EventStorage():
    sum(model(inputs).values()).backward()
print("survived")
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("route", ["eager", "traced", "scripted", "pt2", "onnx"])
def test_offsets_that_are_no_numbers(route, version):
    """NaN and infinity give NaN at their place; what points far out reads zeros."""
    if route == "scripted" and sys.version_info >= (3, 14):
        pytest.skip("TorchScript's compiler does not know this Python")
    if route in ("pt2", "onnx") and not EXPORTS_GRAPHS:
        pytest.skip("such graphs need torch 2.7 or newer")
    if route == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    result = run(OPERATOR, route, version)
    assert (result.returncode, result.stdout) == (0, "survived\n"), result.stderr


@pytest.mark.parametrize("family", ["resnet", "dcn v1", "dcn v2", "resnext", "mobilenetv2"])
def test_images_that_are_no_numbers(family):
    result = run(MODEL, family)
    assert (result.returncode, result.stdout) == (0, "survived\n"), result.stderr
