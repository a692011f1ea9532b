"""Every fault of a data set: found, said once, and left out, mended or refused."""

import copy
import json
import math
import shutil

import cv2
import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_d2.data import DataError
from atss_d2.data.custom.checking import check, report_shared_images, unite_categories
from atss_d2.data.custom.images import group_equal_files, inspect_images
from atss_d2.data.custom.reading import Source, read_source
from tests.drawn_set import draw_set


def findings(checked) -> list[str]:
    return [str(finding) for finding in checked.findings]


def check_files(folder, content, images=None):
    """Checks a content, written into a folder, with the images in it or elsewhere."""
    (folder / "a.json").write_text(json.dumps(content))
    return check(read_source([str(folder / "a.json"), str(images or folder / "images")]))


def test_a_set_without_faults_is_taken_as_it_is(check_changed, drawn):
    checked = check_changed()
    assert checked.findings == []
    assert not checked.is_changed
    assert checked.content["annotations"] == drawn[0]["annotations"]
    assert checked.content["images"] == drawn[0]["images"]
    # In the order of Detectron2's classes.
    assert [category["id"] for category in checked.categories] == [3, 7, 40]


# A change of the content, what is said about it, and by how much annotations and images shrink.
def _set(index, key="annotations", **values):
    return lambda content: content[key][index].update(values)


def _remove(index, key):
    return lambda content: content["annotations"][index].pop(key)


def _append(key, index, **values):
    return lambda content: content[key].append({**content[key][index], **values})


