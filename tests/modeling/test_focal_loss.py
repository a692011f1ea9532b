"""The focal loss: its definition in loops, fvcore's version, and what it costs."""

import math

import fvcore.nn
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.criterion import focal_loss as focal_loss_module
from atss_d2.modeling.criterion.focal_loss import sigmoid_focal_loss
from tests import reference
from tests.allocations import Allocations

GAMMAS = [0, 0.5, 1, 1.5, 2, 3.7]


def one_hot(labels, num_classes):
    """Targets (R, K) of labels 0..K."""
    return F.one_hot(labels, num_classes + 1)[:, :num_classes].float()


@pytest.mark.parametrize("alpha", [0.25, 0.6, 0.0, 1.0, -1])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_it_is_its_definition(gamma, alpha):
    num_classes = 1 if gamma == 2 else 4
    logits = 4 * torch.randn(30, num_classes)
    labels = torch.randint(-1, num_classes + 1, (30,))
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    by_hand = reference.focal_loss(logits.tolist(), labels.tolist(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss.item(), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, 1.5, -1])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_loss_and_gradient_are_fvcores(gamma, alpha):
    num_classes = 1 if gamma == 2 else 7
    ours = (3 * torch.randn(200, num_classes)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.randint(0, num_classes + 1, (200,))
    loss = sigmoid_focal_loss(ours, labels, alpha=alpha, gamma=gamma)
    expected = fvcore.nn.sigmoid_focal_loss(
        theirs, one_hot(labels, num_classes), alpha=alpha, gamma=gamma, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (grad,), (expected_grad,) = (
        torch.autograd.grad(loss, ours),
        torch.autograd.grad(expected, theirs),
    )
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_gamma_0_is_binary_cross_entropy():
    logits, labels = 5 * torch.randn(50, 3), torch.randint(0, 4, (50,))
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, labels, alpha=-1, gamma=0),
        F.binary_cross_entropy_with_logits(logits, one_hot(labels, 3), reduction="sum"),
    )


def test_ignored_anchors_have_neither_loss_nor_gradient():
    logits = torch.randn(6, 3).requires_grad_()
    labels = torch.tensor([0, -1, 3, -1, 2, -1])
    loss = sigmoid_focal_loss(logits, labels)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits[::2], labels[::2]))
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[1::2] == 0).all()
    assert (grad[::2] != 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("size", [30.0, 100.0, 1e4, 1e30])
def test_extreme_logits_give_finite_loss_and_gradient(size, gamma):
    # 2 x 8 rows: vectorised and scalar code underflow at different logits.
    logits = torch.tensor([[-size, size]]).repeat(16, 1).requires_grad_()
    labels = torch.tensor([0, 1, 2, -1] * 4)
    loss = sigmoid_focal_loss(logits, labels, gamma=gamma)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert grad.isfinite().all()
    # The logits of class 1 are right for label 1 and as wrong as can be for 0 and 2, where the
    # modulating factor is 1 and the loss is the logit; -size is wrong for label 0 only.
    expected = 4 * (0.25 * size + 0.75 * size) + 4 * 0.75 * size
    torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=0)


def grad_of(logits, labels, scale=1.0, **options):
    """Gradient of ``scale`` times the loss."""
    logits = logits.detach().requires_grad_()
    loss = scale * sigmoid_focal_loss(logits, labels, **options)
    return torch.autograd.grad(loss, logits)[0]


def scene(num_anchors=300, num_classes=7):
    """Logits, mostly low, and labels of all kinds."""
    logits = 3 * torch.randn(num_anchors, num_classes) - 3
    return logits, torch.randint(-1, num_classes + 1, (num_anchors,))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_is_exact_to_the_last_digits(gamma):
    """Relative to itself, however small it is: a mean over a million logits hides nothing."""
    logits = torch.linspace(-60, 90, 150001)[:, None]
    for labels in (torch.ones(150001).long(), torch.zeros(150001).long()):
        expected = grad_of(logits.double(), labels, gamma=gamma)
        grad = grad_of(logits, labels, gamma=gamma)
        torch.testing.assert_close(grad.double(), expected, rtol=5e-6, atol=1e-37)
        loss = sigmoid_focal_loss(logits, labels, gamma=gamma).double()
        exact = sigmoid_focal_loss(logits.double(), labels, gamma=gamma)
        torch.testing.assert_close(loss, exact, rtol=3e-6, atol=0)


