import json
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances, pairwise_iou
from omegaconf import OmegaConf
from PIL import UnidentifiedImageError
from torch import nn

from atss_d2 import Predictor, get_config
from atss_d2.config import load_config
from atss_d2.engine import build_model
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")


def lazy_config():
    """A config whose untrained model finds a hundred objects, in images that are enlarged."""
    cfg = toy.config("nowhere", **{"model.head.prior_prob": 0.3})
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 112
    return cfg


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(lazy_config()).state_dict()}, path)
    return path


@pytest.fixture
def predictor(weights) -> Predictor:
    return Predictor(lazy_config(), weights)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))


def assert_equal(actual: Instances, expected: Instances) -> None:
    assert actual.image_size == expected.image_size
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_classes, expected.pred_classes)


# Configs


def test_detects_what_the_evaluation_detects(predictor, weights):
    cfg = lazy_config()
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(weights)["model"])
    for batch in instantiate(cfg.dataloader.test):
        with torch.no_grad():
            expected = model(batch)[0]["instances"]
        actual = predictor(batch[0]["file_name"])
        assert_equal(actual, expected)
        # In pixels of the image as it is, not as the model saw it.
        assert actual.image_size == (batch[0]["height"], batch[0]["width"])
        assert batch[0]["image"].shape[1] > batch[0]["height"]
        assert len(actual) == 100


def test_kinds_of_lazy_configs(tmp_path, weights, toy_data, monkeypatch):
    image = toy_data / "toy_val_0.png"
    expected = Predictor(lazy_config(), weights)(image)
    script = tmp_path / "config.py"
    script.write_text(
        "from tests.test_predictor import lazy_config\n\n_cfg = lazy_config()\n"
        "model, dataloader, train = _cfg.model, _cfg.dataloader, _cfg.train\n"
    )
    saved = tmp_path / "config.yaml"
    LazyConfig.save(lazy_config(), str(saved))
    for config in (script, str(script), saved, str(saved)):
        assert_equal(Predictor(config, weights)(image), expected)
    # The config's own checkpoint, when no other is given.
    cfg = lazy_config()
    cfg.train.init_checkpoint = str(weights)
    assert_equal(Predictor(cfg)(image), expected)
    overrides = [f"train.init_checkpoint={weights}", "model.test_score_thresh=0.99"]
    assert len(Predictor(lazy_config(), overrides=overrides)(image)) == 0


def test_config_by_name(tmp_path):
    name = "demo/atss_mobilenetv2_trees"
    torch.save(build_model(get_config(name)).state_dict(), tmp_path / "model.pth")
    predictor = Predictor(name, tmp_path / "model.pth", overrides=["model.test_score_thresh=0.0"])
    assert predictor.class_names == MetadataCatalog.get("trees_val").thing_classes
    assert isinstance(predictor(np.zeros((40, 50, 3), np.uint8)), Instances)


def test_yaml_equals_detectron2s_predictor(tmp_path, weights, toy_data):
    path = tmp_path / "toy.yaml"
    path.write_text(toy.yaml_config(tmp_path))
    overrides = ["MODEL.ATSS.TEST_SCORE_THRESH", "0.0", "INPUT.MIN_SIZE_TEST", "112"]
    for input_format in ("BGR", "RGB"):
        cfg = load_config(path)
        cfg.merge_from_list([*overrides, "MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"])
        cfg.INPUT.FORMAT = input_format
        theirs = DefaultPredictor(cfg)
        more = [*overrides, "INPUT.FORMAT", input_format]
        for config, kwargs in ((path, dict(overrides=more)), (cfg, {})):
            ours = Predictor(config, weights, **kwargs)
            assert ours.class_names == list(toy.CLASSES)
            for image_path in sorted(toy_data.glob("toy_val_*.png")):
                image = read(image_path)
                detections = ours(image)
                assert len(detections) == 100
                assert_equal(detections, theirs(image)["instances"])


def test_device(weights, monkeypatch):
    cfg = lazy_config()
    assert cfg.train.device == "cuda"
    asked = []
    monkeypatch.setattr("atss_d2.engine.models.resolve_device", lambda d: asked.append(d) or "cpu")
    Predictor(cfg, weights)
    Predictor(cfg, weights, device="cuda:1")
    assert asked == ["cuda", "cuda:1"]


# Images


