import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from atss_d2.plain.drawing import class_color, detection_labels
from atss_d2.visualization import draw_detections, draw_ground_truth

GREY = 128
IMAGE = np.full((60, 80, 3), GREY, dtype=np.uint8)
IMAGE.setflags(write=False)  # nobody may draw on the input


def _detections(boxes, scores=None, classes=None, image=IMAGE):
    return Instances(
        image.shape[:2],
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores or [0.9] * len(boxes)),
        pred_classes=torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
    )


def _annotation(box, category_id=0, iscrowd=0):
    x0, y0, x1, y1 = box
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category_id,
        "iscrowd": iscrowd,
    }


def _is_changed(picture):
    return np.any(picture != GREY, axis=2)


def _border(box, picture):
    """Colors along the four sides of a box, (n, 3)."""
    x0, y0, x1, y1 = box
    return np.concatenate(
        [picture[y0, x0:x1], picture[y1, x0:x1], picture[y0:y1, x0], picture[y0:y1, x1]]
    ).astype(int)


def _bgr(color):
    return np.array(color[::-1]) * 255


def test_boxes_are_drawn_along_their_borders_and_nowhere_else():
    box = (20, 15, 50, 40)
    picture = draw_detections(IMAGE, _detections([box]), class_names=["tree"])
    assert picture.shape == IMAGE.shape
    assert picture.dtype == np.uint8
    # The middle of the line may lie between two pixels, so the color is mixed.
    distance = np.abs(_border(box, picture) - _bgr(class_color(0))).max(axis=1)
    assert distance.max() < 110
    changed = _is_changed(picture)
    assert changed[2:14, 20:44].any()  # above: too small for a label inside
    changed[:15, 20:75] = False
    changed[13:43, 18:53] = False  # the box with its line
    assert not changed.any()
    assert not _is_changed(picture)[18:37, 23:47].any()


def test_no_detection_leaves_the_picture_as_it_is():
    picture = draw_detections(IMAGE, _detections([]), class_names=["tree"])
    np.testing.assert_array_equal(picture, IMAGE)


def test_colors_of_the_photograph_stay():
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[:] = (200, 100, 20)
    np.testing.assert_array_equal(draw_detections(image, _detections([])), image)


def test_detections_below_the_threshold_are_left_out():
    boxes, low, high = [(5, 5, 30, 30), (45, 20, 70, 50)], (5, 5, 30, 30), (45, 20, 70, 50)
    # 0.7 in float32 is below 0.7, but a detector that gives 0.7 passes a threshold of 0.7.
    picture = draw_detections(IMAGE, _detections(boxes, [0.69, 0.7]), score_thresh=0.7)
    assert (_border(low, picture) == GREY).all()
    assert (_border(high, picture) != GREY).any(axis=1).all()


def test_colors_belong_to_their_detections():
    boxes = [(5, 5, 26, 30), (32, 5, 48, 30), (52, 5, 75, 30)]
    colors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    picture = draw_detections(
        IMAGE, _detections(boxes, [0.2, 0.6, 0.9]), score_thresh=0.5, colors=colors
    )
    assert (_border(boxes[0], picture) == GREY).all()
    assert (_border(boxes[1], picture).argmax(axis=1) == 1).all()  # green
    assert (_border(boxes[2], picture).argmax(axis=1) == 0).all()  # blue in BGR
    with pytest.raises(ValueError, match="colors must have 3 elements, got 1"):
        draw_detections(IMAGE, _detections(boxes), colors=colors[:1])


def test_classes_have_different_colors():
    colors = np.array([class_color(i) for i in range(10)])
    distances = np.abs(colors[:, None] - colors[None]).max(axis=2)
    assert distances[~np.eye(10, dtype=bool)].min() > 0.2


def test_a_large_box_has_its_label_inside_and_a_small_one_its_score_outside():
    image = np.full((300, 400, 3), GREY, dtype=np.uint8)
    large, small = (100, 100, 300, 250), (20, 20, 45, 45)
    detections = _detections([large, small], image=image)
    picture = draw_detections(image, detections, class_names=["tree", "house"])
    # A label lies inside, at the upper left corner, on nearly black ground.
    assert picture[105:115, 105:150].min() < 60
    assert _is_changed(picture)[130:245, 105:295].sum() == 0
    assert _is_changed(picture)[23:42, 23:42].sum() == 0
    assert picture[8:19, 20:45].min() < 90  # the rim of letters, above the box


def test_the_score_of_a_small_box_at_the_upper_border_stands_below():
    image = np.full((300, 400, 3), GREY, dtype=np.uint8)
    picture = draw_detections(image, _detections([(200, 3, 225, 28)], image=image))
    changed = _is_changed(picture)
    assert changed[30:42, 200:226].any()
    changed[2:30, 199:227] = False  # the box
    changed[30:43, 199:230] = False  # its label
    assert not changed.any()
    # In the corners of the picture too, the label is in it.
    for box in ((0, 0, 10, 10), (395, 0, 400, 5), (390, 290, 400, 300), (0, 295, 5, 300)):
        picture = draw_detections(image, _detections([box], image=image))
        assert _is_changed(picture).sum() > 130, box


