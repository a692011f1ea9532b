"""TorchScript files: the same detections for other sizes and batches, in a program without us."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from atss_d2.export.metadata import KEY, Metadata
from atss_d2.export.runtime import load_exported
from atss_d2.export.torchscript import METHODS, export_torchscript
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import build, image

# The sample's; others; a pixel beyond multiples of the stride; less than a cell; more than one.
BATCHES = [(1, 64, 96), (1, 65, 97), (3, 130, 71), (2, 1, 1), (1, 16, 200)]


def images_of(num, height, width, dtype=torch.uint8):
    pixels = [image(size=(height, width), seed=i)["image"] for i in range(num)]
    return torch.stack(pixels).to(dtype)


def export(model, path, **options):
    metadata = Metadata.from_model(model)
    return export_torchscript(model, images_of(1, 64, 96), path, metadata=metadata, **options)


def assert_same(detections, model, images):
    """One detection of the model for each of the file's, matched by class and place."""
    with torch.no_grad():
        expected = [x["instances"] for x in model([{"image": x} for x in images])]
    assert detections.num_detections.tolist() == [len(x) for x in expected]
    for i, instances in enumerate(expected):
        num = len(instances)
        np.testing.assert_array_equal(detections.classes[i, :num], instances.pred_classes)
        np.testing.assert_array_equal(detections.classes[i, num:], -1)
        np.testing.assert_allclose(detections.scores[i, :num], instances.scores, atol=1e-5)
        np.testing.assert_allclose(
            detections.boxes[i, :num], instances.pred_boxes.tensor, atol=1e-3
        )


