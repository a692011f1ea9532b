"""Networks of which a graph would be wrong for images of other sizes."""

import copy

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from detectron2.layers import ShapeSpec
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from atss_d2.export import (
    ExportableDetector,
    export_aot_inductor,
    export_onnx,
    export_pt2,
    export_torchscript,
)
from atss_d2.export.pt2 import export_program
from atss_d2.export.swin import use_any_size_attention
from atss_d2.modeling import ATSSHead
from tests.detector import CHANNELS, ToyBackbone, build
from tests.exported import EXPORTS_GRAPHS, assert_same_detections, needs_graphs, noise


class WithStep(ToyBackbone):
    """One level, on which a function is applied to the map."""

    def __init__(self, step):
        super().__init__(num_levels=1)
        self.step = step

    def forward(self, x):
        return {name: self.step(feature) for name, feature in super().forward(x).items()}


def halve_small(x):
    return x / 2 if x.shape[3] < 10 else x


def scale_by_length(x):
    return x * torch.arange(len(x[0, 0]), device=x.device)[:, None]


def halve_bright(x):
    return x / 2 if float(x.mean()) > 0 else x


def bright_only(x):
    return x + x[x > 0].sum()


@needs_graphs
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            halve_small,
            "computes differently for small images, .* it calls .* for 1500 x 1600 pixels, it "
            "calls .* for 1 x 1",
        ),
        (scale_by_length, r"took a size that depends on the image for a constant, .* == \d+"),
        (halve_bright, r"looks at a value .*_local_scalar_dense.*method scripting"),
        (bright_only, r"looks at a value .*nonzero"),
    ],
)
def test_networks_that_no_graph_can_hold_are_refused(step, message):
    model = build(num_levels=1, backbone=WithStep(step)).eval()
    with pytest.raises(ValueError, match=message):
        export_program(model, noise(64, 64)[None])


def test_an_old_torch_is_told_so(model, sample, monkeypatch):
    """Without it, files would refuse small images when they run."""
    monkeypatch.delattr(fx_config, "backed_size_oblivious", raising=False)
    with pytest.raises(RuntimeError, match="install torch 2.7 or newer"):
        export_program(model, sample)


def deformable():
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * 2,
        num_classes=3,
        conv_dims=[CHANNELS],
        deform_last_conv=True,
    )
    return build(head=head).eval()


# How the message calls a format -> its suffix and exporter.
EXPORTERS = {
    "pt2": (".pt2", export_pt2),
    "torchscript": (".ts", export_torchscript),
    "onnx": (".onnx", export_onnx),
    "aot_inductor": (".pt2", export_aot_inductor),
}
SAMPLES = [
    (torch.zeros(2, 3, 8, 8), r"shape \(1, 3, height, width\), got \(2, 3, 8, 8\)"),
    (torch.zeros(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
    (torch.zeros(1, 3, 8, 8).double(), "uint8 or float32 tensor, got torch.float64"),
    (np.zeros((1, 3, 8, 8)), "got ndarray"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *((name, {"path": "m.so"}, r"'m\.so' must end in \{suffix}") for name in EXPORTERS),
        *(("pt2", {"sample": sample}, message) for sample, message in SAMPLES),
        ("pt2", {"model": build()}, r"call model\.eval\(\)"),
        ("pt2", {"dtype": torch.float16}, "pt2 on cpu runs backbone and head .* got torch.float16"),
        ("torchscript", {"dtype": torch.int8}, "got torch.int8"),
        ("torchscript", {"method": "compiling"}, 'one of tracing, scripting, got "compiling"'),
        ("onnx", {"dtype": torch.bfloat16}, "onnx on cpu runs .* got torch.bfloat16"),
        ("onnx", {"opset": 17}, "opset must be >= 18, got 17"),
        ("onnx", {"model": deformable(), "opset": 18}, r"\(DCN\), .* opset 19 on, got opset 18"),
        ("aot_inductor", {"dtype": torch.float16}, "aot_inductor on cpu runs .* torch.float16"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(
    name, change, message, model, metadata, sample, tmp_path, monkeypatch
):
    suffix, export = EXPORTERS[name]
    if name != "torchscript" and not EXPORTS_GRAPHS:
        pytest.skip("such graphs need torch 2.7 or newer")
    if name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    arguments = {"model": model, "sample": sample, "path": f"m{suffix}", **change}
    with pytest.raises(ValueError, match=message.replace("{suffix}", suffix)):
        export(**arguments, metadata=metadata)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- Swin transformers

SIZES = [(1, 1), (5, 4), (5, 9), (6, 4), (20, 23), (4, 30), (11, 8)]


@torch.no_grad()
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [3, 0], [4, 3]])
def test_attention_is_that_of_torchvision(kind, shift):
    attention = kind(24, [5, 4], shift, num_heads=3).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    any_size = copy.deepcopy(attention)
    use_any_size_attention(any_size)
    assert type(any_size).forward is not kind.forward
    assert type(attention) is kind  # only the copy is changed
    for size in SIZES:
        x = torch.randn(2, *size, 24)
        torch.testing.assert_close(any_size(x), attention(x), rtol=0, atol=1e-5)


class Attention(nn.Module):
    """Shifted windows on a map (N, C, H, W)."""

    def __init__(self):
        super().__init__()
        self.attention = ShiftedWindowAttention(CHANNELS, [7, 7], [3, 3], num_heads=2)

    def forward(self, x):
        return x + self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@needs_graphs
@torch.no_grad()
def test_a_transformer_of_windows_takes_images_of_all_sizes():
    model = build(num_levels=1, backbone=WithStep(Attention())).eval()
    exported = export_program(model, noise(8, 8)[None]).module(check_guards=False)
    for size in [(1, 1), (56, 56), (57, 56), (130, 70), (40, 300)]:
        images = torch.stack([noise(*size, seed) for seed in range(2)])
        assert_same_detections(exported(images), model, images)
        # Which has a branch, and takes both ways here.
        assert_same_detections(ExportableDetector(model)(images), model, images)
