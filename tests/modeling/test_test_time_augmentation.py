"""Test-time augmentation: what the model is shown, and where its detections come back to."""

import math

import pytest
import torch
from detectron2.data.transforms import ResizeTransform

from atss_d2 import DenseDetectorWithTTA
from tests.spots import SCORES, Spots, detect, picture, write_picture

BOXES = [(4, 6, 24, 26), (30, 10, 50, 38), (0, 0, 60, 40)]
EXPECTED = torch.tensor(BOXES).float()


# --------------------------------------------------------------------------- passes


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
@pytest.mark.parametrize("min_sizes", [[40], [80], [40, 80, 160], [20, 80]])
def test_detections_come_back_to_the_image(merge, min_sizes):
    model = DenseDetectorWithTTA(Spots(), min_sizes=min_sizes, merge=merge)
    boxes, scores, classes = detect(model, picture(*BOXES))
    torch.testing.assert_close(boxes[:3], EXPECTED)
    assert scores[:3].tolist() == pytest.approx(SCORES)
    assert classes.tolist() == [0, 1, 2]


def test_shorter_and_longer_sides():
    spots = Spots()
    model = DenseDetectorWithTTA(spots, min_sizes=[40, 80, 100], max_size=[60, 90, 999], flip=False)
    detect(model, picture(size=(40, 60)))
    assert spots.shapes == [[(40, 60)], [(60, 90)], [(100, 150)]]
    spots.batches.clear()
    model = DenseDetectorWithTTA(spots, min_sizes=[40, 80], max_size=90, flip=False)
    detect(model, picture(size=(60, 40)))
    assert spots.shapes == [[(60, 40)], [(90, 60)]]


def test_an_image_and_its_mirror_image_go_together():
    spots = Spots()
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    detect(DenseDetectorWithTTA(spots, min_sizes=[40, 80]), image)
    assert spots.shapes == [[(40, 60)] * 2, [(80, 120)] * 2]
    for batch in spots.batches:
        torch.testing.assert_close(batch[1], batch[0].flip(2))
    torch.testing.assert_close(spots.batches[0][0], image)  # resized to its own size


@pytest.mark.parametrize(
    ("batch_size", "num"), [(1, [1] * 8), (2, [2] * 4), (3, [3, 1, 3, 1]), (9, [4, 4])]
)
def test_batches_of_equal_size(batch_size, num):
    spots = Spots()
    model = DenseDetectorWithTTA(spots, min_sizes=[40, 80], batch_size=batch_size)
    images = [picture(*BOXES), picture(*BOXES[:1])]
    outputs = model([{"image": image} for image in images])
    assert sorted(map(len, spots.batches)) == sorted(num)
    assert all(len(set(shapes)) == 1 for shapes in spots.shapes)
    assert [len(x["instances"]) for x in outputs] == [3, 1]


def test_images_of_a_batch_do_not_meet():
    spots = Spots()
    model = DenseDetectorWithTTA(spots, min_sizes=[40, 60], batch_size=3, merge="soft_vote")
    sizes = [(40, 60), (60, 40), (80, 80), (40, 60)]
    inputs = [
        {"image": picture(*BOXES[i % 3 :], size=size), "height": 2 * size[0], "width": size[1]}
        for i, size in enumerate(sizes)
    ]
    together = model(inputs)
    for x, output in zip(inputs, together, strict=True):
        alone = model([x])[0]["instances"]
        assert output["instances"].image_size == alone.image_size == (x["height"], x["width"])
        for name, value in alone.get_fields().items():
            found = output["instances"].get(name)
            if name == "pred_boxes":
                found, value = found.tensor, value.tensor
            torch.testing.assert_close(found, value, rtol=0, atol=0)


def test_the_model_is_given_the_whole_dataset_dict():
    given = []

    class Recorder(Spots):
        def forward(self, batched_inputs):
            given.extend(batched_inputs)
            return super().forward(batched_inputs)

    image = picture(*BOXES)
    dataset_dict = {"image": image, "height": 400, "width": 600, "image_id": 7}
    DenseDetectorWithTTA(Recorder(), min_sizes=[80])([dataset_dict])
    assert [(x["image_id"], x["height"], x["width"]) for x in given] == [(7, 80, 120)] * 2
    assert dataset_dict == {"image": image, "height": 400, "width": 600, "image_id": 7}


# --------------------------------------------------------------------------- size ranges


def test_size_ranges_are_measured_in_the_scaled_image():
    # 10 px in the image is 20 px in the scaled image; the box at the side is cut there.
    image = picture((4, 6, 14, 16), (50, 0, 60, 40))

    def classes(*size_range):
        model = DenseDetectorWithTTA(Spots(), min_sizes=[80], size_ranges=[size_range])
        return detect(model, image, height=400, width=600)[2].tolist()

    assert classes(0, math.inf) == [0, 1]
    assert classes(20, 20.5) == [0]  # 20 itself belongs to the range
    assert classes(10, 20) == []  # of which it is not the end
    assert classes(40, 41) == [1]  # sqrt(20 x 80)
    assert classes(200, math.inf) == []


