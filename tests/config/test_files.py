"""Configs are found by name."""

import pytest
from detectron2.config import LazyConfig

from atss_d2.config import files, get_config, get_config_path, list_configs


def test_every_listed_config_is_found():
    names = list_configs()
    assert "coco/atss_R_50_FPN_1x" in names
    assert names == sorted(set(names))
    for name in names:
        assert not name.endswith(".py")
        assert not name.startswith("common/")
        assert get_config_path(name) == get_config_path(f"{name}.py")


def test_get_config_has_detectron2s_five_keys():
    config = get_config("coco/atss_R_50_FPN_1x")
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(config)
    again = LazyConfig.load(get_config_path("coco/atss_R_50_FPN_1x.py"))
    assert config == again
    again.train.max_iter += 1  # a copy: nothing is shared between two calls
    assert get_config("coco/atss_R_50_FPN_1x") == config


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("coco/atss_R50_FPN_1x", "coco/atss_R_50_FPN_1x"),
        ("coco/atss_R_50_FPN_1x.yaml", "yaml/atss_R_50_FPN_1x.yaml"),
        ("atss_R_50_FPN_1x", "coco/atss_R_50_FPN_1x"),
        ("COCO/atss_r_50_fpn_1x.py", "coco/atss_R_50_FPN_1x"),
        ("yaml/Base-ATS.yaml", "yaml/Base-ATSS.yaml"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(FileNotFoundError) as error:
        get_config(wrong)
    assert f"no config '{wrong}'" in str(error.value)
    assert "did you mean" in str(error.value)
    assert nearest in str(error.value)


def test_a_name_like_no_other_is_answered_with_one_of_each_folder():
    with pytest.raises(FileNotFoundError, match=r"available: .*coco/\w+_R_50_FPN_1x"):
        get_config("?")
    with pytest.raises(FileNotFoundError):
        get_config("coco")  # a folder


def test_configs_of_an_installed_package(tmp_path, monkeypatch):
    """A wheel has configs/ inside the package; a checkout's comes first."""
    for root in ("checkout", "wheel"):
        (tmp_path / root / "demo").mkdir(parents=True)
        (tmp_path / root / "demo" / f"{root}.py").write_text("train = dict(max_iter=1)\n")
        (tmp_path / root / "demo" / "both.py").write_text(f"train = dict(root='{root}')\n")
    roots = (tmp_path / "checkout", tmp_path / "wheel")
    monkeypatch.setattr(files, "_CONFIG_ROOTS", roots)
    assert get_config("demo/both").train.root == "checkout"

    monkeypatch.setattr(files, "_CONFIG_ROOTS", (tmp_path / "nowhere", tmp_path / "wheel"))
    assert list_configs() == ["demo/both", "demo/wheel"]
    assert get_config("demo/wheel").train.max_iter == 1
    assert get_config("demo/both").train.root == "wheel"


def test_without_any_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CONFIG_ROOTS", (tmp_path / "nowhere",))
    assert list_configs() == []
    with pytest.raises(FileNotFoundError, match="no config 'demo/x'"):
        get_config("demo/x")