@settings(max_examples=100, derandomize=True)
@given(
    logit=st.floats(-1e3, 1e3, width=32),
    label=st.sampled_from([0, 1, -1]),
    gamma=st.floats(0, 6),
    alpha=st.floats(-0.5, 1.5),
)
def test_one_logit(logit, label, gamma, alpha):
    logits, labels = torch.tensor([[logit]]), torch.tensor([label])
    expected = reference.focal_loss([[logit]], [label], alpha=alpha, gamma=gamma)
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    # A positive is the background term taken back.
    torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=1e-6 * max(abs(logit), 1))
    assert grad_of(logits, labels, alpha=alpha, gamma=gamma).isfinite().all()


# ------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [2, 1.5])
def test_half_precision_is_computed_in_float32(dtype, gamma):
    logits, labels = scene()
    logits = logits.to(dtype)
    loss = sigmoid_focal_loss(logits, labels, gamma=gamma)
    assert loss.dtype == torch.float32
    expected = sigmoid_focal_loss(logits.float(), labels, gamma=gamma)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    grad = grad_of(logits, labels, gamma=gamma)
    assert grad.dtype == dtype
    expected = grad_of(logits.float(), labels, gamma=gamma)
    # Rounded when it is kept and when it is scaled; tiny ones of float16 to a step of 6e-8.
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(grad.float(), expected, rtol=tolerance, atol=6e-8)


def test_a_gradient_scaler_saves_the_gradient_of_half_precision():
    logits, labels = torch.full((4, 3), -7.0), torch.full((4,), 3)
    scale = 2.0**16
    expected = grad_of(logits, labels)
    assert expected.max() < 2**-25  # 0 in float16
    grad = grad_of(logits.half(), labels, scale)
    torch.testing.assert_close(grad.float() / scale, expected, rtol=1e-3, atol=0)


def test_nothing_changes_under_autocast():
    logits, labels = scene()
    loss, grad = sigmoid_focal_loss(logits, labels), grad_of(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sigmoid_focal_loss(logits, labels), loss)
        assert torch.equal(grad_of(logits, labels), grad)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, 1.5, -1])
def test_gradient_in_float64(gamma, alpha):
    logits = (3 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, -1, 1])
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, alpha=alpha, gamma=gamma), (logits,)
    )


