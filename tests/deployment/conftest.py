"""A detector trained for a second, and the files that tools/export_model.py makes of it."""

import contextlib
import importlib.util
import io
import logging
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

import pytest

from atss_d2 import Predictor
from atss_d2.commands import export
from atss_d2.commands import predict_exported as predict_exported_command
from atss_d2.warning_filters import filter_third_party_warnings
from tests import toy
from tests.exported import EXPORTS_GRAPHS

ROOT = Path(__file__).resolve().parents[2]
# Training writes them into the checkpoint; classes count from 0.
CATEGORIES = [{"id": 1, "name": toy.CLASSES[0]}, {"id": 2, "name": toy.CLASSES[1]}]
# Added to the toy config. Each format gets another resizing, ONNX another order of channels too.
CONFIGS = {
    "torchscript": "",
    "pt2": "dataloader.test.mapper.augmentations = []",
    "onnx": """
from detectron2.config import LazyCall as L
from atss_d2.data.augmentation import ResizeByFactor
dataloader.test.mapper.augmentations = [L(ResizeByFactor)(factor=1.1)]
model.input_format = "RGB"
""",
}


class Exported(NamedTuple):
    """A file, what was printed when it was written, and the detector that it was made of."""

    path: Path
    printed: str
    predictor: Predictor


class Files(dict[str, Exported]):
    """By format; a test that asks for a format that cannot be written here is skipped."""

    def __missing__(self, name: str) -> NoReturn:
        needed = "ONNX Runtime" if EXPORTS_GRAPHS else "torch 2.7 or newer"
        pytest.skip(f"the format {name} needs {needed}")


@pytest.fixture(scope="package")
def export_model() -> ModuleType:
    return export


@pytest.fixture(scope="package")
def predict_exported() -> ModuleType:
    return predict_exported_command


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """A folder with model.pth, a config of each format, config.yaml, and pictures in data/."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        (folder / "data").mkdir()
        toy.write_dataset(folder / "data")
        filter_third_party_warnings()  # the fixture that does this is of each test
        run = toy.Run(folder, **{"train.max_iter": 80, "train.eval_period": 0}).train()
        (run.output_dir / "model_final.pth").rename(folder / "model.pth")
        for name, text in CONFIGS.items():
            path = toy.write_config(folder / f"{name}.py", folder / "output")
            path.write_text(path.read_text() + text)
        (folder / "config.yaml").write_text(toy.yaml_config(folder / "output"))
        yield folder


@pytest.fixture(scope="package")
def exported(trained, export_model) -> Files:
    """All that can be written here; each was evaluated too."""
    names = list(CONFIGS) if EXPORTS_GRAPHS else ["torchscript"]
    if importlib.util.find_spec("onnxruntime") is None:
        names = [name for name in names if name != "onnx"]
    found = Files()
    for name in names:
        config, weights, output = trained / f"{name}.py", trained / "model.pth", trained / "files"
        flags = ["--config-file", str(config), "--format", name, "--run-eval"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            overrides = [f"train.init_checkpoint={weights}"]
            assert export_model.main([*flags, "--output", str(output), *overrides]) == 0
        path = output / export_model.FORMATS[name].file_name
        found[name] = Exported(path, printed.getvalue(), Predictor(str(config), weights))
    return found


@pytest.fixture(autouse=True)
def loggers():
    yield
    for name in ("atss_d2", "detectron2", "fvcore"):  # what the tool does would outlive the test
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
