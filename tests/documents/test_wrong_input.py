"""Every command, run on wrong input: one sentence that names it and says what to do instead.

In a fresh checkout. More of what can go wrong is in the tests of the commands.
"""

from __future__ import annotations

import shlex

import pytest

from tests.documents.checkout import Checkout
from tests.documents.session import Session
from tests.drawn_set import write_set

CONFIG = "configs/custom/atss_mobilenetv2.py"
PREDICT = "python tools/demo.py --output found --input photo.jpg --config-file"
# Command -> what it says. Those of one command fail at different stages of it.
CASES = {
    # A file that is not there, or is not what it should be.
    "python train_net.py --config-file my_confg.py": "no config 'my_confg.py'; available: coco/",
    "python train_net.py --config-file unfinished.py": "config 'unfinished.py', line 3: '(' was",
    f"python train_net.py --config-file {CONFIG}": "tools/start_project.py writes a config",
    f"{PREDICT} {CONFIG} --weights page.pth": "'page.pth' is a web page, not a checkpoint: downl",
    f"python tools/export_model.py --config-file {CONFIG}": (
        "is a backbone to start training with, not a trained detector: give train.init_checkpoint="
    ),
    "python tools/predict_exported.py model.onnx photo.jpg": "there is no file 'model.onnx'",
    "python tools/predict_exported.py page.pth photo.jpg": "'page.pth' is not an exported detector",
    "python tools/convert_weights.py page.pth out.pth": "'page.pth' is a web page",
    "python tools/start_project.py --train data/trian.json data/images --output p": (
        "'data/trian.json' does not exist: give an annotation file or a folder"
    ),
    "python tools/start_project.py --train data/train.json --output p": (
        "'data/train.json' needs the folder of its images"
    ),
    "python tools/run_demo.py train.init_checkpoint=gone.pth": "no checkpoint at 'gone.pth': give ",
    "python tools/ablate.py --rows table9/k3": "no row fits 'table9/k3'; did you mean table",
    "DETECTRON2_DATASETS=page.pth python tools/prepare_data.py --shapes": (
        "cannot write to page.pth/shapes: Not a directory; set DETECTRON2_DATASETS"
    ),
    "python -m benchmarks --report --json gone.json": "there are no results in gone.json",
    # Keys of configs.
    f"{PREDICT} {CONFIG} --weights page.pth --opts train.devise=cpu": "did you mean train.device",
    # Flags.
    "python train_net.py --config CONFIG --num_gpus 1": "--num_gpus; did you mean --num-gpus?",
    f"{PREDICT} CONFIG --weight x.pth --threshold 0.3": "did you mean --confidence-threshold?",
    f"{PREDICT} CONFIG model.num_classes=3": "overrides come last on the line, behind --opts",
    "python tools/export_model.py --config-file CONFIG --fromat onnx": "did you mean --format?",
    "python tools/predict_exported.py model.onnx": "required: image; predict_exported.py --help",
    "python tools/convert_weights.py a.pth b.pth --convention mmdetection": "'authors', 'mmdet'",
    "python tools/start_project.py --train a b": "required: --output; start_project.py --help",
    "python tools/prepare_data.py --coco": "unrecognized arguments: --coco",
    "python -m atss_d2_cli predcit": "did you mean predict?",
}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A checkout and a session in it."""
    checkout = Checkout(tmp_path_factory.mktemp("wrong"))
    checkout.add_photographs()
    write_set(checkout.folder / "data", 2)
    (checkout.folder / "page.pth").write_text("<!DOCTYPE html><html></html>")
    (checkout.folder / "unfinished.py").write_text("import atss_d2\n\nmodel = dict(\n")
    session = Session(checkout.folder, checkout.environment)
    yield checkout, session
    session.close()


@pytest.mark.parametrize("command", CASES)
def test_a_mistake_is_one_sentence(session, command):
    checkout, session = session
    before = {path for path in checkout.folder.rglob("*") if "__pycache__" not in path.parts}
    program, *words = shlex.split(command)
    process = session.run(words) if program == "python" else checkout.run("bash", "-c", command)
    assert process.returncode in (1, 2), process.stdout
    lines = process.stderr.splitlines()
    assert CASES[command] in lines[-1]
    assert len(lines) == 1 or (len(lines) == 2 and lines[0].startswith("usage: ")), process.stderr
    assert len(lines[-1]) < 400
    # Nothing was begun.
    after = {path for path in checkout.folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
