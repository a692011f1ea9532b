"""Checkpoints by URL and by prefix: found, or missed in one sentence that says how to go on."""

import functools
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from detectron2.utils.file_io import PathManager

from atss_d2 import Predictor
from atss_d2.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    SafeCheckpointer,
    check_checkpoint,
    convention_differences,
    convert_state_dict,
    save_file,
)
from atss_d2.config import get_cfg
from atss_d2.engine import build_model, do_train, load_weights
from tests import detector, toy
from tests import foreign_checkpoints as foreign

WAY_ON = r": download it elsewhere, .* and give train\.init_checkpoint=FILE, or MODEL\.WEIGHTS FILE"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of downloads."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class CountingHandler(SimpleHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, cache):
    """``(url, folder, requests)`` of a web server."""
    CountingHandler.requests.clear()
    (tmp_path / "www").mkdir()
    handler = functools.partial(CountingHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "www", CountingHandler.requests
        server.shutdown()
        thread.join()


@pytest.fixture
def nobody(cache) -> str:
    """A URL where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/a.pth"


def assert_one_sentence(error) -> None:
    message = str(error.value)
    assert message.count("\n") == 0
    assert "Traceback" not in message
    assert error.value.__suppress_context__


def test_a_download_happens_once(server):
    url, folder, requests = server
    model = detector.build(seed=1)
    save_file(model.state_dict(), folder / "a.pth")
    other = detector.build(seed=2)
    for _ in range(2):
        check_checkpoint(f"{url}/a.pth")
        load_weights(other, f"{url}/a.pth")
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    assert requests == ["/a.pth"]


@pytest.mark.parametrize("prefix", ["", "authors://", "mmdet://"])
def test_without_an_answer(nobody, prefix):
    path = f"{prefix}{nobody}"
    reason = rf"'{nobody}' cannot be downloaded \(.*Connection refused\){WAY_ON}"
    for call in (check_checkpoint, SafeCheckpointer(detector.build()).load):
        with pytest.raises(CheckpointNotFoundError, match=reason) as error:
            call(path)
        assert_one_sentence(error)


def test_a_page_that_is_not_there(server):
    url, *_ = server
    with pytest.raises(CheckpointNotFoundError, match=rf"\(HTTP Error 404: .*\){WAY_ON}"):
        check_checkpoint(f"{url}/nowhere.pth")


def test_a_page_in_place_of_the_file(server):
    url, folder, _ = server
    (folder / "a.pth").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(CheckpointError, match="is a web page, not a checkpoint"):
        load_weights(detector.build(), f"{url}/a.pth")


@pytest.fixture
def no_network(monkeypatch, cache):
    """As on a machine without a name server."""

    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "https://.*ImageNetPretrained/MSRA/R-50"),
        ("catalog://ImageNetPretrained/MSRA/R-50", "https://.*MSRA/R-50.pkl"),
        ("https://example.org/a.pth", None),
    ],
)
def test_without_network(no_network, path, url):
    name = rf"'{path}' \({url}.*\)" if url else f"'{path}'"
    with pytest.raises(CheckpointNotFoundError, match=rf"^{name} cannot be .*not known.*{WAY_ON}"):
        check_checkpoint(path)
    with pytest.raises(CheckpointNotFoundError, match="'catalog://nothing' cannot be downloaded"):
        check_checkpoint("catalog://nothing")


@pytest.mark.parametrize("name", ["coco/atss_R_50_FPN_1x", "yaml/atss_R_50_FPN_1x.yaml"])
def test_a_predictor_does_not_download_a_backbone(monkeypatch, name):
    monkeypatch.setattr(PathManager, "get_local_path", None)
    with pytest.raises(CheckpointError, match=r"R-50.pkl' is a backbone .*train\.init_checkpoint"):
        Predictor(name, device="cpu")


def test_a_training_without_network(no_network, tmp_path):
    path = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    cfg = toy.config(tmp_path, **{"train.init_checkpoint": path})
    with pytest.raises(CheckpointNotFoundError, match=f"'{path}'.*{WAY_ON}"):
        do_train(cfg)


# Whole models in mmdetection's layout


def test_fine_tuning_from_a_url_of_mmdetection(handler, tmp_path, caplog):
    theirs = foreign.mmdet(num_classes=80, channels=64, width=8)
    expected, report = convert_state_dict(theirs)
    cfg = report.architecture.config_with("mmdet")
    cfg.model.num_classes = 3
    cfg.train.device = "cpu"
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "atss_r50.pth")
    model = build_model(cfg)
    fresh = {name: value.clone() for name, value in model.head.cls_score.state_dict().items()}
    path = f"mmdet://{handler}atss_r50.pth"
    SafeCheckpointer(model, str(tmp_path)).resume_or_load(path, resume=False)
    assert convention_differences(model, "mmdet") == []
    for name, value in model.state_dict().items():
        is_predictor = name.startswith("head.cls_score.")
        wanted = fresh[name.removeprefix("head.cls_score.")] if is_predictor else expected[name]
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)
    assert f"'{path}' was trained with 80 classes, but the model has 3" in caplog.text
    assert "stay random" not in caplog.text
    with pytest.raises(CheckpointError, match="was trained with 80 classes, but the model has 3"):
        load_weights(model, path)


# Models that are to be used


def test_all_weights_are_needed(tmp_path):
    model = detector.build()
    with pytest.raises(CheckpointError, match=r"no checkpoint is named, .*train\.init_checkpoint="):
        load_weights(model, "")
    weights = model.state_dict()
    for kept, absent in (
        (lambda name: name.startswith("backbone."), "head.cls_subnet.0.weight"),
        (lambda name: name != "head.ctrness.bias", "head.ctrness.bias"),
        (lambda name: name != "backbone.down.weight", "backbone.down.weight"),
    ):
        path = save_file({k: v for k, v in weights.items() if kept(k)}, tmp_path / "a.pth")
        message = rf"'{path}' lacks \d+ of the \d+ parameters .*{absent}.*train\.init_checkpoint="
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, str(path))
        SafeCheckpointer(model, str(tmp_path)).resume_or_load(str(path), resume=False)  # trains


# Frozen layers


def frozen_warnings(caplog) -> list[str]:
    return [x.getMessage() for x in caplog.records if "stay random" in x.getMessage()]


@pytest.fixture(scope="module")
def r_50():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    from detectron2.modeling import build_model

    return build_model(cfg)


def test_frozen_layers_without_weights(r_50, tmp_path, caplog):
    num_frozen = sum(p.numel() for p in r_50.parameters() if not p.requires_grad)
    assert num_frozen == 222_400  # stem and res2 without their norms
    SafeCheckpointer(r_50, str(tmp_path)).resume_or_load("", resume=False)
    (message,) = frozen_warnings(caplog)
    assert message.startswith(f"{num_frozen:,} frozen parameters (backbone.bottom_up.stem.conv1.w")
    assert "53 frozen norms without statistics, because no file is named: give train." in message
    assert "MODEL.BACKBONE.FREEZE_AT 0" in message


def test_frozen_layers_that_a_file_does_not_have(r_50, tmp_path, caplog):
    absent = "backbone.bottom_up.res2.0.conv1"
    weights = {k: v for k, v in r_50.state_dict().items() if not k.startswith(absent)}
    path = save_file(weights, tmp_path / "a.pth")
    SafeCheckpointer(r_50, str(tmp_path)).resume_or_load(str(path), resume=False)
    (message,) = frozen_warnings(caplog)
    assert message.startswith(f"4,096 frozen parameters ({absent}.weight) stay random and 1 frozen")
    assert f"because '{path}' does not have them" in message


def test_frozen_layers_with_weights(r_50, tmp_path, caplog):
    path = save_file(r_50.state_dict(), tmp_path / "a.pth")
    for name in (path, f"{path}?matching_heuristics=True"):
        SafeCheckpointer(r_50, str(tmp_path)).resume_or_load(str(name), resume=False)
    SafeCheckpointer(detector.build(), str(tmp_path)).resume_or_load("", resume=False)  # none there
    assert frozen_warnings(caplog) == []
