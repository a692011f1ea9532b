"""Multi-scale testing as the authors did it: 13 scales, each with its mirror image (Table 8).

With this key in a config, `train_net.py --eval-only` evaluates the model without it and with it.
"""

from math import inf

from detectron2.config import LazyCall as L

from atss_d2.modeling import DenseDetectorWithTTA

# Shorter side of the image, maximum longer side, and the sqrt(area) s of the boxes that count:
# low <= s < high, in pixels of the scaled image. Large images are for small objects.
_scales = [
    (800, 1333, 0, inf),
    (400, 1333, 96, inf),
    (500, 1333, 96, inf),
    (600, 1333, 64, inf),
    (640, 1333, 64, inf),
    (700, 1333, 64, inf),
    (900, 3000, 0, inf),
    (1000, 3000, 0, inf),
    (1100, 3000, 0, 256),
    (1200, 3000, 0, 256),
    (1300, 3000, 0, 192),
    (1400, 3000, 0, 192),
    (1800, 3000, 0, 96),
]

test_time_augmentation = L(DenseDetectorWithTTA)(
    min_sizes=[min_size for min_size, _, _, _ in _scales],
    max_size=[max_size for _, max_size, _, _ in _scales],
    size_ranges=[[low, high] for _, _, low, high in _scales],
    flip=True,
    merge="soft_vote",
    iou_thresh=0.66,
    soft_vote_score_thresh=0.05,
    max_detections_per_image=1000,
)
