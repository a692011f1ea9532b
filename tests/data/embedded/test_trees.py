import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO

from atss_d2.data import DataError, dataset_root, prepare_trees
from atss_d2.data.embedded import trees
from atss_d2.data.embedded.voc import read_voc

_OBJECT = """<object><name>Tree</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
# Training photograph 700 x 800: the strip for trees_train_dev starts at row 600.
_SIZES = {
    trees.TREES_SPLITS["trees_train"].photograph: (700, 800),
    trees.TREES_SPLITS["trees_val"].photograph: (700, 500),
    trees.TREES_SPLITS["trees_site2"].photograph: (120, 100),
}
# As in the file: inclusive, counted from 1. The second is cut by row 600 (40 rows above, 10 below),
# the third in the middle of the columns of trees_val (350: 20 left of it, 20 right).
_BOXES = [(1, 1, 20, 30), (101, 561, 130, 610), (331, 201, 370, 230)]


def _members(boxes=_BOXES):
    members = {}
    for name, (width, height) in _SIZES.items():
        rng = np.random.default_rng(width)
        pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), (width, height))
        inside = [box for box in boxes if box[2] <= width and box[3] <= height]
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        body = size + "".join(_OBJECT.format(*box) for box in inside)
        members[f"deepforest/data/{name}.png"] = cv2.imencode(".png", pixels)[1].tobytes()
        members[f"deepforest/data/{name}.xml"] = f"<annotation>{body}</annotation>".encode()
    return members


@pytest.fixture
def fake(make_wheel, monkeypatch):
    wheel = make_wheel(_members())
    monkeypatch.setattr(trees, "TREES_WHEEL", wheel.pin)
    return wheel


def _read(folder, name):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def _summary(content):
    return [
        (content["images"][a["image_id"] - 1]["file_name"], a["bbox"], a["iscrowd"])
        for a in content["annotations"]
    ]


def test_tiles_and_boxes_by_hand(fake, tmp_path):
    folder = prepare_trees(tmp_path / "root", download=fake.download)
    # 700 x 800 in tiles of 640: at x 0, 60 and y 0, 160.
    assert _summary(_read(folder, "trees_train")) == [
        ("trees_train/0000_0000.png", [0, 0, 20, 30], 0),
        ("trees_train/0000_0000.png", [100, 560, 30, 50], 0),
        ("trees_train/0000_0000.png", [330, 200, 40, 30], 0),
        ("trees_train/0060_0000.png", [40, 560, 30, 50], 0),
        ("trees_train/0060_0000.png", [270, 200, 40, 30], 0),
        ("trees_train/0000_0160.png", [100, 400, 30, 50], 0),
        ("trees_train/0000_0160.png", [330, 40, 40, 30], 0),
        ("trees_train/0060_0160.png", [40, 400, 30, 50], 0),
        ("trees_train/0060_0160.png", [270, 40, 40, 30], 0),
    ]
    # 700 x 600: the box that reaches below row 600 keeps 40 of 50 rows; it stays, clipped.
    fit = _summary(_read(folder, "trees_train_fit"))
    assert ("trees_train_fit/0000_0000.png", [100, 560, 30, 40], 0) in fit
    # 700 x 200 below: two tiles; 10 of 50 rows are left: a crowd region.
    assert _summary(_read(folder, "trees_train_dev")) == [
        ("trees_train_dev/0000_0600.png", [100, 0, 30, 10], 1)
    ]
    # Exactly half is left on both sides: an object for both tiles.
    assert _summary(_read(folder, "trees_val")) == [
        ("trees_val/0000_0000.png", [0, 0, 20, 30], 0),
        ("trees_val/0000_0000.png", [330, 200, 20, 30], 0),
        ("trees_val/0350_0000.png", [0, 200, 20, 30], 0),
    ]


def test_tiles_are_the_photograph(fake, tmp_path):
    folder = prepare_trees(tmp_path / "root", download=fake.download)
    for name, split in trees.TREES_SPLITS.items():
        photograph = cv2.imread(str(folder / "photographs" / f"{split.photograph}.png"))
        for image in _read(folder, name)["images"]:
            x, y = (int(s) for s in image["file_name"].split("/")[1][:-4].split("_"))
            tile = cv2.imread(str(folder / "images" / image["file_name"]))
            assert tile.shape[:2] == (image["height"], image["width"])
            np.testing.assert_array_equal(
                tile, photograph[y : y + image["height"], x : x + image["width"]]
            )


def test_what_is_missing_or_stale_is_written_anew(fake, tmp_path):
    root = tmp_path / "root"
    folder = prepare_trees(root, download=fake.download)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    prepare_trees(root, download=fake.download)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    (folder / "images" / "trees_val" / "0350_0000.png").unlink()
    cut = folder / "annotations" / "trees_train.json"
    cut.write_text(cut.read_text()[:1000])
    stale = folder / "annotations" / "trees_site2.json"
    stale.write_text(stale.read_text().replace('"version": "1"', '"version": "0"'))
    prepare_trees(root, download=fake.download)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert fake.num_downloads == 1  # the photographs were there


def test_a_damaged_photograph_is_named(fake, tmp_path):
    path = tmp_path / "root/trees/photographs/OSBS_029.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"OSBS_029.png is not a readable picture: delete it"):
        prepare_trees(tmp_path / "root", download=fake.download)
    cv2.imwrite(str(path), np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"OSBS_029.png has 9 x 7 pixels, .* says 120 x 100"):
        prepare_trees(tmp_path / "root", download=fake.download)


def test_an_evaluation_tile_holds_at_most_100_boxes():
    pixels = np.zeros((50, 50, 3), np.uint8)
    boxes = np.tile(np.array([[10.0, 10, 20, 20]]), (101, 1))
    window = (0, 0, 50, 50)
    (tile,) = trees.cut_tiles("a", pixels, boxes[:100], [window], is_train=False)
    assert len(tile.boxes) == 100
    with pytest.raises(ValueError, match="of a holds 101 boxes"):
        list(trees.cut_tiles("a", pixels, boxes, [window], is_train=False))
    (tile,) = trees.cut_tiles("a", pixels, boxes, [window], is_train=True)
    assert len(tile.boxes) == 101


def test_fit_and_dev_share_no_pixel():
    fit, dev = (trees.TREES_SPLITS[f"trees_train_{part}"] for part in ("fit", "dev"))
    whole = trees.TREES_SPLITS["trees_train"]
    assert fit.photograph == dev.photograph == whole.photograph
    held_out = {trees.TREES_SPLITS[name].photograph for name in ("trees_val", "trees_site2")}
    assert len(held_out - {whole.photograph}) == 2
    for width, height in ((2299, 2472), (701, 803)):
        count = {}
        for part in (fit, dev, whole):
            count[part] = np.zeros((height, width), int)
            for x0, y0, x1, y1 in part.windows(width, height):
                assert x1 - x0 <= 640
                assert y1 - y0 <= 640
                count[part][y0:y1, x0:x1] += 1
        assert not ((count[fit] > 0) & (count[dev] > 0)).any()
        assert ((count[fit] > 0) | (count[dev] > 0)).all()
        assert count[dev].max() == 1
        assert (count[whole] > 0).all()
        assert 0.24 < (count[dev] > 0).mean() < 0.26


@pytest.mark.skipif(
    not (dataset_root() / "trees/annotations/trees_site2.json").is_file(),
    reason="the photographs are not there: run `python tools/prepare_data.py --trees`",
)
def test_the_real_photographs():
    folder = dataset_root() / "trees"
    num_boxes = {"trees_train": 574, "trees_val": 279, "trees_site2": 61}
    for name, split in trees.TREES_SPLITS.items():
        xml = folder / "photographs" / f"{split.photograph}.xml"
        boxes = read_voc(xml, class_name="tree").boxes
        if name in num_boxes:
            assert len(boxes) == num_boxes[name]
        coco = COCO(str(folder / "annotations" / f"{name}.json"))
        dicts = DatasetCatalog.get(name)
        assert len(dicts) == len(coco.imgs)
        for record in dicts:
            assert max(record["width"], record["height"]) <= 640
            objects = [a for a in record["annotations"] if not a["iscrowd"]]
            assert objects
            for annotation in record["annotations"]:
                x, y, w, h = annotation["bbox"]
                assert min(x, y) >= 0
                assert min(w, h) > 0
                assert x + w <= record["width"]
                assert y + h <= record["height"]
            if split.is_train:
                assert len(objects) == len(record["annotations"])
            else:
                assert len(objects) <= 100
    # Side by side, tiles hold each pixel of each box once, crowd regions included.
    coco = COCO(str(folder / "annotations" / "trees_val.json"))
    xml = folder / "photographs" / f"{trees.TREES_SPLITS['trees_val'].photograph}.xml"
    boxes = read_voc(xml, class_name="tree").boxes
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert sum(a["area"] for a in coco.anns.values()) == areas.sum()
