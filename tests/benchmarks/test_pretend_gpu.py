"""What is counted, and that the values are those of the CPU."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from benchmarks.cases.losses import DETECTORS, training_pass
from benchmarks.models import ATSS
from benchmarks.pretend_gpu import PretendTensor, count, pretend, pretended_gpu

X = torch.arange(6.0).view(2, 3)


def counts_of(run):
    """Launches and waits of ``run(x)``, and its result."""
    x = pretend(X)
    with pretended_gpu() as gpu:
        out = run(x)
        return dict(gpu.launches), dict(gpu.waits), out


def values_of(tensor):
    assert type(tensor) is PretendTensor
    assert tensor.device.type != "cpu"
    return tensor.values


@pytest.mark.parametrize(
    ("run", "launches"),
    [
        (lambda x: x * 2 + 1, {"mul": 1, "add": 1}),
        (lambda x: x.view(3, 2).t()[1:, None].expand(1, 1, 3), {}),
        (lambda x: x.clone(), {"clone": 1}),
        (lambda x: x.split(1, dim=1)[2], {}),
        (lambda x: torch.cat([x, x]), {"cat": 1}),
        (lambda x: x.new_zeros(2, 2), {"new_zeros": 1}),
        (lambda x: torch.arange(4, device=x.device), {"arange": 1}),
        # torch makes a tensor of the number, on the device
        (lambda x: torch.where(x > 2, x, 0.0), {"gt": 1, "scalar_tensor": 1, "where": 1}),
        (lambda x: x.gather(1, (x[:, :1] > 1).long()), {"gt": 1, "_to_copy": 1, "gather": 1}),
        (lambda x: x.topk(2, dim=1).values, {"topk": 1}),
        (lambda x: x.to(torch.float32), {}),
        (lambda x: x.double(), {"_to_copy": 1}),
        (lambda x: x[x[:, 0].long().clamp(max=1)], {"_to_copy": 1, "clamp": 1, "index": 1}),
        (lambda x: x.masked_fill(x > 2, -1), {"gt": 1, "masked_fill": 1}),
    ],
)
def test_launches_without_a_wait(run, launches):
    found, waits, out = counts_of(run)
    assert found == launches
    assert waits == {}
    torch.testing.assert_close(values_of(out), run(X.clone()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("run", "waits"),
    [
        (lambda x: float(x.sum()), {"_local_scalar_dense": 1}),
        (lambda x: 1 if x.sum() > 1 else 0, {"_local_scalar_dense": 1}),
        (lambda x: x.tolist(), {"_to_copy": 1}),
        (lambda x: x.nonzero(), {"nonzero": 1}),
        (lambda x: x[x > 2], {"index": 1}),
        (lambda x: x.cpu(), {"_to_copy": 1}),
        (lambda x: x[:, [0, 2]], {"_to_copy": 1}),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), {"_to_copy": 1}),
        (lambda x: x.new_tensor(3), {"_to_copy": 1}),
        (lambda x: torch.ones(2).to(x.device), {"_to_copy": 1}),
        (lambda x: x.masked_select(x > 2), {"masked_select": 1}),
    ],
)
def test_waits(run, waits):
    _, found, out = counts_of(run)
    assert found == waits
    expected = run(X.clone())
    if isinstance(expected, torch.Tensor):
        values = out.values if isinstance(out, PretendTensor) else out
        torch.testing.assert_close(values, expected, rtol=0, atol=0)
    else:
        assert out == expected


def test_copies_from_the_host_need_not_wait():
    launches, waits, out = counts_of(lambda x: torch.ones(2).to(x.device, non_blocking=True))
    assert (launches, waits) == ({"_to_copy": 1}, {})
    assert values_of(out).tolist() == [1, 1]


def test_a_number_goes_where_a_mask_is_true_without_a_wait():
    def fill(x):
        x[x > 2] = 7.0
        return x

    launches, waits, out = counts_of(fill)
    assert launches.keys() >= {"gt", "index_put_"}
    assert waits == {}
    assert values_of(out).tolist() == [[0, 1, 2], [7, 7, 7]]

    def put(x):
        x[x > 2] = x[1].clone()
        return x

    assert counts_of(put)[1] == {"index_put_": 1}


def test_an_operator_in_place_gives_the_same_tensor():
    x = pretend(X)
    with pretended_gpu():
        assert x.add_(1) is x
    assert x.values.tolist() == (X + 1).tolist()


def test_gradients():
    x = pretend(X).requires_grad_()
    with pretended_gpu() as gpu:
        (x * x).sum().backward()
    torch.testing.assert_close(values_of(x.grad), 2 * X)
    assert gpu.launches["mul"] >= 3
    assert not gpu.waits


def test_autocast_knows_the_device():
    def run(x):
        with torch.autocast(x.device.type, enabled=False):
            return x + 1

    assert counts_of(run)[2].values.tolist() == (X + 1).tolist()
    with pytest.raises(RuntimeError):
        torch.autocast(pretend(X).device.type)


def test_outside_nothing_is_computed():
    with pytest.raises(RuntimeError, match="outside of `PretendGPU`"):
        pretend(X) + 1


def test_tensors_without_values_are_refused():
    x = pretend(X)
    empty = torch.empty(2, 3, device="meta")
    with pretended_gpu(), pytest.raises(RuntimeError, match="without values"):
        x + empty


def test_the_second_call_counts():
    cache = []
    x = pretend(X)

    def run():
        if not cache:
            cache.append(torch.ones(2, 3).to(x.device))
        return x * cache[0]

    launches, waits = count(run)
    assert (dict(launches), dict(waits)) == ({"mul": 1}, {})


def test_structures_of_detectron2_stay_on_the_device():
    def run(x):
        boxes = Boxes(torch.cat([x, x], dim=1)[:, :4])
        instances = Instances((9, 9), gt_boxes=boxes)
        return instances[torch.arange(2, device=x.device) > 0].gt_boxes.area()

    _, waits, out = counts_of(run)
    assert type(out) is PretendTensor
    assert waits == {"index": 1}


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_are_those_of_the_cpu(name):
    """Nothing gets lost on the way: the same losses, the same gradients."""
    arguments = (64, 96), 2, 3
    model = DETECTORS[name](num_classes=5).train()
    run, predictions = training_pass(model, *arguments)
    expected = run()
    assert all(level.grad is not None for level in predictions[:5])

    model = DETECTORS[name](num_classes=5).train()
    run, pretended = training_pass(model, *arguments, pretended=True)
    with pretended_gpu() as gpu:
        losses = run()
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        torch.testing.assert_close(loss.values, expected[key].detach())
    for level, reference in zip(pretended, predictions, strict=True):
        torch.testing.assert_close(level.grad.values, reference.grad)
    assert gpu.launches.total() > 50
    if name != ATSS:
        assert gpu.waits.total() > 0