def test_kinds_of_images(predictor, toy_data):
    paths = [toy_data / f"toy_val_{i}.png" for i in range(4)]
    expected = [predictor(read(path)) for path in paths]
    assert_equal(predictor(paths[0]), expected[0])
    assert_equal(predictor(str(paths[1])), expected[1])
    mixed = [paths[0], str(paths[1]), read(paths[2]), paths[3]]
    for images in (mixed, tuple(mixed)):
        results = predictor(images)
        assert isinstance(results, list)
        for result, instances in zip(results, expected, strict=True):
            assert_equal(result, instances)
    assert predictor([]) == []
    assert len(predictor([paths[0]])) == 1


def test_detections_do_not_depend_on_the_batch(weights, toy_data):
    one, three = (Predictor(lazy_config(), weights, batch_size=n) for n in (1, 3))
    paths = [toy_data / f"toy_train_{i}.png" for i in (0, 1, 3, 2, 4, 5, 6, 7, 9, 8)]
    images = [read(path) for path in paths]
    images.insert(2, images[0][:77])  # and one of a size of its own
    for result, image in zip(three(images), images, strict=True):
        assert_equal(result, one(image))


class StubModel(nn.Module):
    """Keeps what it is given, and detects the image's mean in a box of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_classes = 2
        self.batches: list[list[dict]] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(batched_inputs)
        return [{"instances": self.detect(x)} for x in batched_inputs]

    def detect(self, x: dict) -> Instances:
        size = (x["height"], x["width"])
        box = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        score = x["image"].float().mean()[None]
        return Instances(size, pred_boxes=Boxes(box), scores=score)


@pytest.fixture
def stub_predictor(tmp_path):
    """``stub_predictor(**{config key: value}, batch_size=1)`` has a :class:`StubModel`."""
    torch.save(StubModel().state_dict(), tmp_path / "stub.pth")

    def make(*, batch_size: int = 1, **overrides) -> Predictor:
        cfg = lazy_config()
        cfg.model = L(StubModel)()
        cfg.dataloader.test.mapper.image_format = "BGR"
        for key, value in overrides.items():
            OmegaConf.update(cfg, key, value, merge=False)
        return Predictor(cfg, tmp_path / "stub.pth", batch_size=batch_size)

    return make


def test_order_is_kept_and_batches_have_one_size(stub_predictor):
    predictor = stub_predictor(batch_size=3)
    sizes = [(40, 60), (60, 40), (40, 60), (40, 60), (60, 40), (50, 50), (40, 60), (60, 40)]
    images = [np.full((*size, 3), i, np.uint8) for i, size in enumerate(sizes)]
    results = predictor(images)
    assert [result.image_size for result in results] == sizes
    assert [result.scores.item() for result in results] == list(range(8))
    batches = predictor.model.batches
    assert sorted(len(batch) for batch in batches) == [1, 1, 3, 3]
    for batch in batches:
        assert len({x["image"].shape for x in batch}) == 1


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_pixels_are_those_of_the_test_mapper(stub_predictor, toy_data, image_format):
    predictor = stub_predictor(**{"dataloader.test.mapper.image_format": image_format})
    cfg = lazy_config()
    cfg.dataloader.test.mapper.image_format = image_format
    mapper = instantiate(cfg.dataloader.test.mapper)
    colored = toy_data / "colored.png"
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)
    pixels[..., 0] //= 4  # little blue
    cv2.imwrite(str(colored), pixels)
    expected = mapper({"file_name": str(colored), "height": 70, "width": 90})["image"]
    for image in (colored, pixels):
        predictor.model.batches.clear()
        predictor(image)
        (inputs,) = predictor.model.batches[0]
        torch.testing.assert_close(inputs["image"], expected, rtol=0, atol=0)
        assert (inputs["height"], inputs["width"]) == (70, 90)
    blue = expected[0 if image_format == "BGR" else 2].float().mean()
    assert blue < 40


def test_16_bit_gray_files_as_the_test_mapper_sees_them(stub_predictor, tmp_path):
    gray = np.tile(np.arange(90, dtype=np.uint8), (70, 1))
    for name, pixels in (("8", gray), ("16", gray.astype(np.uint16) * 257)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    predictor = stub_predictor()
    mapper = instantiate(lazy_config().dataloader.test.mapper)
    for name in ("8", "16"):
        predictor(tmp_path / f"{name}.png")
    first, second = (batch[0]["image"] for batch in predictor.model.batches)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    record = {"file_name": str(tmp_path / "16.png"), "height": 70, "width": 90}
    torch.testing.assert_close(mapper(record)["image"], first, rtol=0, atol=0)
    assert first.float().std() > 20


def test_other_augmentations_of_the_test_mapper(stub_predictor):
    augmentations = [L(T.Resize)(shape=[32, 64])]
    predictor = stub_predictor(**{"dataloader.test.mapper.augmentations": augmentations})
    predictor(np.zeros((100, 50, 3), np.uint8))
    assert predictor.model.batches[0][0]["image"].shape == (3, 32, 64)


def test_class_names(stub_predictor):
    assert stub_predictor().class_names == list(toy.CLASSES)
    train, test = (f"dataloader.{part}.dataset.names" for part in ("train", "test"))
    for names in ("no_such_dataset", ["no_such_dataset"], []):
        # Those of the training set, if there is one.
        assert stub_predictor(**{test: names}).class_names == list(toy.CLASSES)
        predictor = stub_predictor(**{test: names, train: names})
        assert predictor.class_names == ["0", "1"]
        assert predictor.categories == [{"id": 0, "name": "0"}, {"id": 1, "name": "1"}]
        assert not predictor.has_names
        assert predictor.metadata.get("thing_classes") is None
    elsewhere = L(list)()  # a data set that is not in the catalog
    keys = {"dataloader.test.dataset": elsewhere, "dataloader.train.dataset": elsewhere}
    assert stub_predictor(**keys).class_names == ["0", "1"]


def categories(*names: str, first_id: int = 1) -> list[dict]:
    return [{"id": first_id + 2 * i, "name": name} for i, name in enumerate(names)]


@pytest.fixture
def registered(tmp_path):
    """``registered(name, names)`` registers a data set of which only the JSON file is there."""
    datasets = []

    def register(name: str, names: list[str] | None) -> str:
        path = tmp_path / f"{name}.json"
        if names is not None:
            # Not in the order of the ids, which Detectron2's classes have.
            content = {"categories": categories(*names, first_id=11)[::-1]}
            path.write_text(json.dumps({"images": [], "annotations": [], **content}))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        datasets.append(name)
        return name

    yield register
    for name in datasets:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_names_come_from_the_checkpoint_then_the_config_then_the_data(
    weights, tmp_path, registered, caplog
):
    cfg = lazy_config()
    cfg.dataloader.train.dataset.names = registered("names_train", ["t0", "t1"])
    cfg.dataloader.test.dataset.names = registered("names_test", ["v0", "v1"])
    MetadataCatalog.get("names_test")  # exists, without thing_classes: nothing was loaded
    predictor = Predictor(cfg, weights)
    assert predictor.categories == categories("v0", "v1", first_id=11)
    assert "thing_classes" not in MetadataCatalog.get("names_test").as_dict()

    cfg.dataloader.test.dataset.names = registered("names_gone", None)  # no such file
    assert Predictor(cfg, weights).class_names == ["t0", "t1"]

    cfg.categories = categories("c0", "c1")
    assert Predictor(cfg, weights).categories == categories("c0", "c1")

    named = tmp_path / "named.pth"
    state = torch.load(weights)
    torch.save({**state, "categories": categories("w0", "w1", first_id=5)}, named)
    predictor = Predictor(cfg, named)
    assert predictor.categories == categories("w0", "w1", first_id=5)
    assert predictor.class_names == predictor.metadata.thing_classes == ["w0", "w1"]
    assert predictor.metadata.thing_dataset_id_to_contiguous_id == {5: 0, 7: 1}
    assert predictor.has_names
    assert "unknown" not in caplog.text


def test_names_of_another_number_are_passed_over(weights, tmp_path, caplog):
    cfg = lazy_config()
    cfg.categories = categories("one", "two", "three")
    assert Predictor(cfg, weights).class_names == list(toy.CLASSES)
    message = "The class names of the config are ignored: they are 3, but the model has 2 classes"
    assert message in caplog.text
    # Text that is no list of categories is no reason not to predict.
    torch.save({**torch.load(weights), "categories": ["a", "b"]}, tmp_path / "odd.pth")
    assert Predictor(lazy_config(), tmp_path / "odd.pth").class_names == list(toy.CLASSES)


def test_unknown_names_are_said(weights, caplog):
    cfg = lazy_config()
    cfg.dataloader.test.dataset.names = cfg.dataloader.train.dataset.names = "no_such_dataset"
    assert Predictor(cfg, weights).class_names == ["0", "1"]
    assert caplog.text.count("The names of the classes are unknown") == 1


def test_names_from_yaml(weights, tmp_path, registered):
    path = tmp_path / "toy.yaml"
    path.write_text(toy.yaml_config(tmp_path))
    cfg = load_config(path)
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = (), (registered("names_yaml", ["t0", "t1"]),)
    assert Predictor(cfg, weights).categories == categories("t0", "t1", first_id=11)
    cfg.MODEL.ATSS.CATEGORIES = categories("c0", "c1")
    assert Predictor(cfg, weights).categories == categories("c0", "c1")


# Tiles


def test_tiles_find_more_than_a_pass(predictor, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(110, 140, (200, 260, 3)).astype(np.uint8)
    one, tiled = predictor(image), predictor.detect_tiles(image, tile_size=100)
    assert len(one) == 100 < len(tiled)
    assert tiled.image_size == (200, 260)
    boxes = tiled.pred_boxes.tensor
    assert (boxes.dtype, tiled.scores.dtype) == (torch.float32, torch.float32)
    assert tiled.pred_classes.dtype == torch.int64
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([260, 200, 260, 200])).all()
    assert boxes[:, 2].max() > 200
    assert (tiled.scores.diff() <= 0).all()
    # No duplicates: as strict as a pass.
    overlaps = pairwise_iou(tiled.pred_boxes, tiled.pred_boxes).fill_diagonal_(0)
    overlaps[tiled.pred_classes[:, None] != tiled.pred_classes] = 0
    assert overlaps.max() <= predictor.model.test_nms_thresh
    # A file gives the same, and so do batches of tiles.
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert_equal(predictor.detect_tiles(tmp_path / "a.png", tile_size=100), tiled)
    predictor.batch_size = 4
    assert_equal(predictor.detect_tiles(image, tile_size=100), tiled)


def test_one_tile_is_a_pass(predictor, toy_data):
    image = read(toy_data / "toy_val_0.png")
    assert_equal(predictor.detect_tiles(image, tile_size=200), predictor(image))


def test_tiles_below_the_threshold_are_left_out_and_full_ones_named(predictor, caplog):
    image = np.random.default_rng(0).integers(110, 140, (200, 260, 3)).astype(np.uint8)
    everything = predictor.detect_tiles(image, tile_size=100)
    assert "tiles have 100 detections, the most that a pass gives" in caplog.text
    caplog.clear()
    thresh = float(everything.scores[5])
    found = predictor.detect_tiles(image, tile_size=100, score_thresh=thresh)
    assert 0 < len(found) <= 6
    assert (found.scores >= thresh).all()
    assert caplog.text == ""
    with pytest.raises(ValueError, match="size of tiles must be at least 32 pixels, got 8"):
        predictor.detect_tiles(image, tile_size=8)
    with pytest.raises(ValueError, match="an image must be a file name"):
        predictor.detect_tiles(image[0])


# Mistakes


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 50), np.uint8), r"got shape \(40, 50\)"),
        (np.zeros((40, 50, 1), np.uint8), r"got shape \(40, 50, 1\)"),
        (np.zeros((40, 50, 4), np.uint8), r"got shape \(40, 50, 4\)"),
        (np.zeros((2, 40, 50, 3), np.uint8), r"got shape \(2, 40, 50, 3\)"),
        (np.zeros((3, 40, 50), np.uint8), r"got shape \(3, 40, 50\)"),
        (np.zeros((0, 50, 3), np.uint8), r"got shape \(0, 50, 3\)"),
        (np.zeros((40, 50, 3), np.float32), "got float32"),
        (torch.zeros((40, 50, 3), dtype=torch.uint8), "got Tensor"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image(predictor, image, message):
    for images in (image, [image]):
        with pytest.raises(ValueError, match=rf"\(H, W, 3\) uint8 array in BGR order, {message}"):
            predictor(images)


def test_missing_and_broken_image_files(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        predictor(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnidentifiedImageError, match=r"text\.png"):
        predictor(tmp_path / "text.png")


def test_missing_config_or_weights(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="did you mean coco/atss_R_50_FPN_1x"):
        Predictor("coco/atss_R50_FPN_1x", weights)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at '.*nowhere\.pth'"):
        Predictor(lazy_config(), tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="no weights: give a checkpoint"):
        Predictor(lazy_config())


def test_wrong_arguments(weights):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        Predictor(lazy_config(), weights, batch_size=0)
    with pytest.raises(KeyError, match="did you mean model"):
        Predictor(lazy_config(), weights, overrides=["model.test_score_tresh=0.3"])
    with pytest.raises(KeyError, match=r"did you mean INPUT\.MIN_SIZE_TEST"):
        Predictor("yaml/atss_R_50_FPN_1x.yaml", weights, overrides=["INPUT.MIN_SIZE_TST", "3"])