FAULTS = {
    "no area": (_set(0, bbox=[3, 3, 0, 10]), "1 box has no area, e.g. [3, 3, 0, 10] in", 1, 0),
    "negative": (
        _set(0, bbox=[30, 3, -5, 10]),
        "1 box has a negative width or height, e",
        1,
        0,
    ),
    "NaN": (_set(0, bbox=[3, math.nan, 5, 10]), "1 box is not four finite numbers", 1, 0),
    "infinite": (_set(0, bbox=[3, 3, math.inf, 10]), "1 box is not four finite numbers", 1, 0),
    "three numbers": (_set(0, bbox=[3, 3, 5]), "1 box is not four finite numbers", 1, 0),
    "text": (_set(0, bbox="3 3 5 5"), "1 box is not four finite numbers, e.g. '3 3 5 5'", 1, 0),
    "no box": (_remove(0, "bbox"), "1 box is not four finite numbers, e.g. None in", 1, 0),
    "outside": (_set(0, bbox=[900, 3, 5, 5]), "1 box is outside of the image", 1, 0),
    "partly outside": (_set(0, bbox=[-9, 3, 20, 5]), "1 box is partly outside of the image", 0, 0),
    "class": (_set(0, category_id=4), "1 annotation is of classes that the file does not", 1, 0),
    "image": (_set(0, image_id=4), "1 annotation is of images that the file does not list", 1, 0),
    "double id": (_set(1, id=1), "1 annotation id is missing, repeated or 0, e.g. id 1", 0, 0),
    "id 0": (_set(0, id=0), "1 annotation id is missing, repeated or 0, e.g. id 0", 0, 0),
    "no id": (_remove(0, "id"), "1 annotation id is missing, repeated or 0, e.g. id None", 0, 0),
    "ignore": (_set(0, ignore=1), "1 annotation has the key ignore", 0, 0),
    "double": (_append("annotations", 0, id=999), "1 annotation has the class and box of", 0, 0),
    "image id": (_append("images", 0, file_name="b.jpg"), "1 image has the id of another", 0, 0),
    "no name": (_append("images", 0, file_name=None), "1 image has no file_name or no id", 0, 0),
    "same file": (_append("images", 0, id=999), "1 file is named by several images", 0, -1),
    "missing": (_append("images", 0, id=9, file_name="x.jpg"), "1 image is missing, e.g. 'x", 0, 0),
    "size": (_set(0, "images", width=12), "1 image is of another size, e.g. '0000.jpg'", None, 1),
    "no size": (
        _set(0, "images", width=None, height=None),
        *("1 image has no width and height, e.g. '0000.jpg': taken from the files", 0, 0),
    ),
    "names": (
        _set(0, "categories", name="disc"),
        *("1 class name is used by several ids, e.g. 'disc'", 0, 0),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_once_and_what_remains_can_be_used(check_changed, drawn, tmp_path, fault):
    change, message, num_annotations, num_images = FAULTS[fault]
    checked = check_changed(change)
    (said,) = findings(checked)
    assert said.startswith(message)
    content = checked.content
    if num_annotations is None:  # those of an image
        num_annotations = sum(a["image_id"] == 100 for a in drawn[0]["annotations"])
    assert len(content["annotations"]) == len(drawn[0]["annotations"]) - num_annotations
    assert len(content["images"]) == len(drawn[0]["images"]) - num_images
    assert checked.is_changed or fault in ("same file", "names")

    # Detectron2 and pycocotools take it.
    (tmp_path / "clean.json").write_text(json.dumps(content))
    dicts = load_coco_json(str(tmp_path / "clean.json"), str(drawn[1]))
    assert sum(len(d["annotations"]) for d in dicts) == len(content["annotations"])
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert w > 0 < h
        assert math.isfinite(x + y)
    assert ap_of_the_truth(tmp_path / "clean.json") == pytest.approx(1)


def ap_of_the_truth(path) -> float:
    """AP of detections that are the ground truth: 1, unless a box cannot be found."""
    truth = COCO(str(path))
    found = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    coco_eval = COCOeval(truth, truth.loadRes(found), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval.stats[0]


def test_three_examples_and_all_are_counted(check_changed, drawn):
    def change(content):
        for i, annotation in enumerate(content["annotations"][:5]):
            annotation["bbox"] = [i, 1, 0, 0]

    checked = check_changed(change)
    (finding,) = checked.findings
    assert finding.count == 5
    assert len(finding.examples) == 3
    assert str(finding).startswith("5 boxes have no area, e.g. [0, 1, 0, 0] in '0000.jpg', [1, 1,")


def test_clipped_boxes_lie_inside_and_keep_what_was_inside(check_changed):
    checked = check_changed(_set(0, bbox=[-9, 3, 20, 5], area=100))
    annotation = checked.content["annotations"][0]
    assert annotation["bbox"] == [0, 3, 11, 5]
    assert annotation["area"] == 55
    checked = check_changed(_set(0, bbox=[-0.5, 3, 20, 5]))
    assert checked.findings == []  # by rounding


def test_missing_area_and_iscrowd_are_filled_in(check_changed):
    def change(content):
        for annotation in content["annotations"]:
            del annotation["area"], annotation["iscrowd"]

    checked = check_changed(change)
    assert checked.findings == []
    assert checked.is_changed
    for annotation in checked.content["annotations"]:
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
        assert annotation["iscrowd"] == 0


def _corners(content):
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]


def _fractions(content):
    for a in content["annotations"]:
        a["bbox"] = [value / 200 for value in a["bbox"]]


def _all(key, **values):
    return lambda content: [entry.update(values) for entry in content[key]]


REFUSED = {
    "corners": (_corners, "boxes seem to be x1, y1, x2, y2, not COCO's .* convert them"),
    "fractions": (_fractions, "boxes have values up to 1"),
    "no images": (lambda c: c.pop("images"), "has no list 'images'"),
    "empty images": (lambda c: c["images"].clear(), "has no images: there is nothing to train on"),
    "no annotations": (lambda c: c["annotations"].clear(), "has no annotations"),
    "no categories": (lambda c: c["categories"].clear(), "has no categories"),
    "lists": (lambda c: c.update(images=[[1]]), "'images' must be a list of objects"),
    "category id": (_all("categories", id="x"), "is not an integer"),
    "category twice": (_all("categories", id=3), "the id 3 occurs twice"),
    "all missing": (_all("images", file_name="x.jpg"), "8 of 8 images .* is it the right folder?"),
    "all sizes": (_all("images", width=5), "8 of 8 images .* not of the size that the JSON says"),
    "no names": (_all("images", file_name=3), "no image has a file_name and an id"),
    "all classes": (_all("annotations", category_id=9), "of classes that the file does not list"),
    "all elsewhere": (_all("annotations", image_id=9), "of images that the file does not list"),
    "all without area": (_all("annotations", bbox=[5, 5, 0, 0]), "boxes have no area, e.g."),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_broken_beyond_use_is_one_sentence(check_changed, tmp_path, fault):
    change, message = REFUSED[fault]
    with pytest.raises(DataError, match=message) as error:
        check_changed(change)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a.json") in str(error.value)


# Files


def test_files_that_cannot_be_read_and_odd_ones(tmp_path):
    content = draw_set(tmp_path / "images", 9, suffix=".png")
    images = tmp_path / "images"
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    (images / "0000.png").write_bytes((images / "0000.png").read_bytes()[:2000])  # cut off
    (images / "0001.png").write_text("no image")
    grey = cv2.imread(str(images / "0002.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(images / "0002.png"), grey)
    cv2.imwrite(str(images / "0003.png"), grey.astype(np.uint16)[: sizes[3][1], : sizes[3][0]])
    content["images"][3].update(
        height=min(grey.shape[0], sizes[3][1]), width=min(grey.shape[1], sizes[3][0])
    )
    checked = check_files(tmp_path, content)
    said = findings(checked)
    assert "1 image is truncated, e.g. '0000.png': left out" in said
    assert "1 image is unreadable, e.g. '0001.png': left out" in said
    assert "1 image is gray, e.g. '0002.png': read as three equal channels" in said
    assert any(text.startswith("1 image has more than 8 bits a channel") for text in said)
    assert len(checked.content["images"]) == 7
    assert {a["image_id"] for a in checked.content["annotations"]} <= set(checked.files)


def test_an_image_that_its_exif_data_turn_has_the_size_that_detectron2_sees(tmp_path):
    content = draw_set(tmp_path / "images", 2)
    path = tmp_path / "images" / "0000.jpg"
    image = Image.open(path)
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    turned.save(path, exif=exif)
    (file,) = inspect_images([path])
    assert (file.width, file.height) == image.size
    (said,) = findings(check_files(tmp_path, content))
    assert said.startswith("1 image is turned by EXIF data when read, e.g. '0000.jpg': make sure")


def test_images_are_found_without_the_folders_in_their_names(drawn, tmp_path):
    content = copy.deepcopy(drawn[0])
    for image in content["images"]:
        image["file_name"] = f"train2017/{image['file_name']}"
    checked = check_files(tmp_path, content, drawn[1])
    (said,) = findings(checked)
    assert said.startswith(f"8 images are found in '{drawn[1]}' under another path than the JSON")
    assert [image["file_name"] for image in checked.content["images"]] == [
        f"{i:04d}.jpg" for i in range(8)
    ]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a\\0.jpg", "a/0.jpg"),  # Windows
        ("C:\\data\\images\\0.jpg", "0.jpg"),
        ("a%20b/%C3%A4.jpg", "a b/ä.jpg"),  # a URL
        ("/data/local-files/?d=images/a/0.jpg", "a/0.jpg"),  # Label Studio
        ("http://localhost:8080/data/a%20b.jpg", "a b.jpg"),
        ("images/a%20b.jpg", "a%20b.jpg"),  # before "a b.jpg"
        ("../pictures/a/0.jpg", "a/0.jpg"),
    ],
)
def test_names_from_other_machines_lead_to_files(tmp_path, name, file):
    content = draw_set(tmp_path / "images", 1)
    (tmp_path / "images" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "images" / "0000.jpg").rename(tmp_path / "images" / file)
    content["images"][0]["file_name"] = name
    checked = check_files(tmp_path, content)
    assert [image["file_name"] for image in checked.content["images"]] == [file]
    assert checked.is_changed
    assert len(findings(checked)) == 1


def test_a_file_is_not_taken_for_several_images(drawn, tmp_path):
    content = copy.deepcopy(drawn[0])
    content["images"][0]["file_name"] = "a/0000.jpg"
    content["images"][1]["file_name"] = "b/0000.jpg"
    checked = check_files(tmp_path, content, drawn[1])
    assert findings(checked) == ["2 images are missing, e.g. 'a/0000.jpg', 'b/0000.jpg': left out"]


def test_a_json_without_the_rotation_of_the_exif_data_is_refused_with_the_fix(tmp_path):
    content = draw_set(tmp_path / "images", 3, heights=(90, 91), widths=(120, 121))
    for path in (tmp_path / "images").iterdir():
        image = Image.open(path)
        image.load()
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"EXIF data turn them; remove the tag Orientation"):
        check(read_source([str(tmp_path / "a.json"), str(tmp_path / "images")]))


def test_polygons_without_a_box_get_one(check_changed, drawn):
    def drop(content):
        for a in content["annotations"]:
            x, y, w, h = a.pop("bbox")
            del a["area"]
            half = [x, y, x + w / 2, y, x + w / 2, y + h]
            a["segmentation"] = [half, [x + w / 2, y, x + w, y, x + w, y + h]]

    checked = check_changed(drop)
    num = len(drawn[0]["annotations"])
    assert [a["bbox"] for a in checked.content["annotations"]] == [
        a["bbox"] for a in drawn[0]["annotations"]
    ]
    assert findings(checked)[0].startswith(f"{num} annotations have polygons but no box, e.g. id 1")
    assert checked.is_changed


@pytest.mark.parametrize(
    "segmentation", [[], [[]], [[1, 2, 3]], [[1, math.nan, 3, 4]], [["a", "b"]], {"counts": "x"}]
)
def test_other_segmentations_are_no_boxes(check_changed, segmentation):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = segmentation

    assert findings(check_changed(change))[0].startswith(
        "1 box is not four finite numbers, e.g. No"
    )


def test_regions_alone_are_nothing_to_learn(check_changed):
    def change(content):
        for a in content["annotations"]:
            a["iscrowd"] = 1

    with pytest.raises(DataError, match="annotations are iscrowd regions, which are not objects"):
        check_changed(change)


def test_only_the_pixels_of_the_first_files_are_read(tmp_path):
    draw_set(tmp_path, 2, suffix=".png")
    path = tmp_path / "0001.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)  # seems whole
    paths = [tmp_path / "0000.png", path]
    assert [file.problem for file in inspect_images(paths)] == ["", "image_unreadable"]
    assert [file.problem for file in inspect_images(paths, max_decoded=1)] == ["", ""]


def test_equal_files_are_grouped_by_content(tmp_path):
    draw_set(tmp_path, 4)
    shutil.copy(tmp_path / "0001.jpg", tmp_path / "copy.jpg")
    padded = tmp_path / "0002.jpg"  # as many bytes as another, but others
    size = (tmp_path / "0003.jpg").stat().st_size
    padded.write_bytes((padded.read_bytes() + bytes(size))[:size])
    groups = group_equal_files(inspect_images(sorted(tmp_path.iterdir()), max_decoded=0))
    assert [[file.path.name for file in group] for group in groups] == [["0001.jpg", "copy.jpg"]]


# Two parts


@pytest.fixture
def pair(tmp_path):
    """``pair(change)``: two drawn sets, the second after ``change(content)``."""

    def pair(change=lambda content: None):
        parts = []
        for seed, name in enumerate(("train", "val")):
            content = draw_set(tmp_path / name, 6, seed=seed)
            if name == "val":
                change(content)
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
            parts.append(check(read_source([str(tmp_path / f"{name}.json"), str(tmp_path / name)])))
        return parts

    return pair


def test_classes_are_united(pair):
    def change(content):
        content["categories"] = [c for c in content["categories"] if c["id"] != 40]
        content["categories"].append({"id": 50, "name": "star"})
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 40]

    train, val = pair(change)
    unite_categories(train, val)
    assert train.categories == val.categories
    assert [c["name"] for c in train.categories] == ["disc", "square", "triangle", "star"]
    said = findings(train), findings(val)
    assert "1 class is listed in the other part only, e.g. 'star': added" in said[0]
    assert "1 class has no box, e.g. 'star': not to be learned" in said[0]
    assert "1 class is listed in the other part only, e.g. 'triangle': added" in said[1]
    assert "2 classes have no box, e.g. 'triangle', 'star': without an AP" in said[1]
    assert train.is_changed
    assert val.is_changed


@pytest.mark.parametrize("formats", [("Pascal VOC", "Pascal VOC"), ("COCO", "Pascal VOC")])
def test_classes_that_have_names_only_are_matched_by_name(tmp_path, formats):
    """Pascal VOC has no ids: a class that one part lacks must not shift the others."""
    parts, expected = [], []
    for seed, format_name in enumerate(formats):
        content = draw_set(tmp_path / str(seed), 8, seed=seed)
        names = {c["id"]: c["name"] for c in content["categories"]}
        if format_name == "Pascal VOC":
            present = sorted(set(names.values()) - ({"disc"} if seed else set()))
            content["annotations"] = [
                {**a, "category_id": present.index(names[a["category_id"]]) + 1}
                for a in content["annotations"]
                if names[a["category_id"]] in present
            ]
            content["categories"] = [{"id": i + 1, "name": n} for i, n in enumerate(present)]
        names = {c["id"]: c["name"] for c in content["categories"]}
        expected.append([names[a["category_id"]] for a in content["annotations"]])
        parts.append(check(Source(content, tmp_path / str(seed), None, format_name)))
    unite_categories(*parts)
    assert parts[0].categories == parts[1].categories
    assert sorted(c["name"] for c in parts[0].categories) == ["disc", "square", "triangle"]
    if formats[0] == "COCO":
        assert [c["id"] for c in parts[0].categories] == [3, 7, 40]
    for part, names_of_boxes in zip(parts, expected):
        names = {c["id"]: c["name"] for c in part.categories}
        found = [names[a["category_id"]] for a in part.content["annotations"]]
        assert found == names_of_boxes
        assert part.categories == sorted(part.categories, key=lambda c: c["id"])


def test_other_names_of_the_same_ids_are_refused(pair):
    train, val = pair(lambda content: content["categories"][0].update(name="wedge"))
    with pytest.raises(DataError, match=r"class id 40 is 'triangle' in .* but 'wedge' in "):
        unite_categories(train, val)


def test_images_in_both_parts_are_found_by_content(pair, tmp_path):
    train, val = pair()
    unite_categories(train, val)
    assert not train.is_changed
    assert not val.is_changed
    report_shared_images(train, val)
    assert not findings(val)  # the same names are not the same images

    def copy_one(content):
        source = tmp_path / "train" / "0003.jpg"
        shutil.copy(source, tmp_path / "val" / "0000.jpg")
        height, width = cv2.imread(str(source)).shape[:2]
        content["images"][0].update(height=height, width=width)
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 100]

    train, val = pair(copy_one)
    report_shared_images(train, val)
    (said,) = findings(val)
    assert said == "1 image is also in train, e.g. '0000.jpg': AP will look better than it is"