def test_names_and_scores_are_written():
    """The labels themselves; their pixels are tested elsewhere."""
    labels = detection_labels([1, 0], [0.996, 0.5], ["tree", "house"])
    assert labels == [("house 100%", "100%"), ("tree 50%", "50%")]
    assert detection_labels([1], [0.5], None) == [("1 50%", "50%")]


def test_a_longer_name_falls_back_to_the_score():
    image = np.full((300, 400, 3), GREY, dtype=np.uint8)
    box = (100, 100, 170, 250)
    widths = []
    for name in ("oak", "a name that is far too long"):
        picture = draw_detections(image, _detections([box], image=image), class_names=[name])
        label = _is_changed(picture)[104:112, 103:167]
        widths.append(np.flatnonzero(label.any(axis=0)).max())
    assert 20 < widths[1] < 30 < widths[0]  # "90%" and "oak 90%"


def test_labels_outside_hide_no_neighbor():
    """The name goes where there is room for it, else only the score, and never over a label."""
    image = np.full((300, 400, 3), GREY, dtype=np.uint8)

    def drawn(*boxes):
        found = _detections(boxes, image=image)
        return _is_changed(draw_detections(image, found, class_names=["tree"]))

    box = (100, 100, 125, 125)
    alone = drawn(box)
    assert alone[86:98, 100:155].any(axis=0).nonzero()[0].max() > 40  # "tree 90%" above
    assert not alone[128:145].any()
    below = drawn(box, (130, 80, 150, 97))  # a neighbor where the name would stand
    assert below[128:138, 100:155].any(axis=0).nonzero()[0].max() > 40
    assert (below[82:96, 132:148] == 0).all()
    shorter = drawn(box, (130, 80, 150, 97), (130, 128, 150, 140))
    assert shorter[87:97, 100:128].any()  # the score is short enough to stand above
    # Two boxes one above the other share no place.
    first, second = drawn((50, 50, 70, 60)), drawn((50, 50, 70, 60), (50, 80, 70, 90))
    assert np.array_equal(first[36:50], second[36:50])
    assert second[66:80].any() or second[91:105].any()


def test_blue_labels_can_be_read():
    """The text of every class is far lighter than the ground that it stands on."""
    image = np.full((300, 400, 3), 200, dtype=np.uint8)
    for c in range(12):
        found = _detections([(50, 50, 300, 250)], classes=[c], image=image)
        label = draw_detections(image, found, class_names=[str(i) for i in range(12)])[53:66, 53:85]
        luminance = label @ np.array([0.114, 0.587, 0.299])
        assert luminance.max() - luminance.min() > 70, c


def test_a_label_stays_in_the_picture():
    image = np.full((300, 400, 3), GREY, dtype=np.uint8)
    picture = draw_detections(image, _detections([(-90, -90, 250, 200)], image=image))
    assert picture[3:12, 3:30].min() < 60
    picture = draw_detections(image, _detections([(396, 296, 600, 500)], image=image))
    assert picture[285:297, 360:398].min() < 60


def test_many_small_objects_stay_visible():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 560, (100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(15, 40, (100, 2))], axis=1)
    image = np.full((600, 600, 3), GREY, dtype=np.uint8)
    picture = draw_detections(image, _detections(boxes.tolist(), image=image))
    assert 0.02 < _is_changed(picture).mean() < 0.25


def test_scale_enlarges_picture_and_boxes():
    box = (20, 15, 50, 40)
    picture = draw_detections(IMAGE, _detections([box]), class_names=["tree"], scale=2.0)
    assert picture.shape == (120, 160, 3)
    assert (_border((40, 30, 100, 80), picture) != GREY).any(axis=1).all()
    assert not _is_changed(picture)[34:76, 64:96].any()


def test_ground_truth_is_solid_and_crowds_are_dashed():
    box, crowd = (5, 5, 35, 50), (40, 5, 75, 50)
    annotations = [_annotation(box), _annotation(crowd, iscrowd=1)]
    picture = draw_ground_truth(IMAGE, annotations, class_names=["tree"])
    color = _bgr(class_color(0))
    assert (np.abs(_border(box, picture) - color).max(axis=1) < 110).all()
    is_colored = np.abs(_border(crowd, picture) - color).max(axis=1) < 110
    assert 0.4 < is_colored.mean() < 0.9


def test_ground_truth_without_boxes():
    np.testing.assert_array_equal(draw_ground_truth(IMAGE, []), IMAGE)


def test_ground_truth_wants_one_color_for_each_box():
    with pytest.raises(ValueError, match="colors must have 1 elements, got 0"):
        draw_ground_truth(IMAGE, [_annotation((5, 5, 35, 50))], colors=[])


@pytest.mark.parametrize(
    "image", [IMAGE[:, :, 0], IMAGE.astype(np.float32), np.zeros((60, 80, 4), dtype=np.uint8)]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got \("):
        draw_detections(image, _detections([]))
