"""What ``use_atss`` and ``use_matcher`` leave alone: weights, inference, copies, export."""

import pickle

import pytest
import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes

from atss_d2 import TopKMatcher, use_atss, use_matcher
from atss_d2.engine.ema import EMAHook
from tests import detectron2_models as d2

BUILDERS = [d2.retinanet, d2.fcos]


@pytest.mark.parametrize("build", BUILDERS)
def test_weights_and_detections_do_not_change(build):
    stock, model = build(), build()
    before = d2.detections_of(model)
    assert use_atss(model) is model
    assert type(model) is type(stock)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in model.named_modules()] == [n for n, _ in stock.named_modules()]
    for a, b in zip(before, d2.detections_of(model), strict=True):
        assert len(a) > 3
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "duplicate",
    [lambda x: pickle.loads(pickle.dumps(x)), lambda x: EMAHook(x).model],
    ids=["pickle", "EMA"],
)
def test_copies_are_changed_too_and_refer_to_themselves(build, duplicate):
    stock, model = build(), use_atss(build(), topk=4)
    d2.losses_of(model)  # copied after use, with whatever it remembers
    twin = duplicate(model)
    normalizer = model.loss_normalizer
    del twin.loss_normalizer
    losses = d2.losses_of(twin)  # a copy that used the original would move its normalizer
    assert model.loss_normalizer == normalizer
    torch.testing.assert_close(losses, d2.losses_of(use_atss(build(), topk=4)))
    assert not torch.equal(losses[next(iter(losses))], d2.losses_of(stock)[next(iter(losses))])
    use_matcher(twin, None)
    assert model.label_anchors.matcher.topk == 4


@pytest.mark.parametrize("build", BUILDERS)
def test_undoing(build):
    stock, model = build(), build()
    attributes = set(vars(model))
    use_matcher(use_atss(use_matcher(model, TopKMatcher)), None)
    assert set(vars(model)) == attributes
    torch.testing.assert_close(d2.losses_of(model), d2.losses_of(stock), rtol=0, atol=0)
    assert use_matcher(model, None) is model  # nothing to undo


class MyRetinaNet(RetinaNet):
    """A user's class: other labels, and losses that weigh double."""

    def label_anchors(self, anchors, gt_instances):
        raise AssertionError("replaced")

    def losses(self, *args):
        return {name: 2 * loss for name, loss in super().losses(*args).items()}


class MyFCOS(FCOS):
    label_anchors = MyRetinaNet.label_anchors

    def losses(self, *args):
        return {name: 2 * loss for name, loss in super().losses(*args).items()}


@pytest.mark.parametrize(("build", "subclass"), [(d2.retinanet, MyRetinaNet), (d2.fcos, MyFCOS)])
def test_subclasses_keep_what_they_change(build, subclass):
    losses = d2.losses_of(use_atss(build(model_class=subclass)))
    expected = d2.losses_of(use_atss(build()))
    torch.testing.assert_close(losses, {name: 2 * loss for name, loss in expected.items()})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("build", BUILDERS)
def test_tracing(build):
    model = use_atss(build()).eval()
    example, other = [d2.image(seed=i)["image"].float() for i in (0, 1)]
    adapter = TracingAdapter(model, [{"image": example}]).eval()
    traced = torch.jit.trace(adapter, (example,), check_trace=False)
    (expected,) = d2.detections_of(model, [{"image": other}])
    boxes, classes, scores, _ = traced(other)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(classes, expected.pred_classes)


def test_scripting():
    """Of RetinaNet; Detectron2's FCOS cannot be scripted with or without us."""
    fields = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
    stock, changed = [
        scripting_with_instances(model.eval(), fields)
        for model in (d2.retinanet(), use_atss(d2.retinanet()))
    ]
    images = [{"image": d2.image()["image"]}]
    expected, result = stock(images)[0], changed(images)[0]
    assert len(expected) > 3
    assert torch.equal(result.scores, expected.scores)
    assert torch.equal(result.pred_boxes.tensor, expected.pred_boxes.tensor)
