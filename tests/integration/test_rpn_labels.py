"""How an RPN's anchors are labeled: against loops, without waits; ``use_atss`` on R-CNNs."""

import copy
import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes

from atss_d2 import ATSSMatcher, CenterSamplingMatcher, use_atss, use_matcher
from atss_d2.engine.ema import EMAHook
from atss_d2.integration.rpn_labels import label_and_sample, rpn_targets
from atss_d2.modeling import DDODMatcher, Predictions
from atss_d2.modeling.matchers import grid as grid_module
from atss_d2.modeling.predictions import predictions_from_maps
from benchmarks.pretend_gpu import count, pretend, pretended_gpu
from tests import rcnn_models as r
from tests.reference_matching import atss_match


def rpn_and_anchors(size=(64, 96), *, focal=False, **options):
    rpn = r.build(r.with_atss(r.rcnn_config(), focal=focal)).proposal_generator
    for name, value in options.items():
        setattr(rpn, name, value)
    maps = [torch.zeros(1, 1, size[0] // s, size[1] // s) for s in r.STRIDES]
    return rpn, rpn.anchor_generator(maps), [tuple(x.shape[-2:]) for x in maps]


def instances_of(images):
    return [x["instances"] for x in images]


def by_loops(rpn, anchors, gt_instances):
    """Every image by itself, every box by the paper's algorithm, then Detectron2's sampling."""
    levels = [a.tensor.tolist() for a in anchors]
    labels, boxes = [], []
    for image in gt_instances:
        gt = image.gt_boxes.tensor
        matched = torch.tensor(atss_match(levels, gt.tolist(), num_anchors=3))
        full = (matched >= 0).to(torch.int8)
        positive, negative = subsample_labels(
            full, rpn.batch_size_per_image, rpn.positive_fraction, 0
        )
        sampled = torch.full_like(full, -1)
        sampled[positive], sampled[negative] = 1, 0
        labels.append(sampled)
        boxes.append(gt[matched] if len(gt) else torch.zeros(len(matched), 4))
    return labels, boxes


# One object lies half outside, one wholly outside, one has no area.
ODD = [*r.BOXES, [80.0, 40, 140, 100], [200, 200, 240, 230], [50, 20, 50, 40]]


@pytest.mark.parametrize("batch_size", [16, 10_000])
def test_labels_are_those_of_loops_and_detectron2s_sampling(batch_size):
    rpn, anchors, sizes = rpn_and_anchors(batch_size_per_image=batch_size)
    images = instances_of([r.image(ODD), r.image(), r.image(r.BOXES[:1], 2)])
    for grid_sizes in (sizes, None):
        torch.manual_seed(3)
        labels, boxes = rpn.label_and_sample_anchors(anchors, images, grid_sizes)
        torch.manual_seed(3)
        expected_labels, expected_boxes = by_loops(rpn, anchors, images)
        for found, expected in zip(labels, expected_labels, strict=True):
            assert found.dtype == torch.int8
            assert torch.equal(found, expected)
        for found, expected, label in zip(boxes, expected_boxes, labels, strict=True):
            assert torch.equal(found[label == 1], expected[label == 1])
    assert [(x == 1).any().item() for x in labels] == [True, False, True]
    assert all((x >= 0).sum() == min(batch_size, len(x)) for x in labels)


@pytest.mark.parametrize("focal", [False, True], ids=["sampled", "focal"])
def test_ignore_regions(focal):
    region = [30.0, 10, 90, 60]
    images = instances_of([r.image([r.BOXES[0], region], gt_ignore=[False, True]), r.image()])
    rpn, anchors, sizes = rpn_and_anchors(focal=focal, batch_size_per_image=10_000)
    rpn.anchor_matcher.ignore_ioa_thresh = 0.5
    targets = rpn_targets(rpn, rpn.anchor_matcher, anchors, images, sizes)
    assert {tuple(x) for x in targets.boxes[targets.labels == 0].tolist()} == {tuple(r.BOXES[0])}
    assert (targets.labels == -1).sum(dim=1)[0] > 10
    assert (targets.labels[1] == 1).all()
    labels, _ = label_and_sample(rpn, rpn.anchor_matcher, anchors, images, sizes)
    assert torch.equal(labels[0] == -1, targets.labels[0] == -1)
    assert torch.equal(labels[0] == 1, targets.labels[0] == 0)


def test_anchors_beyond_the_image_are_left_out_on_request():
    """Detectron2's legacy option, which its own rule obeys as well."""
    rpn, anchors, sizes = rpn_and_anchors(anchor_boundary_thresh=0, batch_size_per_image=10_000)
    images = instances_of([r.image(r.BOXES), r.image(r.BOXES, size=(48, 80))])
    labels, _ = rpn.label_and_sample_anchors(anchors, images, sizes)
    for found, image in zip(labels, images, strict=True):
        outside = ~Boxes.cat(anchors).inside_box(image.image_size, 0)
        assert torch.equal(found == -1, outside)


def test_samples_of_boxes_beyond_the_image_are_left_out_too():
    options = {"anchor_boundary_thresh": 0, "anchor_matcher": DDODMatcher(num_anchors=3)}
    rpn, anchors, sizes = rpn_and_anchors(focal=True, **options)
    images = instances_of([r.image(r.BOXES)])
    maps = [torch.rand(1, r.CHANNELS, *size) for size in sizes]
    predictions = predictions_from_maps(
        rpn.rpn_head(maps), num_anchors=[3] * 3, num_classes=1, num_box_values=4
    )
    targets = rpn.label_anchors(anchors, images, predictions, sizes)
    outside = ~Boxes.cat(anchors).inside_box(images[0].image_size, 0)
    for labels in (targets.labels[0], targets.box_labels[0]):
        assert torch.equal(labels == -1, outside)
        assert (labels == 0).any()


def pretended(rpn, anchors, images):
    anchors = [Boxes(pretend(a.tensor)) for a in anchors]
    with pretended_gpu():
        for image in images:
            image.gt_boxes = Boxes(pretend(image.gt_boxes.tensor))
    return anchors, images


def test_labels_make_the_host_wait_for_nothing():
    """And there is no loop over images: as many operators for four as for one."""
    launches = []
    for num_images in (1, 4):
        rpn, anchors, sizes = rpn_and_anchors()
        images = instances_of([r.image(r.BOXES, i) for i in range(num_images)])
        anchors, images = pretended(rpn, anchors, images)
        found, waits = count(
            functools.partial(rpn_targets, rpn, rpn.anchor_matcher, anchors, images, sizes)
        )
        assert waits == {}
        launches.append(sum(found.values()))
    # The classes of an image's objects, all 0, are its only tensor.
    assert launches[1] - launches[0] <= 3


def test_losses_of_all_anchors_make_the_host_wait_for_nothing():
    rpn, anchors, sizes = rpn_and_anchors(focal=True)
    numbers = [len(a) for a in anchors]
    shapes = [[(2, n, 1) for n in numbers], [(2, n, 4) for n in numbers], [(2, n) for n in numbers]]
    maps = [[pretend(torch.randn(*x)).requires_grad_() for x in part] for part in shapes]
    anchors, images = pretended(rpn, anchors, instances_of([r.image(r.BOXES), r.image()]))
    rpn._log = None

    def run():
        targets = rpn.label_anchors(anchors, images, None, sizes)
        losses = rpn.dense_losses(Predictions(*maps), targets)
        sum(losses.values()).backward()

    assert count(run)[1] == {}


# --------------------------------------------------------------------- use_atss on an R-CNN


@pytest.fixture
def no_look(monkeypatch):
    """A matcher that has to find out about grids fails."""

    def refuse(*_):
        raise AssertionError("a look at the anchors")

    monkeypatch.setattr(grid_module, "grid_sizes_of", refuse)


def test_use_atss_gives_the_losses_of_atssrpn(no_look):
    expected = r.losses_of(r.build(r.with_atss(r.rcnn_config())))
    stock = r.build(r.rcnn_config())
    model = r.build(r.rcnn_config())
    assert use_atss(model) is model
    assert list(model.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(r.losses_of(model), expected, rtol=0, atol=0)
    node = use_atss(r.rcnn_config())
    assert node.model_class is GeneralizedRCNN
    node.matcher.topk = 9
    torch.testing.assert_close(r.losses_of(r.build(node)), expected, rtol=0, atol=0)
    use_atss(model.proposal_generator)  # an RPN alone
    torch.testing.assert_close(r.losses_of(model), expected, rtol=0, atol=0)
    assert r.losses_of(stock)["loss_rpn_cls"] != expected["loss_rpn_cls"]


def test_none_restores_detectron2s_rule():
    stock, model = r.build(r.rcnn_config()), r.build(r.rcnn_config())
    attributes = set(vars(model.proposal_generator))
    use_matcher(use_atss(use_matcher(model, CenterSamplingMatcher, radius=1.5)), None)
    assert set(vars(model.proposal_generator)) == attributes
    torch.testing.assert_close(r.losses_of(model), r.losses_of(stock), rtol=0, atol=0)
    node = r.rcnn_config()
    before = str(node)
    assert str(use_matcher(use_atss(node), None)) == before


@pytest.mark.parametrize(
    "duplicate",
    [lambda x: pickle.loads(pickle.dumps(x)), lambda x: EMAHook(x).model, copy.deepcopy],
    ids=["pickle", "EMA", "deepcopy"],
)
def test_copies_are_changed_too_and_refer_to_themselves(duplicate):
    model = use_atss(r.build(r.rcnn_config()))
    expected = r.losses_of(model)
    twin = duplicate(model)
    rpn = twin.proposal_generator
    assert rpn.forward.args[0] is rpn.label_and_sample_anchors.args[0] is rpn
    torch.testing.assert_close(r.losses_of(twin), expected, rtol=0, atol=0)
    use_matcher(twin, None)
    torch.testing.assert_close(r.losses_of(model), expected, rtol=0, atol=0)


class MyRPN(RPN):
    """A user's class: losses that weigh double, and a forward pass of its own."""

    def losses(self, *args):
        return {name: 2 * loss for name, loss in super().losses(*args).items()}

    def forward(self, *args):
        return super().forward(*args)


def test_subclasses_keep_what_they_change():
    node = r.rcnn_config()
    node.proposal_generator._target_ = MyRPN
    found = r.losses_of(use_atss(r.build(node)))
    expected = r.losses_of(use_atss(r.build(r.rcnn_config())))
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close(found[name], 2 * expected[name])


class ByPredictions(ATSSMatcher):
    needs_predictions = True


def test_errors():
    model = r.build(r.rcnn_config())
    with pytest.raises(ValueError, match="label_and_sample_anchors has no room: use ATSSRPN with"):
        use_matcher(model, ByPredictions)
    with pytest.raises(ValueError, match="anchor_scale=8 .* leave it out"):
        use_atss(model, anchor_scale=8)
    with pytest.raises(TypeError, match="must be a DenseMatcher, got int"):
        use_matcher(model, 3)
    ours = r.with_atss(r.rcnn_config())
    with pytest.raises(TypeError, match="ATSSRPN has a matcher of its own: set anchor_matcher"):
        use_atss(r.build(ours))
    with pytest.raises(
        TypeError, match="ATSSRPN has a .* key anchor_matcher of proposal_generator"
    ):
        use_atss(ours)
    model.proposal_generator = None
    with pytest.raises(TypeError, match="R-CNNs with an RPN, .* got GeneralizedRCNN, which has no"):
        use_atss(model)
    levels = SimpleNamespace(num_anchors=[3, 1], strides=[4, 8])
    rpn = r.build(r.rcnn_config()).proposal_generator
    del rpn.anchor_generator
    vars(rpn)["anchor_generator"] = levels
    with pytest.raises(ValueError, match=r"on every level, but .* gives \[3, 1\]"):
        use_atss(rpn)
    levels.box_dim = 5
    with pytest.raises(ValueError, match="rules compare upright boxes, but RPN rotates them"):
        use_atss(rpn)


def test_soft_targets_need_a_criterion():
    class Soft(ATSSMatcher):
        def match(self, scene):
            found = super().match(scene)
            return found._replace(soft=(found.matched_idxs >= 0).float())

    model = use_matcher(r.build(r.rcnn_config()), Soft())
    with pytest.raises(TypeError, match="Soft gives soft targets, .* use ATSSRPN with a criterion"):
        r.losses_of(model)
    node = r.with_atss(r.rcnn_config(), focal=True)
    model = instantiate(node)
    model.proposal_generator.anchor_matcher = Soft()
    assert r.losses_of(model)["loss_rpn_iou"] > 0
