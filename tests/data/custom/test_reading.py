"""COCO, Pascal VOC and YOLO: the same boxes and names, whatever the layout of the folders."""

import json
import shutil
import sys

import numpy as np
import pytest

from atss_d2.data import DataError
from atss_d2.data.custom.checking import check
from atss_d2.data.custom.reading import read_source
from tests.drawn_set import IDS, draw_set, write_set, write_voc, write_yolo


def objects_of(content: dict) -> list[tuple]:
    """(file name, class name, x, y, w, h) of all objects, sorted."""
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    return sorted(
        (files[a["image_id"]], names[a["category_id"]], *np.round(a["bbox"], 1).tolist())
        for a in content["annotations"]
    )


def test_coco_in_two_paths_and_in_one_folder(tmp_path):
    content = write_set(tmp_path, 3)
    source = read_source([str(tmp_path / "train.json"), str(tmp_path / "images")])
    assert source.content == content
    assert (source.format, source.json_file) == ("COCO", tmp_path / "train.json")
    # The layouts of folders that are given alone.
    (tmp_path / "train.json").rename(tmp_path / "annotations.json")
    assert read_source([str(tmp_path)]).image_root == tmp_path / "images"
    shutil.move(tmp_path / "annotations.json", tmp_path / "images" / "_annotations.coco.json")
    source = read_source([str(tmp_path / "images")])
    assert source.content == content
    assert source.image_root == tmp_path / "images"
    assert check(source).findings == []


VOC = {"devkit": ("JPEGImages", "Annotations"), "images": ("images", "annotations")}
VOC["beside each other"] = (".", ".")


@pytest.mark.parametrize("layout", VOC)
def test_pascal_voc(tmp_path, layout):
    pytest.importorskip("supervision")
    images, labels = (tmp_path / name for name in VOC[layout])
    content = draw_set(images, 5)
    write_voc(content, labels)
    source = read_source([str(tmp_path)])
    assert (source.format, source.json_file, source.image_root) == ("Pascal VOC", None, images)
    checked = check(source)
    assert checked.findings == []
    assert checked.is_changed  # has to be written
    assert objects_of(checked.content) == objects_of(content)
    assert checked.categories == [{"id": i + 1, "name": name} for i, name in enumerate(IDS)]
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    assert [(image["width"], image["height"]) for image in checked.content["images"]] == sizes


YOLO = {
    "by part": ("train/images", "train/labels", "data.yaml", "train"),
    "in the part": ("train/images", "train/labels", "train/data.yaml", "train"),
    "by kind": ("images/train", "labels/train", "data.yaml", "images/train"),
    "beside each other": ("train", "train", "dataset.yaml", "train"),
}


@pytest.mark.parametrize("layout", YOLO)
def test_yolo(tmp_path, monkeypatch, layout):
    pytest.importorskip("supervision")
    images, labels, data_yaml, given = YOLO[layout]
    content = draw_set(tmp_path / images, 5)
    write_yolo(content, tmp_path / labels, tmp_path / data_yaml)
    (tmp_path / labels / "0003.txt").unlink()  # no objects
    source = read_source([str(tmp_path / given)])
    assert (source.format, source.image_root) == ("YOLO", tmp_path / images)
    checked = check(source)
    assert checked.findings == []
    expected = [x for x in objects_of(content) if x[0] != "0003.jpg"]
    assert [x[:2] for x in objects_of(checked.content)] == [x[:2] for x in expected]
    np.testing.assert_allclose(
        [x[2:] for x in objects_of(checked.content)], [x[2:] for x in expected], atol=0.11
    )
    assert checked.categories == [{"id": i, "name": name} for i, name in enumerate(IDS)]
    assert len(checked.content["images"]) == 5
    # Also by a relative path.
    monkeypatch.chdir(tmp_path)
    assert len(read_source([given]).content["annotations"]) == len(expected)


def test_what_supervision_cannot_read_is_one_sentence(tmp_path):
    pytest.importorskip("supervision")
    content = draw_set(tmp_path / "images", 2)
    write_voc(content, tmp_path / "Annotations")
    (tmp_path / "Annotations" / "0001.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match="cannot read the labels of '.*Annotations': ") as error:
        read_source([str(tmp_path)])
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "Annotations")
    write_yolo(content, tmp_path / "labels", tmp_path / "data.yaml")
    (tmp_path / "labels" / "0001.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"0001\.jpg' contains class_id 7, outside .* 3 classes"):
        read_source([str(tmp_path)])
    (tmp_path / "labels" / "0001.txt").write_text("a b\n")
    with pytest.raises(DataError, match=r"cannot read the labels of .*0001\.txt"):
        read_source([str(tmp_path)])


def test_without_supervision_the_way_to_it_is_named(tmp_path, monkeypatch):
    write_voc(draw_set(tmp_path / "images", 1), tmp_path / "Annotations")
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DataError, match=r"pip install 'atss_d2\[convert\]'"):
        read_source([str(tmp_path)])


def test_wrong_paths(tmp_path):
    content = write_set(tmp_path, 1)
    json_file, images = str(tmp_path / "train.json"), str(tmp_path / "images")
    cases = [
        ([str(tmp_path / "gone.json"), images], "'.*gone.json' does not exist"),
        ([json_file], "train.json' needs the folder of its images"),
        ([json_file, json_file], "train.json' is not a folder"),
        ([json_file, str(tmp_path / "gone")], "gone' is not a folder"),
        ([images, json_file], "images' is a folder, not a JSON file: give"),
        ([json_file, images, images], "not 3 paths"),
        ([images], "images' holds none of _annotations.coco.json, .* or .*YOLO"),
    ]
    (tmp_path / "list.json").write_text(json.dumps(content["annotations"]))
    cases.append(([str(tmp_path / "list.json"), images], "holds a list, not COCO's object"))
    (tmp_path / "cut.json").write_text(json.dumps(content)[:-20])
    cases.append(([str(tmp_path / "cut.json"), images], "cut.json' is not a JSON file"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x9f")
    cases.append(([str(tmp_path / "bytes.json"), images], "' is not a JSON file in UTF-8"))
    (tmp_path / "data.yaml").write_text("names: [a]")
    cases.append(([str(tmp_path / "data.yaml")], "data.yaml' names several parts: give the folder"))
    write_yolo(content, tmp_path / "v/w/x/labels", tmp_path / "other.yaml")
    shutil.copytree(images, tmp_path / "v/w/x/images")
    cases.append(([str(tmp_path / "v/w/x")], "has a data.yaml with the names of the classes"))
    for paths, message in cases:
        with pytest.raises(DataError, match=message) as error:
            read_source(paths)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["", "a", "a/labels"])
def test_yolo_with_a_list_of_names(tmp_path, place):
    pytest.importorskip("supervision")
    content = draw_set(tmp_path / "a" / "images", 3)
    write_yolo(content, tmp_path / "a" / "labels", tmp_path / "data.yaml")
    expected = read_source([str(tmp_path / "a")])
    (tmp_path / "data.yaml").unlink()
    (tmp_path / place / "classes.txt").write_text("\n".join(IDS) + "\n")
    found = read_source([str(tmp_path / "a")])
    assert found == expected
    assert [category["name"] for category in found.content["categories"]] == list(IDS)


@pytest.mark.parametrize("part", ["train", "images/train"])
def test_a_folder_of_several_parts_is_told_from_none(tmp_path, part):
    (tmp_path / part).mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=f"has several parts: .* --train '.*{part}' and --val"):
        read_source([str(tmp_path)])
