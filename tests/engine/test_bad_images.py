"""Training images that cannot be used stop a run with a sentence, or are skipped."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from atss_d2.config import ConfigError
from atss_d2.data import DataError
from atss_d2.engine.bad_images import BAD_IMAGES, BadImages
from atss_d2.engine.train_loader import build_train_loader
from tests import toy

TRAIN_NET = Path(__file__).resolve().parents[2] / "train_net.py"
BAD = {"3", "8"}


def read(image: dict) -> dict:
    """A mapper for which two images are bad."""
    if image["file_name"] in BAD:
        raise OSError("broken data stream")
    return image


def names(num_workers: int, bad_images: BadImages, *, start: int = 0, stop: int = 12) -> list:
    dataset = [
        {"file_name": str(i), "image_id": 100 + i, "width": 3 if i % 3 else 1, "height": 2}
        for i in range(11)
    ]
    loader = build_train_loader(
        dataset,
        mapper=read,
        total_batch_size=2,
        num_workers=num_workers,
        seed=5,
        start_iter=start,
        bad_images=bad_images,
    )
    batches = itertools.islice(loader, stop - start)
    return [[image["file_name"] for image in batch] for batch in batches]


def listed(folder: Path) -> list[str]:
    lines = (folder / BAD_IMAGES).read_text().splitlines()
    return [json.loads(line)["file_name"] for line in lines]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stops_with_file_id_and_cause(num_workers):
    sentence = r"^the image '[38]' \(image_id 10[38]\) cannot be used: OSError: broken data stream$"
    with pytest.raises(DataError, match=sentence):
        names(num_workers, BadImages())


def test_skips_the_same_images_with_workers_and_when_resumed(tmp_path):
    whole = names(0, BadImages(tmp_path, limit=2))
    assert not BAD & set(itertools.chain(*whole))
    assert sorted(listed(tmp_path)) == sorted(BAD)  # each once, though met in several epochs
    for num_workers in (0, 2):
        assert names(num_workers, BadImages(tmp_path, limit=2), start=5) == whole[5:]
    assert sorted(listed(tmp_path)) == sorted(BAD)
    # A replacement has the same aspect ratio.
    assert all(len({int(x) % 3 == 0 for x in batch}) == 1 for batch in whole)


def test_counts_and_logs(tmp_path, caplog):
    with EventStorage() as storage:
        names(0, BadImages(tmp_path, limit=2))
    assert storage.latest()["bad_images"][0] == 2
    warnings = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].startswith("Skipped bad image 1 of at most 2: the image '")


def test_the_limit_also_counts_images_of_the_run_before(tmp_path):
    (tmp_path / BAD_IMAGES).write_text('{"file_name": "from before", "problem": ""}\n{"file_na')
    with pytest.raises(DataError, match=r"3 training images .*max_bad_images \(2\).*lists them"):
        names(0, BadImages(tmp_path, limit=2))
    BadImages(tmp_path, limit=2).forget()
    assert not (tmp_path / BAD_IMAGES).exists()


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("train.on_bad_image", "ignore", "on_bad_image must be 'stop' or 'skip', got 'ignore'"),
        ("train.max_bad_images", 0, "max_bad_images must be an integer >= 1, got 0"),
    ],
)
def test_wrong_values(tmp_path, key, value, problem):
    cfg = toy.config(tmp_path, **{"train.on_bad_image": "skip", key: value})
    with pytest.raises(ConfigError, match=problem):
        BadImages.from_config(cfg)


# A run whose data set has an image that is cut off


@pytest.fixture(scope="module")
def bad_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        folder = tmp_path_factory.mktemp("bad_data")
        toy.write_dataset(folder)
        path = folder / "toy_train_4.png"
        path.write_bytes(path.read_bytes()[:1000])
        yield folder


def command_line(config_file: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TRAIN_NET), "--config-file", str(config_file), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_command_stops_with_one_sentence(bad_data, tmp_path):
    config_file = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    own = ["dataloader.train.num_workers=2", "train.check_data=False"]
    result = command_line(config_file, *own)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    path = bad_data / "toy_train_4.png"
    assert f"train_net.py: the image '{path}' (image_id 4) cannot be used: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_lazy_and_yaml_runs_skip(bad_data, tmp_path):
    (bad_data / "toy_train_7.png").unlink()
    overrides = {"train.on_bad_image": "skip", "train.max_bad_images": 2, "train.max_iter": 6}
    (tmp_path / "lazy").mkdir()
    lazy = toy.Run(tmp_path / "lazy", **overrides).train()
    own = ["MODEL.ATSS.TRAIN.ON_BAD_IMAGE", "skip", "MODEL.ATSS.TRAIN.MAX_BAD_IMAGES", 2]
    yaml = toy.YamlRun(tmp_path / "yaml", *own)
    yaml.train()
    bad = {"toy_train_4.png", "toy_train_7.png"}
    for run in (lazy, yaml):
        seen = toy.seen_images(run.folder / "seen")
        assert list(seen) == list(range(6))
        assert not bad & set(itertools.chain(*seen.values()))
        assert {Path(name).name for name in listed(run.output_dir)} == bad
        metrics = toy.read_metrics(run.output_dir).values()
        assert [x["bad_images"] for x in metrics if "bad_images" in x][-1] == 2
