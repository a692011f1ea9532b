"""docs/integration.md: its Python blocks, one after the other, and what each leaves behind."""

import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator import RPN

from atss_d2.integration import ATSSRPN, ATSSRPNHead
from atss_d2.modeling import IoUBranchCriterion
from tests.detectron2_models import anchors_of, image, losses_of
from tests.documents.blocks import read


def test_the_snippets_on_integration_run():
    """In the order of the document; what each of them leaves behind is what it says."""
    blocks = [block.text for block in read("docs/integration.md") if block.language == "python"]
    model_block, lazy, yaml, *rcnns, ignore, tensors, own_rule = blocks
    names = {}
    exec(model_block, names)
    assert type(names["model"]) is RetinaNet
    assert "label_anchors" not in vars(names["model"])

    exec(lazy, names)
    assert type(names["model"]) is FCOS
    assert names["model"].num_classes == 3
    assert names["model"].label_anchors.matcher.topk == 13

    exec(yaml, names)
    model = names["model"]
    assert isinstance(model, RetinaNet)
    assert (model.label_anchors.matcher.topk, model.label_anchors.matcher.num_anchors) == (9, 9)

    changed, lazy_rcnn, yaml_rcnn = rcnns
    own = {**names}  # the rest of the document goes on with the RetinaNet
    exec(changed, own)
    assert type(own["rcnn"].proposal_generator) is RPN
    assert "forward" not in vars(own["rcnn"].proposal_generator)
    for block in (lazy_rcnn, yaml_rcnn):
        exec(block, own)
        rpn = own["rcnn"].proposal_generator
        assert type(rpn) is ATSSRPN
        assert (rpn.anchor_matcher.topk, rpn.anchor_matcher.num_anchors) == (9, 3)
        assert type(rpn.criterion) is IoUBranchCriterion
        assert type(rpn.rpn_head) is ATSSRPNHead

    exec(ignore, names)
    assert names["mapper"].keep_ignored
    assert model.label_anchors.matcher.ignore_ioa_thresh == 0.5

    exec(tensors, names)
    first, second = names["matched_idxs"]
    assert first.shape == (30 * 40,)
    assert set(first.tolist()) == {-1, 0, 1}
    assert (second == -1).all()

    exec(own_rule, names)
    boxes = [[40.0, 40, 100, 120], [60, 60, 110, 110], [70, 70, 70, 90]]
    crowd = [[0.0, 0, 128, 128]]
    images = [
        image(boxes + crowd, size=(128, 128), gt_ignore=[False, False, False, True]),
        image(size=(128, 128)),
    ]
    matcher = model.label_anchors.matcher
    assert (type(matcher).__name__, matcher.part) == ("CentralPartMatcher", 0.4)
    matched, empty = matcher(
        anchors_of(model, (128, 128)), [x["instances"].gt_boxes for x in images]
    )
    assert (set(matched.tolist()), set(empty.tolist())) == ({-1, 0, 1, 3}, {-1})
    flags = [torch.tensor([False, False, False, True]), torch.zeros(0, dtype=torch.bool)]
    matched, _ = matcher(
        anchors_of(model, (128, 128)), [x["instances"].gt_boxes for x in images], flags
    )
    assert set(matched.tolist()) == {-1, 0, 1}
    model.backbone.bottom_up.stem.conv1.weight.data *= 0.01  # MSRA weights would tame it
    assert losses_of(model, images)["loss_box_reg"] > 0
