"""The yaml keys of this project, with their defaults: ``MODEL.ATSS`` and ``MODEL.TORCHVISION``.

A key in lower case is the name of an argument: ``MODEL.ATSS.TEST_NMS_THRESH`` sets
``test_nms_thresh`` of :class:`atss_d2.ATSS`. tools/write_yaml_keys.py generates docs/yaml_keys.md
from this file.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_atss_config(cfg: CN) -> None:
    """Adds the keys of this project to a Detectron2 cfg.

    Detectron2's own keys are not changed, so the same cfg still builds Detectron2's own models.
    Backbone, anchors, solver and data use Detectron2's keys; ``configs/yaml/`` sets the values of
    the paper.

    Args:
        cfg: A cfg from ``detectron2.config.get_cfg()``, changed in place.
    """
    # ---------------------------------------------------------------------------- the detector
    _C = cfg.MODEL.ATSS = CN()
    # K, the number of foreground classes; background is label K.
    _C.NUM_CLASSES = 80
    # Class ids and names, [{"id": 1, "name": "tree"}, ...]; training fills them in from the data
    # set, so that they are saved with the model.
    _C.CATEGORIES = []
    # Whether annotations and image files are looked at before the first iteration.
    _C.CHECK_DATA = True
    # Feature maps of the backbone that the head uses, from high to low resolution. None: all.
    _C.HEAD_IN_FEATURES = None

    # ------------------------------------------------------------------------------- the head
    _C.HEAD = CN()
    # The head: "ATSSHead", or another one of HEAD_REGISTRY. Its arguments are the following keys,
    # and those of the node named after it, MODEL.ATSS.MY_HEAD for MyHead.
    _C.HEAD.NAME = "ATSSHead"
    # Channels of each convolution of a tower.
    _C.HEAD.CONV_DIMS = (256, 256, 256, 256)
    # Norm after each tower convolution: "GN", "BN", "SyncBN", ...; "" for none.
    _C.HEAD.NORM = "GN"
    # Whether the tower convolutions have a bias, as in the authors' code; mmdetection's have none.
    _C.HEAD.CONV_BIAS = True
    # Whether the first convolution of both towers is a deformable one without masks (DDOD).
    _C.HEAD.DEFORM_FIRST_CONV = False
    # Whether the last convolution of both towers is a modulated deformable one (DCN models).
    _C.HEAD.DEFORM_LAST_CONV = False
    # Initial score of every class.
    _C.HEAD.PRIOR_PROB = 0.01
    # Whether centerness is predicted.
    _C.HEAD.WITH_CENTERNESS = True
    # Whether each level has a learnable scalar on its box output.
    _C.HEAD.WITH_SCALES = True
    # Initial bias of the box predictor: 0 for Box2BoxTransform, 4 for PointDistances.
    _C.HEAD.BBOX_PRED_BIAS = 0.0
    # Side of the kernels of the predictors.
    _C.HEAD.PRED_KERNEL_SIZE = 3

    _C.TOOD_HEAD = CN()
    # Channels of each shared convolution of "TOODHead", all equal. Its other keys are those above.
    _C.TOOD_HEAD.CONV_DIMS = (256, 256, 256, 256, 256, 256)

    _C.VF_NET_HEAD = CN()
    # VFNetHead, which also takes HEAD.NORM, HEAD.DEFORM_LAST_CONV and HEAD.PRIOR_PROB: channels of
    # each convolution of a tower; the branch of the first box has one more.
    _C.VF_NET_HEAD.CONV_DIMS = (256, 256, 256)
    # Whether the tower convolutions have a bias.
    _C.VF_NET_HEAD.CONV_BIAS = False
    # First distance that is predicted as 0 = log(1), in strides.
    _C.VF_NET_HEAD.UNIT_DISTANCE = 8.0
    # Factor of the gradient that reaches the first box through the places of the samples.
    _C.VF_NET_HEAD.STAR_GRADIENT = 0.1

    # Whether P7 is computed from ReLU(P6); mmdetection computes it from P6 itself.
    _C.FPN = CN()
    _C.FPN.P7_RELU = True

    # Blocks of DyHead between the backbone and the head: 0 for none, 6 in the paper, which also has
    # HEAD.CONV_DIMS () and HEAD.PRED_KERNEL_SIZE 1.
    _C.DY_HEAD = CN()
    _C.DY_HEAD.NUM_BLOCKS = 0
    # Channels of all levels behind the blocks.
    _C.DY_HEAD.CHANNELS = 256
    # Offsets of the convolution of the upper level: "resize", or "flattened" for published weights.
    _C.DY_HEAD.OFFSETS_OF_UPPER_LEVEL = "resize"
    # Whether offsets start at zero, as by default in mmdetection.
    _C.DY_HEAD.ZERO_INIT_OFFSETS = False
    # Groups of the GroupNorm after each deformable convolution.
    _C.DY_HEAD.NORM_GROUPS = 16
    # Images are padded to a multiple of this; 128 in the authors' release. None: the backbone's.
    _C.DY_HEAD.SIZE_DIVISIBILITY = None

    # ------------------------------------------------------------------------------- anchors
    # Sizes, aspect ratios and offset are Detectron2's MODEL.ANCHOR_GENERATOR.*. This is the shift
    # in pixels that ShiftedAnchorGenerator adds to all centers; 0.5 gives the authors' anchors.
    _C.ANCHOR_GENERATOR = CN()
    _C.ANCHOR_GENERATOR.CENTER_SHIFT = 0.0

    # ----------------------------------------------------------------------- sample selection
    _C.MATCHER = CN()
    # The rule: "ATSSMatcher", "IoUMatcher", "ScaleRangeMatcher", "CenterSamplingMatcher",
    # "TopKMatcher", "PAAMatcher", "DDODMatcher", "TaskAlignedMatcher", "SimOTAMatcher",
    # "DynamicSoftLabelMatcher", or your own rule, registered in MATCHER_REGISTRY. Its arguments are
    # the keys of the node named after it, MODEL.ATSS.MY_RULE for MyRule.
    _C.MATCHER.NAME = "ATSSMatcher"

    # For all rules: background anchors are ignored if an ignore region (a crowd) covers more than
    # this fraction of their area. None: they stay background.
    _C.MATCHER.IGNORE_IOA_THRESH = None
    # For all rules but SimOTAMatcher and DynamicSoftLabelMatcher: a center is inside a box if it is
    # farther than this from all four sides, in pixels. None (ATSSMatcher and TopKMatcher): a
    # positive need not have its center in its box.
    _C.MATCHER.CENTER_EPSILON = 0.01
    # For all rules that do not see predictions: pixels subtracted from each of these distances. 0
    # is continuous geometry, 0.5 gives the labels of the authors' inclusive corners.
    _C.MATCHER.INSET = 0.0

    # ATSSMatcher: k, candidates per level and per anchor at a location (Sec. 3.2).
    _C.MATCHER.TOPK = 9
    # ATSSMatcher: the overlap measure: "iou", "giou" or "diou".
    _C.MATCHER.METRIC = "iou"
    # ATSSMatcher: the threshold is mean + STD_FACTOR x standard deviation; 1 in the paper.
    _C.MATCHER.STD_FACTOR = 1.0
    # ATSSMatcher: whether the variance is divided by the number of candidates minus one.
    _C.MATCHER.UNBIASED_STD = True
    # ATSSMatcher: n; the n best candidates of every box are also positive. 0 in the paper.
    _C.MATCHER.MIN_POSITIVES = 0

    _C.IOU_MATCHER = CN()
    # IoU below which an anchor is background, and IoU from which it is positive.
    _C.IOU_MATCHER.THRESHOLDS = (0.4, 0.5)
    # Whether the best anchors of a box are positive regardless of their IoU.
    _C.IOU_MATCHER.ALLOW_LOW_QUALITY_MATCHES = True
    # Whether a best anchor of a box belongs to it even if another overlaps more (mmdetection).
    _C.IOU_MATCHER.LOW_QUALITY_OVERRIDE = False
    # Whether positives whose center is not inside their box are ignored.
    _C.IOU_MATCHER.CENTER_IN_GT = False

    _C.SCALE_RANGE_MATCHER = CN()
    # Upper end of a level's size range, in units of its stride.
    _C.SCALE_RANGE_MATCHER.RANGE_FACTOR = 8.0

    _C.CENTER_SAMPLING_MATCHER = CN()
    # Half the side of the sampling square, in strides; None with TOPK.
    _C.CENTER_SAMPLING_MATCHER.RADIUS = 1.5
    # Candidates per level, counted in anchors; None with RADIUS.
    _C.CENTER_SAMPLING_MATCHER.TOPK = None
    # Upper end of a level's size range, in units of its stride.
    _C.CENTER_SAMPLING_MATCHER.RANGE_FACTOR = 8.0

    _C.TOPK_MATCHER = CN()
    # Anchors per box, over all levels.
    _C.TOPK_MATCHER.TOPK = 9

    _C.TASK_ALIGNED_MATCHER = CN()
    # Candidates per box, over all levels.
    _C.TASK_ALIGNED_MATCHER.TOPK = 13
    # Exponent of the score.
    _C.TASK_ALIGNED_MATCHER.ALPHA = 1.0
    # Exponent of the IoU.
    _C.TASK_ALIGNED_MATCHER.BETA = 6.0
    # Number of first iterations in which an ATSSMatcher selects instead; 30000 of 90000 in TOOD.
    _C.TASK_ALIGNED_MATCHER.WARM_UP_ITERATIONS = 0

    # "SimOTAMatcher" of YOLOX.
    _C.SIM_OTA_MATCHER = CN()
    # Number of the highest IoUs whose sum is the number of positives.
    _C.SIM_OTA_MATCHER.TOPK = 10
    # Half the side of the square in which positives lie, in strides; 2.5 in mmdetection.
    _C.SIM_OTA_MATCHER.CENTER_RADIUS = 1.5
    # Whether they must also lie inside the box, as in mmdetection.
    _C.SIM_OTA_MATCHER.INSIDE_BOX = False
    # Weight of the logarithm of the IoU in the cost.
    _C.SIM_OTA_MATCHER.IOU_WEIGHT = 3.0

    # "DynamicSoftLabelMatcher" of RTMDet.
    _C.DYNAMIC_SOFT_LABEL_MATCHER = CN()
    # Number of the highest IoUs whose sum is the number of positives.
    _C.DYNAMIC_SOFT_LABEL_MATCHER.TOPK = 13
    # Distance from the center of a box at which it costs 1, in strides.
    _C.DYNAMIC_SOFT_LABEL_MATCHER.CENTER_RADIUS = 3.0
    # Weight of the logarithm of the IoU in the cost.
    _C.DYNAMIC_SOFT_LABEL_MATCHER.IOU_WEIGHT = 3.0

    _C.DDOD_MATCHER = CN()
    # Besides the keys of ATSSMatcher but METRIC: a of the samples of the classification, from 0
    # (selected by score alone) to 1 (by IoU alone).
    _C.DDOD_MATCHER.CLS_ALPHA = 0.8
    # a of the samples of boxes and their quality.
    _C.DDOD_MATCHER.BOX_ALPHA = 0.5

    _C.PAA_MATCHER = CN()
    # Candidates per box and level.
    _C.PAA_MATCHER.TOPK = 9
    # IoU from which an anchor is matched to a box, before the selection.
    _C.PAA_MATCHER.IOU_THRESH = 0.1
    # Whether a best anchor of a box is matched to it even if another overlaps more (mmdetection).
    _C.PAA_MATCHER.LOW_QUALITY_OVERRIDE = False
    # Weight of the GIoU loss in the cost of a candidate; 1.3 in mmdetection.
    _C.PAA_MATCHER.GIOU_COST_WEIGHT = 1.0
    # Focal loss in the cost of a candidate.
    _C.PAA_MATCHER.FOCAL_LOSS_ALPHA = 0.25
    _C.PAA_MATCHER.FOCAL_LOSS_GAMMA = 2.0
    # Whether all candidates are positive if none is in the low component or there is only one; in
    # mmdetection, none is.
    _C.PAA_MATCHER.KEEP_UNDIVIDED = True

    # ---------------------------------------------------------------------------- regression
    # "Box2BoxTransform": deltas from an anchor; "PointDistances": distances from its center;
    # "DistanceDistributions": distributions of these distances.
    _C.BOX_CODER = "Box2BoxTransform"
    _C.BOX2BOX_TRANSFORM = CN()
    # Factors of (dx, dy, dw, dh).
    _C.BOX2BOX_TRANSFORM.WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # Whether dw and dh are also clamped from below when decoding, as in mmdetection.
    _C.BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES = False
    _C.POINT_DISTANCES = CN()
    # Side of an anchor, in strides.
    _C.POINT_DISTANCES.ANCHOR_SCALE = 8.0
    # Pixels subtracted from each of the four distances.
    _C.POINT_DISTANCES.INSET = 0.0
    # Whether negative distances count as 0; TOODHead needs False.
    _C.POINT_DISTANCES.CLAMP = True
    _C.DISTANCE_DISTRIBUTIONS = CN()
    # Bins of a side: distances of 0 to NUM_BINS - 1 strides.
    _C.DISTANCE_DISTRIBUTIONS.NUM_BINS = 17
    # Side of an anchor, in strides.
    _C.DISTANCE_DISTRIBUTIONS.ANCHOR_SCALE = 8.0

    # -------------------------------------------------------------------------------- losses
    _C.CRITERION = CN()
    # The losses: "ATSSCriterion", "IoUBranchCriterion", "SoftTargetCriterion" (GFL, varifocal
    # loss), "VFNetCriterion", "DDODCriterion", "TaskAlignedCriterion" (TOOD), or your own class,
    # registered in CRITERION_REGISTRY. Its arguments are those of the following keys that it takes,
    # and the keys of the node named after it, MODEL.ATSS.MY_CRITERION for MyCriterion.
    _C.CRITERION.NAME = "ATSSCriterion"
    # Weight of positives in the focal loss.
    _C.FOCAL_LOSS_ALPHA = 0.25
    # Exponent of the focal loss.
    _C.FOCAL_LOSS_GAMMA = 2.0
    # "giou", "diou", "ciou" (of decoded boxes) or "smooth_l1" (of deltas).
    _C.BOX_REG_LOSS_TYPE = "giou"
    # Where smooth L1 turns from quadratic to linear.
    _C.SMOOTH_L1_BETA = 0.11
    # Weight of the box loss.
    _C.BOX_REG_LOSS_WEIGHT = 2.0
    # Whether the box loss of a positive is weighted by its centerness target.
    _C.CENTERNESS_WEIGHTED_BOX_LOSS = True
    # Weight of the centerness loss.
    _C.CENTERNESS_LOSS_WEIGHT = 1.0
    # Pixels subtracted from the four distances of a centerness target, see MATCHER.INSET.
    _C.CENTERNESS_INSET = 0.0
    # Whether an image without positives counts as one positive, as in mmdetection.
    _C.FLOOR_PER_IMAGE = False

    _C.DDOD_CRITERION = CN()
    # DDODCriterion: L, levels of the head.
    _C.DDOD_CRITERION.NUM_LEVELS = 5
    # Whether one counter of positives serves the weights of all losses, as in mmdetection.
    _C.DDOD_CRITERION.SHARED_COUNTER = False

    _C.IOU_BRANCH_CRITERION = CN()
    # Whether the box loss of a positive is weighted by the IoU of its predicted box, as in PAA.
    _C.IOU_BRANCH_CRITERION.QUALITY_WEIGHTED_BOX_LOSS = False
    # Weight of the loss of the predicted IoU; 0.5 in PAA.
    _C.IOU_BRANCH_CRITERION.QUALITY_LOSS_WEIGHT = 1.0
    # Whether the classification loss is divided by at least the number of images (mmdetection's
    # PAA).
    _C.IOU_BRANCH_CRITERION.FLOOR_BY_IMAGES = False

    _C.SOFT_TARGET_CRITERION = CN()
    # SoftTargetCriterion, which also takes BOX_REG_LOSS_TYPE, BOX_REG_LOSS_WEIGHT and
    # FLOOR_PER_IMAGE: "quality_focal" (GFL), "varifocal" or "matchability_aware" (DEIM).
    _C.SOFT_TARGET_CRITERION.CLS_LOSS = "quality_focal"
    # Exponent of that loss. None: its own, 2, 2 or 1.5.
    _C.SOFT_TARGET_CRITERION.CLS_LOSS_GAMMA = None
    # Weight of the background in the varifocal loss. None: its own, 0.75.
    _C.SOFT_TARGET_CRITERION.VARIFOCAL_ALPHA = None
    # Weights of positives in the losses of boxes: "score" (GFL), "quality", "centerness" or "none".
    _C.SOFT_TARGET_CRITERION.BOX_WEIGHTS = "score"
    # Weight of the distribution focal loss, with the box coder "DistanceDistributions".
    _C.SOFT_TARGET_CRITERION.DISTRIBUTION_LOSS_WEIGHT = 0.25
    # What the classification loss is divided by: "positives", or the sum of their "quality".
    _C.SOFT_TARGET_CRITERION.NORMALIZED_BY = "positives"

    _C.TASK_ALIGNED_CRITERION = CN()
    # Exponent of the quality focal loss.
    _C.TASK_ALIGNED_CRITERION.CLS_LOSS_GAMMA = 2.0

    _C.VF_NET_CRITERION = CN()
    # VFNetCriterion, which also takes BOX_REG_LOSS_TYPE and BOX_REG_LOSS_WEIGHT: weight of the
    # background in the varifocal loss.
    _C.VF_NET_CRITERION.VARIFOCAL_ALPHA = 0.75
    # Exponent of the varifocal loss.
    _C.VF_NET_CRITERION.VARIFOCAL_GAMMA = 2.0
    # Weight of the loss of first boxes.
    _C.VF_NET_CRITERION.FIRST_BOX_REG_LOSS_WEIGHT = 1.5

    # ----------------------------------------------------------------------------- inference
    # Minimum class score of a detection, before centerness; or minimum score, see TEST_THRESH_ON.
    _C.TEST_SCORE_THRESH = 0.05
    # Maximum number of pre-NMS detections per level.
    _C.TEST_TOPK_CANDIDATES = 1000
    # IoU threshold of NMS.
    _C.TEST_NMS_THRESH = 0.6
    # Maximum number of detections per image; Detectron2's TEST.DETECTIONS_PER_IMAGE also works.
    _C.MAX_DETECTIONS_PER_IMAGE = 100
    # Score of a detection: "sqrt" of class score x centerness, or the plain "product".
    _C.TEST_SCORE_TYPE = "sqrt"
    # How pre-NMS detections are ranked: by this "score", or by the "class_score" alone.
    _C.TEST_RANK_BY = "score"
    # What TEST_SCORE_THRESH applies to: the "class_score", or the "score" (mmdetection's PAA).
    _C.TEST_THRESH_ON = "class_score"
    # Sigma of score voting, which refines the boxes that NMS keeps; 0.025 in PAA. None: no voting.
    _C.SCORE_VOTING = None

    # -------------------------- proposals of an R-CNN, if MODEL.PROPOSAL_GENERATOR.NAME is ATSSRPN
    # Its rule is MODEL.ATSS.MATCHER, the rest Detectron2's MODEL.RPN.
    _C.RPN = CN()
    # Whether anchors are sampled and have Detectron2's losses. Otherwise all anchors have the
    # losses of MODEL.ATSS.CRITERION, which need MODEL.RPN.HEAD_NAME ATSSRPNHead: it reads
    # MODEL.ATSS.HEAD.PRIOR_PROB and WITH_CENTERNESS.
    _C.RPN.SAMPLE_ANCHORS = True

    # ------------------------------------------------------- training, of any model of Detectron2
    _C.TRAIN = CN()
    # A training image that cannot be used: "stop", or "skip" to take another one and list it in
    # bad_images.jsonl.
    _C.TRAIN.ON_BAD_IMAGE = "stop"
    # Number of images that may be skipped; one more stops the run.
    _C.TRAIN.MAX_BAD_IMAGES = 100
    # Only operators that give the same bits in every run on the same kind of device, which is
    # slower. yacs keeps the type, so "warn" is only for LazyConfigs.
    _C.TRAIN.DETERMINISTIC = False

    # ------------------------------- the backbone of build_torchvision_fpn_backbone, if it is used
    _T = cfg.MODEL.TORCHVISION = CN()
    # torchvision's name of the classifier.
    _T.NAME = "mobilenet_v2"
    # Name of torchvision weights to download, such as "IMAGENET1K_V1". None: random.
    _T.WEIGHTS = None
    # The norm that replaces BatchNorm layers: "FrozenBN", "BN", "SyncBN", "naiveSyncBN", ...
    _T.NORM = "FrozenBN"
