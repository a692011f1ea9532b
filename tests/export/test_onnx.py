"""ONNX: images of all sizes, in a program without torch; quantized too."""

import sys

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from atss_d2.export import ExportableDetector, Metadata, export_onnx, load_exported, quantize_onnx
from atss_d2.export.metadata import KEY
from atss_d2.modeling import ATSSHead
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.pre_nms import split_pairs
from tests.detector import CHANNELS, build
from tests.exported import BATCHES, assert_same_detections, needs_graphs, noise

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = needs_graphs


@pytest.fixture(scope="module")
def exported(onnx_file):
    return load_exported(onnx_file, num_threads=1)


@pytest.fixture(scope="module")
def int8_file(onnx_file):
    return quantize_onnx(onnx_file, onnx_file.with_name("int8.onnx"))


def test_detections_are_those_of_the_model(exported, model):
    for batch in BATCHES.values():
        assert_same_detections(exported(batch), model, batch)


def test_names_sizes_and_metadata(exported, onnx_file, metadata):
    assert exported.format == "onnx"
    assert exported.metadata == metadata
    proto = onnx.load(onnx_file)
    assert [x.version for x in proto.opset_import if x.domain == ""] == [20]
    (images,) = proto.graph.input
    tensors = {x.name: x.type.tensor_type for x in (images, *proto.graph.output)}
    sizes = {
        name: [size.dim_param or size.dim_value for size in tensor.shape.dim]
        for name, tensor in tensors.items()
    }
    assert sizes == {
        "images": ["batch", 3, "height", "width"],
        "boxes": ["batch", 100, 4],
        "scores": ["batch", 100],
        "classes": ["batch", 100],
        "num_detections": ["batch"],
    }
    assert tensors["images"].elem_type == onnx.TensorProto.UINT8
    assert "NonMaxSuppression" in {node.op_type for node in proto.graph.node}


def test_the_file_says_nothing_of_the_machine_that_wrote_it(onnx_file):
    content = onnx_file.read_bytes()
    for name in (b"detector.py", b"postprocess.py", b"atss_d2/modeling"):
        assert name not in content


def test_everything_else_at_once(tmp_path):
    """DCN, points, one class, no centerness, no NMS, a float32 input, the least opset of DCN."""
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)],
        num_classes=1,
        conv_dims=[CHANNELS],
        with_centerness=False,
        deform_last_conv=True,
    )
    coder = PointDistances(anchor_scale=4)
    model = build(num_levels=1, num_classes=1, head=head, box2box_transform=coder).eval()
    for tower in (head.cls_subnet, head.bbox_subnet):
        nn.init.normal_(tower[0].offset.weight, std=0.01)
    path = export_onnx(
        model,
        torch.zeros(1, 3, 30, 30),
        tmp_path / "m.onnx",
        metadata=Metadata.from_model(model),
        with_nms=False,
        opset=19,
    )
    exported = load_exported(path)
    assert not exported.metadata.with_nms
    assert "DeformConv" in {node.op_type for node in onnx.load(path).graph.node}
    detector = ExportableDetector(model, with_nms=False)
    for size in ((129, 161), (33, 1), (1, 1)):
        images = noise(*size)[None].float()
        found = exported(images)
        with torch.no_grad():
            expected = [x.numpy() for x in detector(images)]
        np.testing.assert_array_equal(found.num_detections, expected[3])
        np.testing.assert_allclose(found.boxes, expected[0], atol=1e-2)
        np.testing.assert_allclose(found.scores, expected[1], atol=1e-4)
        np.testing.assert_array_equal(found.classes, expected[2])
        if size == (129, 161):
            assert found.num_detections[0] > 30


def test_indices_of_many_pairs_are_exact(tmp_path):
    """The exporter turns some integer divisions into divisions of float32 numbers."""

    class Split(nn.Module):
        def forward(self, idxs):
            return split_pairs(idxs, 80)

    idxs = torch.arange(80 * 10**6 - 100, 80 * 10**6 + 100)
    program = torch.onnx.export(Split().eval(), (idxs,), dynamo=True, verbose=False)
    program.save(tmp_path / "split.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "split.onnx"))
    anchors, classes = session.run(None, {session.get_inputs()[0].name: idxs.numpy()})
    np.testing.assert_array_equal(anchors, idxs.numpy() // 80)
    np.testing.assert_array_equal(classes, idxs.numpy() % 80)


# --------------------------------------------------------------------------------- quantization


def test_quantized_detections_are_nearly_those_of_the_model(onnx_file, int8_file, metadata):
    path, exported = int8_file, load_exported(int8_file, num_threads=1)
    assert exported.metadata == metadata.replace(dtype="int8")
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("ConvInteger") == 2 + 2 * 4  # the backbone, the head on two levels
    assert "Conv" not in operators
    assert path.stat().st_size < 0.5 * onnx_file.stat().st_size
    images = BATCHES["three"]
    found, plain = exported(images), load_exported(onnx_file)(images)
    assert found.num_detections.tolist() == [100, 0, 100]
    np.testing.assert_allclose(found.scores, plain.scores, atol=0.03)
    assert not np.array_equal(found.scores, plain.scores)
    (one,) = exported(BATCHES["one"]).num_detections
    assert one == 1


def test_weights_are_quantized_by_channel(onnx_file, tmp_path):
    """A channel of small weights keeps its precision beside one of large weights."""
    proto = onnx.load(onnx_file)
    from onnx import numpy_helper

    name = "model.backbone.stem.weight"
    weight = next(x for x in proto.graph.initializer if x.name == name)
    values = numpy_helper.to_array(weight).copy()
    values[5] *= 1000
    weight.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "a.onnx")
    path = quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    constants = {x.name: numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}
    integers = constants[f"{name}_quantized"].astype(np.float32) - 128
    restored = integers * constants[f"{name}_scale"][..., None]
    error = np.abs(restored - values).max(axis=(1, 2, 3))
    assert (error <= np.abs(values).max(axis=(1, 2, 3)) / 127 / 2 + 1e-7).all()


def test_files_that_cannot_be_quantized(onnx_file, int8_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none\.onnx'"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "b.onnx")
    proto = onnx.load(onnx_file)
    with pytest.raises(ValueError, match=r"float32 model, but '.*int8\.onnx' is int8"):
        quantize_onnx(int8_file, tmp_path / "b.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="no metadata 'atss_d2'"):
        quantize_onnx(tmp_path / "foreign.onnx", tmp_path / "b.onnx")
    with pytest.raises(ValueError, match=f"no metadata '{KEY}'"):
        load_exported(tmp_path / "foreign.onnx")
    assert not (tmp_path / "b.onnx").exists()


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(model, metadata, sample, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} is not installed: pip install 'atss_d2\[export\]'"
    with pytest.raises(ImportError, match=message):
        export_onnx(model, sample, "m.onnx", metadata=metadata)