def test_each_scale_has_its_size_range():
    model = DenseDetectorWithTTA(
        Spots(),
        min_sizes=[40, 80],
        size_ranges=[(25, math.inf), (0, 41)],
        merge="nms",
        iou_thresh=1.0,  # of equal boxes all stay
    )
    # By their sides: at 40 px 20 and 60 x 40; at 80 px 40 and 120 x 80.
    _, _, classes = detect(model, picture(BOXES[0], BOXES[2]))
    assert classes.tolist() == [0, 0, 1, 1]


def test_a_range_may_leave_nothing():
    for merge in ("nms", "vote", "soft_vote"):
        model = DenseDetectorWithTTA(Spots(), min_sizes=[40], size_ranges=[(1e4, 1e5)], merge=merge)
        boxes, scores, classes = detect(model, picture(*BOXES))
        assert boxes.shape == (0, 4)
        assert scores.shape == classes.shape == (0,)


# --------------------------------------------------------------------------- reading


def test_files_are_read_in_the_models_channel_order(tmp_path):
    image = picture(*BOXES)
    file_name = write_picture(tmp_path / "bgr.png", image)
    for input_format, expected in (("BGR", image), ("RGB", image.flip(0))):
        spots = Spots()
        spots.input_format = input_format
        DenseDetectorWithTTA(spots, min_sizes=[40], flip=False)([{"file_name": file_name}])
        torch.testing.assert_close(spots.batches[0][0], expected)
    spots = Spots()
    model = DenseDetectorWithTTA(spots, min_sizes=[40], flip=False, input_format="RGB")
    model([{"file_name": file_name}])
    torch.testing.assert_close(spots.batches[0][0], image.flip(0))


def test_scales_start_from_the_file(tmp_path):
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    file_name = write_picture(tmp_path / "picture.png", image)
    spots = Spots()
    model = DenseDetectorWithTTA(spots, min_sizes=[40, 20], flip=False)
    small = torch.zeros(3, 10, 15, dtype=torch.uint8)  # what a data loader has made of it
    (output,) = model([{"file_name": file_name, "image": small, "height": 40, "width": 60}])
    assert output["instances"].image_size == (40, 60)
    torch.testing.assert_close(spots.batches[0][0], image)
    expected = ResizeTransform(40, 60, 20, 30).apply_image(image.permute(1, 2, 0).numpy())
    torch.testing.assert_close(spots.batches[1][0].permute(1, 2, 0), torch.tensor(expected))


def test_without_a_file_the_tensor_is_scaled():
    model = DenseDetectorWithTTA(Spots(), min_sizes=[40, 80])
    image = picture(*BOXES)
    boxes, _, _ = detect(model, image)
    torch.testing.assert_close(boxes, EXPECTED)
    boxes, _, _ = detect(model, image, height=80, width=180)
    torch.testing.assert_close(boxes, EXPECTED * torch.tensor([3, 2, 3, 2]))
    boxes, _, _ = detect(model, image.float())
    torch.testing.assert_close(boxes, EXPECTED)


def test_an_input_without_an_image():
    with pytest.raises(ValueError, match="needs file_name or image, got \\['height'\\]"):
        DenseDetectorWithTTA(Spots())([{"height": 3}])


# --------------------------------------------------------------------------- geometry


def test_mirrored_exactly():
    image = picture((1, 2, 14, 37), size=(40, 61))
    model = DenseDetectorWithTTA(Spots(), min_sizes=[40], merge="nms", iou_thresh=1.0)
    boxes, _, _ = detect(model, image)
    assert boxes.tolist() == [[1, 2, 14, 37]] * 2
    mirrored, _, _ = detect(model, image.flip(2))
    assert mirrored.tolist() == [[61 - 14, 2, 61 - 1, 37]] * 2


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
def test_a_mirrored_image_has_mirrored_detections(merge):
    class LooksLeft(Spots):
        """Its boxes begin too far to the left."""

        def detect(self, image):
            instances = super().detect(image)
            boxes = instances.pred_boxes.tensor
            boxes[:, 0] -= 0.2 * (boxes[:, 2] - boxes[:, 0])
            return instances

    model = DenseDetectorWithTTA(LooksLeft(), min_sizes=[40, 80], merge=merge, iou_thresh=0.66)
    image = picture((20, 6, 40, 26), (10, 10, 50, 38))
    boxes, scores, classes = detect(model, image)
    mirrored = detect(model, image.flip(2))
    if merge == "vote":
        # An object is centerd again: too far to the left and to the right have the same weight.
        torch.testing.assert_close(boxes[0], torch.tensor([18.0, 6, 42, 26]))
        torch.testing.assert_close(boxes[:, [2, 0]], 60 - mirrored[0][:, [0, 2]])
    torch.testing.assert_close(scores, mirrored[1])
    torch.testing.assert_close(classes, mirrored[2])


def test_boxes_are_clipped_to_the_image():
    class TooLarge(Spots):
        def detect(self, image):
            instances = super().detect(image)
            instances.pred_boxes.tensor += torch.tensor([-9, -9, 9, 9])
            return instances

    boxes, _, _ = detect(DenseDetectorWithTTA(TooLarge(), min_sizes=[40]), picture((5, 5, 55, 35)))
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 60, 40]]))


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
def test_half_precision(merge):
    model = DenseDetectorWithTTA(Spots(torch.float16), min_sizes=[40, 80], merge=merge)
    boxes, scores, _ = detect(model, picture(*BOXES), height=4040, width=6060)
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(boxes, 101 * EXPECTED)  # 5050 is no number of half precision
