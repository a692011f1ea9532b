"""The config that is written: short, correct from any folder, and exactly what was chosen."""

import runpy
from pathlib import Path

import pytest

from atss_d2.commands.project_config import config_text
from atss_d2.config import load_config, view_of
from atss_d2.data.custom.settings import MODELS, Settings

SETTINGS = Settings(
    model="mobilenetv2",
    short_side=352,
    max_size=576,
    train_short_sides=(288, 416),
    train_max_size=704,
    anchor_scale=4,
    batch=3,
    lr=0.00075,
    max_iter=640,
    eval_period=70,
    reasons={
        "short_side": "images measure " + "many words " * 20,
        "anchor_scale": "objects are small",
        "batch": "3 images",
        "max_iter": "seen often",
        "eval_period": "about 9",
    },
)
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 40, "name": 'a "quoted" \\ one'}]


def text_of(folder: Path, **changes) -> str:
    arguments = {
        "train": (folder / "train.json", folder.parent / "all images"),
        "val": (folder.parent / "v.json", folder / "images"),
        "title": "2 classes",
        "command": "python train_net.py --config-file config.py",
        "init_checkpoint": None,
    }
    return config_text(folder, SETTINGS, **{"categories": CATEGORIES, **arguments, **changes})


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "my 1st projéct"
    folder.mkdir()
    return folder


def test_it_sets_what_was_chosen(project, monkeypatch):
    (project / "config.py").write_text(text_of(project), encoding="utf-8")
    monkeypatch.chdir("/")
    cfg = load_config(project / "config.py")
    cfg = load_config(project / "config.py")  # again: the data sets are registered already
    assert cfg.model.num_classes == 2
    assert view_of(cfg).categories == CATEGORIES
    assert cfg.dataloader.train.dataset.names == "my_1st_projéct_train"
    assert cfg.dataloader.test.dataset.names == "my_1st_projéct_val"
    train, test = (
        cfg.dataloader[part].mapper.augmentations[0].copy() for part in ("train", "test")
    )
    assert (list(train.short_edge_length), train.max_size) == ([288, 416], 704)
    assert (test.short_edge_length, test.max_size) == (352, 576)
    assert cfg.model.anchor_generator.sizes == [[32], [64], [128], [256]]
    assert cfg.dataloader.train.total_batch_size == 3
    assert (cfg.optimizer.lr, cfg.train.max_iter, cfg.train.eval_period) == (0.00075, 640, 70)
    assert cfg.train.checkpointer.period == 70
    assert cfg.train.output_dir == str(project / "output")
    assert cfg.train.init_checkpoint == "atss_d2://pretrained/mobilenet_v2.pth"


def test_paths_inside_move_with_the_folder_and_others_do_not(project, tmp_path):
    text = text_of(project, init_checkpoint=project / "pretrained" / "a.pth")
    moved = tmp_path / "moved"
    project.rename(moved)
    (moved / "config.py").write_text(text, encoding="utf-8")
    calls = {}

    def register(name, json_file, images):
        calls[name] = Path(json_file), Path(images)

    import atss_d2.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atss_d2.data, "register_coco", register)
        names = runpy.run_path(str(moved / "config.py"))
    assert calls == {
        "my_1st_projéct_train": (moved / "train.json", tmp_path / "all images"),
        "my_1st_projéct_val": (tmp_path / "v.json", moved / "images"),
    }
    assert names["train"].init_checkpoint == str(moved / "pretrained" / "a.pth")
    assert names["categories"] == {c["id"]: c["name"] for c in CATEGORIES}


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_it_is_short_and_every_choice_has_its_reason(project, num_classes):
    categories = [{"id": 2 * i, "name": f"class {i}"} for i in range(num_classes)]
    lines = text_of(project, categories=categories).splitlines()
    assert max(len(line) for line in lines if "Path(" not in line) <= 100
    code = [line for line in lines[5:] if line and line[0] not in "# ])}"]
    assert len(code) <= 25
    text = " ".join(line.removeprefix("#") for line in lines if line.startswith("#"))
    for reason in SETTINGS.reasons.values():
        assert " ".join(reason.split())[1:] in " ".join(text.split())


def test_the_models_are_those_of_the_configs():
    assert [spec.config for spec in MODELS.values()] == [
        "custom/atss_mobilenetv2",
        "custom/atss_R_50",
    ]
