"""Scalars reach Detectron2's event storage."""

import copy
import pickle

import pytest
import torch
from detectron2.utils.events import EventStorage

from atss_d2.modeling.training_log import TrainingLog


def latest(storage):
    """Name -> (value, iteration)."""
    return {name: value for name, value in storage.latest().items() if name.startswith("atss/")}


def test_scalars_of_the_cpu_are_there_at_once():
    log = TrainingLog()
    with EventStorage(7) as storage:
        log.put({"num_positives": torch.tensor(3), "mean_threshold": torch.tensor(0.25)})
        assert latest(storage) == {
            "atss/num_positives": (3.0, 7),
            "atss/mean_threshold": (0.25, 7),
        }
        storage.step()
        log.put({"num_positives": torch.tensor(5)})
        assert latest(storage)["atss/num_positives"] == (5.0, 8)
        assert storage.history("atss/num_positives").values() == [(3.0, 7), (5.0, 8)]


def test_values_of_any_number_type_and_with_gradient():
    values = {
        "a": torch.tensor(True),
        "b": torch.tensor(2, dtype=torch.int64),
        "c": torch.tensor(0.5, dtype=torch.bfloat16),
        "d": torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    }
    with EventStorage() as storage:
        TrainingLog().put(values)
        assert latest(storage) == {
            "atss/a": (1.0, 0),
            "atss/b": (2.0, 0),
            "atss/c": (0.5, 0),
            "atss/d": (0.5, 0),
        }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scalars_of_a_gpu_come_with_the_next_call():
    log = TrainingLog()
    with EventStorage() as storage:
        for step, value in enumerate((3, 5, 7)):
            log.put({"num_positives": torch.tensor(value, device="cuda")})
            if step == 0:
                assert latest(storage) == {}
                copies = copy.deepcopy(log), pickle.loads(pickle.dumps(log))
            else:
                assert latest(storage)["atss/num_positives"][0] == (0, 3, 5)[step]
            storage.step()
    with EventStorage() as storage:
        for duplicate in copies:  # what was on its way stays with the original
            duplicate.put({"num_positives": torch.tensor(9, device="cuda")})
        assert latest(storage) == {}
