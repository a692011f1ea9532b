"""The branches of a GPU, forced: on the CPU, with a pretended GPU, with fake tensors."""

import contextlib
import warnings
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torchvision
from detectron2.utils.events import EventStorage
from torch._subclasses import FakeTensorMode

from atss_d2 import use_atss
from atss_d2.engine.rng import preserved_rng
from atss_d2.modeling import anchor_generator, nms, training_log
from atss_d2.modeling.matchers import grid
from atss_d2.modeling.nms import batched_nms
from benchmarks import scenes
from benchmarks.cases.losses import random_predictions
from benchmarks.gpu.small import RULES
from benchmarks.models import ATSS, FCOS, RETINANET, build
from benchmarks.pretend_gpu import PretendTensor, pretend, pretended_gpu

SIZE = (64, 96)


def test_nms_by_groups_of_classes_makes_its_tensors_on_the_device(monkeypatch):
    """More than 25,000 boxes once ended in an error: searchsorted got values of the host."""
    monkeypatch.setattr(nms, "_GPU_MOST_AT_ONCE", 50)
    monkeypatch.setattr(nms, "_nms", _on_host)
    boxes, classes = scenes.random_boxes(900, SIZE), scenes.random_classes(900, 5)
    scores = torch.rand(900, generator=torch.Generator().manual_seed(0))
    with pretended_gpu():
        found = batched_nms(pretend(boxes), pretend(scores), pretend(classes), 0.5)
    assert torch.equal(found.values, batched_nms(boxes, scores, classes, 0.5))
    assert len(found) < 900


def _on_host(boxes, scores, thresh):
    """torchvision's operator does not know pretended tensors."""
    if not isinstance(boxes, PretendTensor):
        return torchvision.ops.nms(boxes, scores.to(boxes.dtype), thresh)
    return pretend(_on_host(boxes.values, scores.values, thresh))


def test_a_pretended_gpu_refuses_operands_of_the_host():
    there = pretend(torch.arange(3.0))
    with pretended_gpu():
        there + torch.tensor(1.0)  # a single value may come from the host
        there[torch.tensor([0, 2])]  # so may an index
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            there + torch.arange(3.0)


@pytest.fixture
def no_cached_grids():
    """Grids keep their tensors of every device, which must not be fake ones for other tests."""
    grid._cached_grid.cache_clear()
    yield
    grid._cached_grid.cache_clear()


def fake_scene():
    """Maps, features and ground truth on a GPU, without values."""
    with torch.device("cpu"):
        features, instances = scenes.feature_maps(SIZE, 2), scenes.ground_truth(2, 10, SIZE, 5)
    return [x.cuda() for x in features], [x.to("cuda") for x in instances]


@pytest.mark.usefixtures("no_cached_grids")
@pytest.mark.parametrize("rule", RULES)
def test_labels_and_losses_of_fake_cuda_tensors(rule):
    """A fake tensor has a device, but no values: what reads one, or mixes devices, fails."""
    with warnings.catch_warnings(), FakeTensorMode(), torch.device("cuda"):
        warnings.filterwarnings("ignore", "User provided device_type of 'cuda'")
        model = build(ATSS, num_classes=5).train()
        model.matcher = RULES[rule]()
        # Read once, before the first iteration.
        anchor_generator._HAS_CENTERED_CELLS[model.anchor_generator] = True
        with torch.device("cpu"):
            maps = random_predictions(model, SIZE, 2)
        maps = [[x.cuda().requires_grad_() for x in part] for part in maps]
        features, instances = fake_scene()
        losses = model.forward_training(None, features, maps, instances)
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_centerness"]
    for loss in losses.values():
        assert (loss.device.type, loss.dtype, loss.dim()) == ("cuda", torch.float32, 0)
        assert loss.requires_grad


@pytest.mark.usefixtures("no_cached_grids")
@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_labels_in_detectron2s_detectors_of_fake_cuda_tensors(name):
    with FakeTensorMode(), torch.device("cuda"):
        model = build(name, num_classes=5).train()
        anchor_generator._HAS_CENTERED_CELLS[model.anchor_generator] = True
        use_atss(model)
        with torch.device("cpu"):
            maps = random_predictions(model, SIZE, 2)
        found = []
        model.losses = lambda *args: found.extend(args)  # Detectron2's read values for their log
        features, instances = fake_scene()
        model.forward_training(None, features, [[x.cuda() for x in m] for m in maps], instances)
    labels = next(x for x in found if isinstance(x, list) and len(x) == 2)
    assert {x.device.type for x in labels} == {"cuda"}


def test_random_states_of_other_gpus_are_left_alone(monkeypatch):
    """Eight processes once saved the states of all eight GPUs each, with a warning."""
    saved = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: saved.append(devices) or _nothing)
    for is_available, expected in ((True, [3]), (False, [])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=is_available: found)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        with preserved_rng():
            pass
        assert saved.pop() == expected


_nothing = contextlib.nullcontext()


class Event:
    """Records the stream that it was put into, and whether it was waited for."""

    made: list = []  # noqa: RUF012

    def __init__(self):
        self.made.append(self)
        self.stream, self.is_over = None, False

    def record(self, stream=None):
        self.stream = stream

    def synchronize(self):
        self.is_over = True


def test_the_log_waits_for_the_copy_on_the_gpu_of_the_values(monkeypatch):
    """Of "cuda:1" while "cuda:0" is current: an event of the wrong stream waits for nothing."""
    monkeypatch.setattr(Event, "made", [])
    stand_in = SimpleNamespace(
        stack=lambda values: SimpleNamespace(is_cuda=True, device="cuda:1", values=values),
        empty=lambda num, pin_memory: mock.Mock(tolist=lambda: [float(num)], pinned=pin_memory),
        cuda=SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}"),
    )
    monkeypatch.setattr(training_log, "torch", stand_in)
    log = training_log.TrainingLog()
    with EventStorage() as storage:
        log.put({"a": torch.tensor(3)})
        assert storage.latest() == {}
        log.put({"a": torch.tensor(4)})
        assert storage.latest() == {"atss/a": (1.0, 0)}
    first, second = Event.made
    assert first.stream == second.stream == "stream of cuda:1"
    assert (first.is_over, second.is_over) == (True, False)
