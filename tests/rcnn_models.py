"""Detectron2's R-CNNs of its model zoo, made tiny, and batches for them."""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from atss_d2.integration import ATSSRPN, ATSSRPNHead
from atss_d2.modeling import ATSSMatcher, IoUBranchCriterion
from tests.detectron2_models import model_zoo

CHANNELS = 16
STRIDES = (4, 8, 16)
LEVELS = ["p2", "p3", "p4"]
NUM_CLASSES = 3
BOXES = [[6.0, 5, 40, 44], [30, 10, 90, 60], [8, 8, 24, 24]]
KINDS = ("mask_rcnn_fpn", "cascade_rcnn", "panoptic_fpn", "keypoint_rcnn_fpn")


class ToyPyramid(Backbone):
    """Three maps, of strides 4 to 16."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, kernel_size=4, stride=4)
        self._out_features = LEVELS
        self._out_feature_channels = dict.fromkeys(LEVELS, CHANNELS)
        self._out_feature_strides = dict(zip(LEVELS, STRIDES))
        # What PanopticFPN's head reads of an FPN.
        self.out_channels = CHANNELS

    def forward(self, x):
        p2 = self.conv(x).relu()
        p3 = nn.functional.max_pool2d(p2, 2)
        return {"p2": p2, "p3": p3, "p4": nn.functional.max_pool2d(p3, 2)}

    @property
    def size_divisibility(self):
        return 16


@BACKBONE_REGISTRY.register()
def build_toy_pyramid(cfg, input_shape):
    return ToyPyramid()


def rcnn_config(kind="mask_rcnn_fpn", *, with_masks=False):
    """The node of a model of the zoo; without masks, that of Faster or Cascade R-CNN."""
    model = model_zoo.get_config(f"common/models/{kind}.py").model
    model.backbone = L(ToyPyramid)()
    generator = model.proposal_generator
    generator.in_features = LEVELS
    generator.head.in_channels = CHANNELS
    generator.anchor_generator.update(sizes=[[16], [32], [64]], strides=list(STRIDES))
    generator.update(batch_size_per_image=32, pre_nms_topk=(100, 100), post_nms_topk=(40, 40))
    heads = model.roi_heads
    heads.batch_size_per_image = 16
    if kind in ("mask_rcnn_fpn", "cascade_rcnn") and not with_masks:
        for name in ("mask_in_features", "mask_pooler", "mask_head"):
            heads.pop(name)
    for name in list(heads):
        if name.endswith("in_features"):
            heads[name] = LEVELS
        if name.endswith("pooler"):
            heads[name].scales = [1 / s for s in STRIDES]
        if name in ("mask_head", "keypoint_head"):
            heads[name].input_shape = ShapeSpec(channels=CHANNELS, width=14, height=14)
            heads[name].conv_dims = [CHANNELS] * 2
    shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
    for head in heads.get("box_heads", [heads.get("box_head")]):
        head.update(input_shape=shape, fc_dims=[CHANNELS])
    for predictor in heads.get("box_predictors", [heads.get("box_predictor")]):
        predictor.input_shape = ShapeSpec(channels=CHANNELS)
    if kind != "keypoint_rcnn_fpn":
        heads.num_classes = NUM_CLASSES
    if kind == "panoptic_fpn":
        model.sem_seg_head.update(conv_dims=32, num_classes=5)
        model.sem_seg_head.input_shape = {
            name: L(ShapeSpec)(stride=stride, channels=CHANNELS)
            for name, stride in zip(LEVELS, STRIDES)
        }
    return model


def with_atss(model, *, focal=False, **criterion):
    """Gives the node of an R-CNN our RPN, in one of its two settings."""
    generator = model.proposal_generator
    generator._target_ = ATSSRPN
    generator.anchor_matcher = L(ATSSMatcher)(topk=9)
    if focal:
        generator.head._target_ = ATSSRPNHead
        generator.criterion = L(IoUBranchCriterion)(**criterion)
    return model


def build(node, seed=0):
    """Builds a model whose proposals differ from the anchors and from each other in score."""
    torch.manual_seed(seed)
    model = instantiate(node)
    for name, parameter in model.proposal_generator.rpn_head.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)
    return model


def image(boxes=(), seed=0, size=(64, 96), **fields):
    """An input of any R-CNN of the zoo."""
    generator = torch.Generator().manual_seed(seed)
    found = Instances(size)
    found.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    found.gt_masks = BitMasks(masks)
    points = torch.rand(len(boxes), 17, 3, generator=generator) * 20 + 10
    points[..., 2] = 2
    found.gt_keypoints = Keypoints(points)
    for name, value in fields.items():
        found.set(name, torch.tensor(value))
    pixels = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    sem_seg = torch.randint(0, 5, size, generator=generator)
    return {"image": pixels, "instances": found, "sem_seg": sem_seg}


def batch():
    """Two images with boxes and one without, of two sizes."""
    return [image(BOXES, 0), image(BOXES[:1], 1, size=(48, 80)), image((), 2)]


def losses_of(model, images=None, seed=1):
    """Losses of a training step, outside a trainer; what Detectron2 draws follows the seed."""
    model.train()
    torch.manual_seed(seed)
    with EventStorage():
        return model(batch() if images is None else images)


def gradients_of(model, images=None):
    """Gradient of the summed losses for every parameter, by name."""
    model.zero_grad()
    sum(losses_of(model, images).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