MODELS = {
    "toy": {},
    "nine anchors, one class": {"num_anchors": 9, "num_classes": 1},
    "from a point": {"box2box_transform": PointDistances(anchor_scale=4)},
    "nothing found": {"test_score_thresh": 0.9999},
    "more than 100 found": {"test_score_thresh": 0.0, "test_nms_thresh": 0.95},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_files_detect_what_the_model_detects(tmp_path, options, method):
    model = build(**options).eval()
    exported = load_exported(export(model, tmp_path / "model.ts", method=method))
    assert exported.format == "torchscript"
    for batch in BATCHES:
        for dtype in (torch.uint8, torch.float32):
            if dtype == torch.float32:
                exported.metadata = exported.metadata.replace(input_dtype="float32")
            images = images_of(*batch, dtype)
            assert_same(exported(images), model, images)


@pytest.mark.parametrize("method", METHODS)
def test_files_without_nms_give_all_candidates(tmp_path, method):
    model = build(num_anchors=9).eval()
    file = load_exported(export(model, tmp_path / "a.ts", method=method, with_nms=False))
    assert not file.metadata.with_nms
    found = file(images_of(1, 130, 71))
    num = int(found.num_detections[0])
    assert found.boxes.shape == (1, 2 * model.test_topk_candidates, 4)
    kept = load_exported(export(model, tmp_path / "b.ts", method=method))(images_of(1, 130, 71))
    num_kept = int(kept.num_detections[0])
    assert 50 < num_kept < num < found.boxes.shape[1]
    # Every detection is one of the candidates.
    candidates, detections = (
        {(*box, c) for box, c in zip(x.boxes[0, :n].round(2).tolist(), x.classes[0].tolist())}
        for x, n in ((found, num), (kept, num_kept))
    )
    assert candidates >= detections


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_the_model_in_bfloat16(tmp_path, method):
    model = build().eval()
    path = export(model, tmp_path / "model.ts", method=method, dtype=torch.bfloat16)
    exported = load_exported(path)
    assert exported.metadata.dtype == "bfloat16"
    found, images = exported(images_of(1, 65, 97)), images_of(1, 65, 97)
    with torch.no_grad():
        (expected,) = model([{"image": images[0]}])
    best = expected["instances"].scores[:5]
    np.testing.assert_allclose(found.scores[0, :5], best, atol=0.05)
    # float32 would be nearer.
    assert np.abs(found.scores[0, :5] - best.numpy()).max() > 1e-6
    assert next(model.parameters()).dtype == torch.float32


def test_the_model_is_left_as_it_was(tmp_path):
    model = build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    types = [type(module) for module in model.modules()]
    for method in METHODS:
        export(model, tmp_path / f"{method}.ts", method=method)
    assert types == [type(module) for module in model.modules()]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.training


_PROGRAM = """
import json, sys
import torch, torchvision
for path in sys.argv[1:]:
    files = {"atss_d2": ""}
    model = torch.jit.load(path, _extra_files=files)
    torch.manual_seed(0)
    boxes, scores, classes, num = model(torch.randint(0, 256, (1, 3, 77, 130)))
    print(json.dumps([num.tolist(), scores[0, :3].tolist(), json.loads(files["atss_d2"])]))
print(json.dumps([name for name in ("atss_d2", "detectron2", "fvcore") if name in sys.modules]))
"""


def test_another_program_runs_it_without_us(tmp_path):
    model = build().eval()
    paths = [export(model, tmp_path / f"{method}.ts", method=method) for method in METHODS]
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *outputs, forbidden = map(json.loads, result.stdout.splitlines())
    assert not forbidden
    assert len(outputs) == 2
    torch.manual_seed(0)
    with torch.no_grad():
        (expected,) = model([{"image": torch.randint(0, 256, (3, 77, 130))}])
    for num, scores, about in outputs:
        assert num == [len(expected["instances"])]
        assert scores == pytest.approx(expected["instances"].scores[:3].tolist(), abs=1e-5)
        assert about["class_names"] == ["0", "1", "2"]
        assert (about["input_format"], about["max_detections"]) == ("BGR", 100)


class HalvesBrightFeatures(nn.Module):
    """A head with a branch that depends on the image."""

    def __init__(self, head: nn.Module, limit: float) -> None:
        super().__init__()
        self.head = head
        self.limit = limit

    def forward(self, features: list[torch.Tensor]):
        if float(features[0].mean()) > self.limit:
            features = [x / 2 for x in features]
        return self.head(features)


def test_scripting_keeps_branches_that_tracing_would_lose(tmp_path):
    model = build().eval()
    dark, bright = images_of(1, 64, 96), images_of(1, 64, 96) // 2 + 128
    with torch.no_grad():
        means = [
            float(model.backbone(model.preprocess_image([{"image": x[0]}]).tensor)["p3"].mean())
            for x in (dark, bright)
        ]
        model.head = HalvesBrightFeatures(model.head, sum(means) / 2).eval()
        expected = [model([{"image": x[0]}])[0]["instances"].scores for x in (dark, bright)]
    file = load_exported(export(model, tmp_path / "model.ts", method="scripting"))
    for images, scores in zip((dark, bright), expected):
        found = file(images)
        assert int(found.num_detections[0]) == len(scores)
        np.testing.assert_allclose(found.scores[0, : len(scores)], scores, atol=1e-5)
    with pytest.raises(ValueError, match=r"looks at a value .*TorchScript with method scripting"):
        export(model, tmp_path / "traced.ts", method="tracing")
    assert not (tmp_path / "traced.ts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "compiling"}, 'method must be one of tracing, scripting, got "compiling"'),
        ({"dtype": torch.float16}, "torchscript on cpu runs .* got torch.float16"),
        ({"dtype": torch.int8}, "got torch.int8"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(build().eval(), tmp_path / "model.ts", **options)
    assert not list(tmp_path.iterdir())


def test_other_mistakes_are_refused(tmp_path):
    model = build().eval()
    with pytest.raises(ValueError, match=r"must end in \.ts"):
        export(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        export(build(), tmp_path / "model.ts")
    with pytest.raises(ValueError, match=r"shape \(1, 3, height, width\), got \(2, 3, 8, 8\)"):
        export_torchscript(
            model, images_of(2, 8, 8), tmp_path / "m.ts", metadata=Metadata.from_model(model)
        )


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "model.ts"
    path.write_text("earlier")

    def save(script, name, **_):
        with open(name, "w") as file:
            file.write("half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch.jit, "save", save)
    with pytest.raises(RuntimeError, match="disk full"):
        export(build().eval(), path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_is_completed(tmp_path):
    model = build().eval()
    metadata = Metadata.from_model(model, class_names=["å", "b", "c"], resize_factor=1.5)
    sample = images_of(1, 20, 30, torch.float32)
    path = export_torchscript(model, sample, tmp_path / "m.ts", metadata=metadata, with_nms=False)
    files = {KEY: ""}
    torch.jit.load(path, _extra_files=files)
    read = Metadata.from_json(files[KEY])
    assert read == metadata.replace(input_dtype="float32", with_nms=False)
    assert read.class_names == ("å", "b", "c")