# ------------------------------------------------------------------------ logits of other kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_ignored", [0, 5])
@pytest.mark.parametrize("piece", [1, 7, 20, 21, 70, 209, 210, 10**6])
def test_pieces_change_nothing(piece, num_ignored, dtype, monkeypatch):
    """30 rows of 7: pieces of one row and of two, of some that divide 30 and some that do not."""
    logits, labels = scene(30)
    logits, labels = logits.to(dtype), labels.clamp(min=0)
    labels[:num_ignored] = -1
    loss, grad = sigmoid_focal_loss(logits, labels), grad_of(logits, labels)
    monkeypatch.setattr(focal_loss_module, "_CPU_PIECE", piece)
    # Vectors of numbers and what is left over of them are rounded differently.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_of(logits, labels), grad, rtol=4 * rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_layout(dtype):
    logits, labels = scene(30)
    logits = logits.to(dtype)
    rounding = 8 * torch.finfo(dtype).eps
    for other in (
        logits.T.contiguous().T,
        torch.randn(60, 20).to(dtype)[::2, 3:17:2].copy_(logits),
        logits[:1].expand(30, 7),
    ):
        assert not other.is_contiguous()
        loss, grad = (f(other.contiguous(), labels) for f in (sigmoid_focal_loss, grad_of))
        torch.testing.assert_close(sigmoid_focal_loss(other, labels), loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad_of(other, labels), grad, rtol=rounding, atol=0)
    every_second = labels.repeat_interleave(2)[::2]
    assert torch.equal(grad_of(logits, every_second), grad_of(logits, labels))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_whatever_is_left_out_costs_nothing(value, gamma):
    logits, labels = scene(40)
    labels[::4] = -1
    spoilt = torch.where(labels[:, None] < 0, value, logits)
    loss, grad = (f(spoilt, labels, gamma=gamma) for f in (sigmoid_focal_loss, grad_of))
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, gamma=gamma))
    assert torch.equal(grad, grad_of(logits, labels, gamma=gamma))
    assert (grad[::4] == 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_infinitely_sure_of_background(gamma):
    logits, labels = torch.full((4, 3), -math.inf), torch.full((4,), 3)
    assert sigmoid_focal_loss(logits, labels, gamma=gamma) == 0
    assert (grad_of(logits, labels, gamma=gamma) == 0).all()
    logits[2, 1] = math.inf
    assert sigmoid_focal_loss(logits, labels, gamma=gamma) == math.inf


def test_a_logit_that_is_not_a_number_is_seen():
    logits, labels = scene(30)
    labels = labels.clamp(min=0)
    logits[3, 2] = math.nan
    assert sigmoid_focal_loss(logits, labels).isnan()
    assert grad_of(logits, labels).isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_anchors", [0, 4])
def test_no_anchors_or_only_ignored_ones(num_anchors, dtype):
    logits, labels = torch.randn(num_anchors, 3).to(dtype), torch.full((num_anchors,), -1)
    assert sigmoid_focal_loss(logits, labels) == 0
    torch.testing.assert_close(grad_of(logits, labels), torch.zeros_like(logits))


# -------------------------------------------------------------------------------- as a function


def test_backward_again_gives_the_same():
    logits, labels = scene()
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    first_copy = first.clone()
    second.mul_(0)  # what one owner does to a gradient is not seen by another
    (third,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, first_copy)
    assert torch.equal(third, first_copy)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_scale_of_the_gradient(alpha):
    logits, labels = scene()
    grad = grad_of(logits, labels, alpha=alpha)
    for scale in (0.5, -4.0, 2.0**16):
        torch.testing.assert_close(grad_of(logits, labels, scale, alpha=alpha), scale * grad)
    assert (grad_of(logits, labels, 0.0) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("piece", [7, 100, 10**6])
@pytest.mark.parametrize("highest", [7, 6, 0])
def test_the_way_of_a_gpu_gives_the_same(highest, piece, dtype, monkeypatch):
    logits, labels = scene()
    logits, labels = logits.to(dtype), labels.clamp(max=highest)
    logits[labels < 0] = math.inf
    loss, grad = sigmoid_focal_loss(logits, labels), grad_of(logits, labels)
    monkeypatch.setattr(focal_loss_module, "_is_on_cpu", lambda _: False)
    monkeypatch.setattr(focal_loss_module, "_GPU_PIECE", piece)
    rounding = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad_of(logits, labels), grad, rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_never_waits_for_a_gpu(dtype):
    """Tensors without values: whoever looks at one fails."""
    logits = torch.empty(500, 80, device="meta", dtype=dtype, requires_grad=True)
    labels = torch.empty(500, device="meta", dtype=torch.int64)
    loss = sigmoid_focal_loss(logits, labels)
    loss.backward()
    assert loss.device.type == "meta"
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, 1.0, -1])
def test_what_a_compiler_gets_is_the_same(gamma, alpha, monkeypatch):
    logits, labels = scene()
    logits[labels < 0] = math.inf
    options = {"gamma": gamma, "alpha": alpha}
    loss, grad = (f(logits, labels, **options) for f in (sigmoid_focal_loss, grad_of))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, labels, **options), loss, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(grad_of(logits, labels, **options), grad, rtol=1e-5, atol=1e-8)


def test_it_compiles_without_a_graph_break():
    compiled = torch.compile(
        lambda x, labels: sigmoid_focal_loss(x, labels) / 3, fullgraph=True, backend="aot_eager"
    )
    logits, labels = scene()
    logits.requires_grad_()
    loss = compiled(logits, labels)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels) / 3)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, grad_of(logits, labels, 1 / 3), rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------------------- the cost


def dense_scene():
    """Mostly background, as of a detector."""
    logits, labels = scene(20000, 80)
    return logits, torch.where(torch.rand(20000) < 0.01, labels, 80)


def costs(run):
    with Allocations() as allocations:
        result = run()
    return result, allocations


def test_one_buffer_is_kept():
    logits, labels = dense_scene()
    logits.requires_grad_()
    size = logits.numel() * 4
    buffers = 5 * 4 * focal_loss_module._CPU_PIECE
    loss, forward = costs(lambda: sigmoid_focal_loss(logits, labels))
    assert forward.peak_bytes < size + buffers + 60 * len(labels)
    assert size <= forward.held_bytes < 1.01 * size
    _, backward = costs(lambda: torch.autograd.grad(loss, logits))
    assert backward.peak_bytes < 1.01 * size


def test_without_a_gradient_nothing_is_kept():
    logits, labels = dense_scene()
    for run in (
        lambda: sigmoid_focal_loss(logits, labels),
        lambda: torch.no_grad()(sigmoid_focal_loss)(logits.requires_grad_(), labels),
    ):
        loss, forward = costs(run)
        assert forward.peak_bytes < 5 * 4 * focal_loss_module._CPU_PIECE + 60 * len(labels)
        assert forward.held_bytes < 100
        assert not loss.requires_grad


def test_errors():
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), gamma=-1)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(6,\) and \(6,\)"):
        sigmoid_focal_loss(torch.zeros(6), torch.zeros(6, dtype=torch.int64))
