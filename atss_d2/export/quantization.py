"""Dynamic quantization of an exported ONNX file: convolutions of 8-bit integers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plain.files import replacing
from .checks import check_suffix, import_optional
from .metadata import KEY, Metadata

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

# Name of the zero point of all weights. They are stored as uint8 around 128, as ONNX Runtime is
# faster with uint8 than with int8.
_ZERO_POINT = "weight_zero_point"


def quantize_onnx(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Quantizes the convolutions of a file written by :func:`export_onnx`.

    Weights become 8-bit integers with one scale per output channel, a quarter of their size. The
    input of a convolution is quantized while the model runs, by its range over the whole batch.
    Detections change slightly: measure it. (``onnxruntime.quantization`` has one scale for all
    channels of a convolution, which is too coarse once normalization is folded into the weights.)

    Grouped convolutions, such as depthwise ones, stay in float32: they would be slower.

    Args:
        source: A float32 ``.onnx`` file.
        path: The quantized file to write, ending in ``.onnx``. Missing folders are created.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: ``source`` was not written by :func:`export_onnx`, or is not float32.
        ImportError: onnx is not installed.
    """
    source, path = Path(source), check_suffix(path, ".onnx")
    onnx = import_optional("onnx")
    if not source.is_file():
        raise FileNotFoundError(f"there is no file '{source}'")
    proto = onnx.load(source)
    texts = {x.key: x.value for x in proto.metadata_props}
    if KEY not in texts:
        raise ValueError(f"'{source}' was not exported by atss_d2: it has no metadata '{KEY}'")
    metadata = Metadata.from_json(texts[KEY])
    if metadata.dtype != "float32":
        raise ValueError(f"can quantize a float32 model, but '{source}' is {metadata.dtype}")
    _quantize_convolutions(proto.graph)
    texts[KEY] = metadata.replace(dtype="int8").to_json()
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
    return path


def _quantize_convolutions(graph: GraphProto) -> None:
    from onnx import numpy_helper

    constants = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    quantized: set[str] = set()  # the head shares its weights between levels
    new_constants = {_ZERO_POINT: np.array(128, dtype=np.uint8)}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not _is_quantizable(node, constants):
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        if x not in quantized:
            nodes.append(_quantize_input(x))
        if weight not in quantized:
            new_constants.update(_quantize_weight(weight, constants[weight]))
        for name in bias:
            new_constants[f"{name}_column"] = constants[name].reshape(-1, 1, 1)
        quantized.update((x, weight))
        nodes.extend(_integer_convolution(node))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [x for x in graph.initializer if x.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in new_constants.items())


def _is_quantizable(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type != "Conv" or any(name not in constants for name in node.input[1:]):
        return False
    return all(x.i == 1 for x in node.attribute if x.name == "group")


def _quantize_weight(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Returns weights (O, C, kh, kw) as uint8 around 128, and their scales (O, 1, 1)."""
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    integers = (np.rint(weight / scale) + 128).astype(np.uint8)
    return {f"{name}_quantized": integers, f"{name}_scale": scale[..., 0]}


def _quantize_input(name: str) -> NodeProto:
    from onnx import helper

    outputs = [f"{name}_as_uint8", f"{name}_step", f"{name}_zero_point"]
    return helper.make_node("DynamicQuantizeLinear", [name], outputs)


def _integer_convolution(node: NodeProto) -> list[NodeProto]:
    """Returns nodes that compute a convolution from its quantized input and weight."""
    from onnx import TensorProto, helper

    x, weight, *bias = node.input
    (output,) = node.output
    inputs = [f"{x}_as_uint8", f"{weight}_quantized", f"{x}_zero_point", _ZERO_POINT]
    convolution = helper.make_node("ConvInteger", inputs, [f"{output}_integer"])
    convolution.attribute.extend(node.attribute)
    product = f"{output}_without_bias" if bias else output
    nodes = [
        convolution,
        helper.make_node("Cast", [f"{output}_integer"], [f"{output}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{x}_step", f"{weight}_scale"], [f"{output}_factor"]),
        helper.make_node("Mul", [f"{output}_float", f"{output}_factor"], [product]),
    ]
    for name in bias:
        nodes.append(helper.make_node("Add", [product, f"{name}_column"], [output]))
    return nodes
