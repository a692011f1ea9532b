"""Networks of which a graph would be wrong for images of other sizes."""

import copy

import pytest
import torch
import torch.fx.experimental._config as fx_config
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from atss_d2.export import ExportableDetector, Metadata, export_pt2, load_exported
from atss_d2.export.pt2 import export_program
from atss_d2.export.swin import use_any_size_attention
from tests.detector import CHANNELS, ToyBackbone, build
from tests.exported import assert_same_detections, needs_graphs, noise


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


@needs_graphs
def test_nothing_is_computed_and_nothing_changes():
    model = build(num_levels=1).eval()
    sample = noise(64, 64)[None]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    export_program(model, sample)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(type(x) is nn.Parameter for x in model.parameters())


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
def test_a_transformer_of_windows_takes_images_of_all_sizes(tmp_path):
    model = build(num_levels=1, backbone=WithStep(Attention())).eval()
    exported = load_exported(
        export_pt2(
            model, noise(8, 8)[None], tmp_path / "m.pt2", metadata=Metadata.from_model(model)
        )
    )
    for size in [(1, 1), (56, 56), (57, 56), (130, 70), (40, 300)]:
        images = torch.stack([noise(*size, seed) for seed in range(2)])
        assert_same_detections(exported(images), model, images)
        with torch.no_grad():  # which has a branch, and takes both ways here
            assert_same_detections(ExportableDetector(model)(images), model, images)
