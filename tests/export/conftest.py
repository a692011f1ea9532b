"""One export of each format for all tests of it: each takes seconds."""

import pytest
import torch

from atss_d2.export import Metadata, export_onnx, export_pt2, export_torchscript
from atss_d2.export.torchscript import METHODS
from tests.exported import EXPORTS_GRAPHS, noise, spot_detector

METADATA = {"class_names": ["spot", "Fleck", "пятно"], "shortest_edge": 96, "max_size": 300}


@pytest.fixture(scope="session")
def model():
    """The detector in the files."""
    torch.manual_seed(0)
    return spot_detector()


@pytest.fixture(scope="session")
def metadata(model):
    return Metadata.from_model(model, config="toy", **METADATA)


@pytest.fixture(scope="session")
def sample():
    return noise(80, 80)[None]


@pytest.fixture(scope="session")
def pt2_file(model, metadata, sample, tmp_path_factory):
    if not EXPORTS_GRAPHS:
        pytest.skip("a .pt2 file needs torch 2.7 or newer")
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    return export_pt2(model, sample, path, metadata=metadata)


@pytest.fixture(scope="session")
def onnx_file(model, metadata, sample, tmp_path_factory):
    if not EXPORTS_GRAPHS:
        pytest.skip("an .onnx file needs torch 2.7 or newer")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    return export_onnx(model, sample, path, metadata=metadata)


@pytest.fixture(scope="session")
def torchscript_files(model, metadata, sample, tmp_path_factory):
    """Method -> file."""
    folder = tmp_path_factory.mktemp("torchscript")
    return {
        method: export_torchscript(
            model, sample, folder / f"{method}.ts", metadata=metadata, method=method
        )
        for method in METHODS
    }
