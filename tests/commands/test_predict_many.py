"""``predict`` for many images: --manifest, --json-lines, --shard, --merge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from atss_d2.commands import predict, processes, shard_run
from atss_d2.plain import json_lines
from tests import toy
from tests.commands.prediction_kills import (
    NUM_BAD,
    assert_same_lines,
    read_lines,
    survive,
    write_inputs,
)

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, toy_data):
    """The folder of config.py, model.pth and images, and the flags that name them."""
    folder = tmp_path_factory.mktemp("inputs")
    return folder, write_inputs(folder, NUM_IMAGES)


@pytest.fixture
def run(inputs, tmp_path, monkeypatch, capsys):
    """``run(*flags)``: the exit code, the lines in ``tmp_path / "out"``, and what was said."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(*flags, output="out"):
        capsys.readouterr()
        words = [*inputs[1], "--output", output, *map(str, flags)]
        try:
            code = predict.main(words)
        except SystemExit as end:
            code = end.code
        return code, [json.loads(x) for x in read_lines(Path(output))], capsys.readouterr().err

    return run


def good_images(inputs):
    return sorted((inputs[0] / "images").glob("*.png"))


def write_list(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in map(_plain, rows)]
    Path(path).write_text("".join(f"{line}\n" for line in lines))
    return path


def _plain(row):
    return str(row) if isinstance(row, Path) else row


# What is written


def test_merged_shards_are_what_a_single_run_writes(run, inputs, tmp_path):
    """Byte for byte, in the order of the list, whatever the number of shards."""
    images = inputs[0] / "images"
    assert predict.main([*inputs[1], "--input", str(images), "--output", "small"]) == 1
    expected = Path("small/detections.json").read_bytes()
    assert len(json.loads(expected)["images"]) == NUM_IMAGES
    for i in range(3):
        code, _, said = run("--input", images, "--json-lines", "--shard", f"{i}/3")
        assert code == (1 if "could not be read" in said else 0)
    assert predict.main(["--merge", "out"]) == 0
    assert Path("out/detections.json").read_bytes() == expected
    files = {path.name for path in Path("out").glob("*") if path.name[0] != "."}
    assert {"run.json", "images.jsonl", "detections.00002-of-00003.jsonl"} <= files
    assert not [path for path in Path("out").iterdir() if path.suffix == ".png"]


def test_batches_and_workers_give_what_the_predictor_gives(run, inputs):
    images = good_images(inputs)
    _, expected, _ = run("--manifest", write_list("list.txt", images), output="one")
    flags = ("--batch-size", 4, "--num-workers", 2)
    code, lines, _ = run("--manifest", "list.txt", *flags)
    assert code == 0
    assert_same_lines([json.dumps(x) for x in lines], [json.dumps(x) for x in expected])
    assert sum(len(x["boxes"]) for x in lines) > 10 * NUM_IMAGES


def test_a_line_has_what_the_manifest_says(run, inputs):
    images = good_images(inputs)
    rows = [
        {"file_name": path.name, "image_id": f"a{i}", "width": 1, "camera": [i]}
        for i, path in enumerate(images)
    ]
    flags = ("--manifest", write_list("m.jsonl", rows), "--image-root", images[0].parent)
    code, lines, _ = run(*flags, "--confidence-threshold", 0)
    assert code == 0
    for row, line in zip(rows, sorted(lines, key=lambda x: x["index"]), strict=True):
        width, height = Image.open(images[line["index"]]).size
        assert {key: line[key] for key in ("file_name", "image_id", "camera")} == {
            key: row[key] for key in ("file_name", "image_id", "camera")
        }
        assert (line["width"], line["height"]) == (width, height)
        assert len(line["boxes"]) == len(line["scores"]) == len(line["category_ids"]) > 0
        assert line["scores"] == sorted(line["scores"], reverse=True)
    assert predict.main(["--merge", "out", "--output", "elsewhere.json"]) == 0
    merged = json.loads(Path("elsewhere.json").read_text())
    assert [x["id"] for x in merged["images"]] == [f"a{i}" for i in range(NUM_IMAGES)]
    assert [x["camera"] for x in merged["images"]] == [[i] for i in range(NUM_IMAGES)]


def test_tiles(run, inputs):
    images = good_images(inputs)[:2]
    flags = ("--manifest", write_list("list.txt", images), "--tiles", 32)
    assert run(*flags)[0] == 0
    predict.main([*inputs[1], "--input", *map(str, images), "--tiles", "32", "--output", "small"])
    predict.main(["--merge", "out"])
    assert Path("out/detections.json").read_text() == Path("small/detections.json").read_text()


def test_image_ids_and_sub_folders(run, inputs, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(good_images(inputs)[0], tmp_path / "in" / "sub" / "a.png")
    content = {"images": [{"id": 77, "file_name": "a.png"}]}
    Path("val.json").write_text(json.dumps(content))
    code, _, said = run("--input", "in", "--json-lines")
    assert code == 2
    assert "'in' holds no image" in said
    code, lines, _ = run("--input", "in", "--json-lines", "--recursive", "--image-ids", "val.json")
    assert code == 0
    assert [(x["file_name"], x["image_id"]) for x in lines] == [("in/sub/a.png", 77)]


def test_names_that_are_not_unicode(run, inputs):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(good_images(inputs)[0], name)
    Path("list.txt").write_bytes(os.fsencode(name) + b"\r\n\n")
    code, (line,), _ = run("--manifest", "list.txt")
    assert code == 0
    assert line["file_name"] == name
    assert predict.main(["--merge", "out"]) == 0
    assert json.loads(Path("out/detections.json").read_text())["images"][0]["file_name"] == name


# Bad images


def test_bad_images_are_listed_and_retried_only_if_asked(run, inputs, tmp_path):
    good = good_images(inputs)[0]
    truncated, page, pipe = tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "pipe"
    truncated.write_bytes(good.read_bytes()[:300])
    page.write_text("<html>")
    os.mkfifo(pipe)
    huge = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(huge)
    images = [good, truncated, page, tmp_path / "none.jpg", tmp_path, pipe, huge]
    flags = ("--manifest", write_list("list.txt", images))
    code, lines, said = run(*flags)
    assert code == 1
    assert "6 images could not be read, out/bad_images.00000-of-00001.jsonl lists them" in said
    reasons = {x["file_name"]: x["reason"] for x in lines if "reason" in x}
    assert "truncated" in reasons[str(truncated)]
    assert "cannot identify" in reasons[str(page)]
    assert reasons[str(tmp_path / "none.jpg")] == "it does not exist"
    assert reasons[str(tmp_path)] == reasons[str(pipe)] == "it is not a file"
    assert "decompression bomb" in reasons[str(huge)]
    shutil.copy(good, truncated)
    code, lines, _ = run(*flags)
    assert code == 1
    assert len([x for x in lines if "reason" in x]) == 6
    code, lines, said = run(*flags, "--retry-bad")
    assert code == 1
    assert len([x for x in lines if "reason" in x]) == 5
    assert predict.main(["--merge", "out"]) == 0


def test_an_image_that_does_not_fit_into_memory_is_bad(run, inputs, monkeypatch):
    detect = shard_run.ShardRun._detect_batch

    def fail(self, batch):
        if len(batch) > 1 or batch[0]["row"]["index"] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return detect(self, batch)

    monkeypatch.setattr(shard_run.ShardRun, "_detect_batch", fail)
    flags = ("--manifest", write_list("list.txt", good_images(inputs)), "--batch-size", 4)
    code, lines, _ = run(*flags)
    assert code == 1
    assert [x["index"] for x in lines if "reason" in x] == [3]
    assert len(lines) == NUM_IMAGES


# Going on


def test_runs_that_are_killed_have_each_image_once(inputs, tmp_path):
    (tmp_path / "images").symlink_to(inputs[0] / "images")
    counts = survive(inputs[1], tmp_path, num_kills=5)
    assert counts["runs"] >= 1


def test_damaged_lines_are_done_again(run, inputs):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    _, expected, _ = run(*flags)
    path = Path("out/detections.00000-of-00001.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    zeros = b"\0" * len(lines[3])
    lines[3:5] = [zeros, lines[4], lines[5], b"[1]\n", b'{"index": 99}\n']  # and one twice
    path.write_bytes(b"".join(lines) + lines[0][:-1])
    code, actual, said = run(*flags)
    assert code == 0
    assert "5 damaged lines were removed" in said
    assert actual == expected
    _, actual, said = run(*flags)
    assert "damaged" not in said
    assert actual == expected


def test_a_finished_shard_says_so(run, inputs, capsys):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    run(*flags)
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.json*")}
    assert predict.main([*inputs[1], *flags, "--output", "out"]) == 0
    assert "shard 0 of 1 was finished before: 12 images" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("*.json*")} == before


def test_another_run_is_refused_unless_overwritten(run, inputs, tmp_path):
    images = good_images(inputs)
    flags = ("--manifest", write_list("list.txt", images))
    _, expected, _ = run(*flags)
    other = tmp_path / "other.pth"
    content = torch.load(inputs[0] / "model.pth")
    content["model"]["head.cls_score.bias"] += 0.1
    torch.save(content, other)
    write_list("shorter.txt", images[1:])
    for changes, sentence in [
        (["--confidence-threshold", 0.4], "confidence_threshold was 0.2 instead of 0.4"),
        (["--weights", other], "weights_sha256 was"),
        (["--shard", "0/2"], "shards was 1 instead of 2"),
        (["--tiles", 32], "tiles was nothing instead of 32"),
        (
            ["--opts", "model.test_nms_thresh=0.3"],
            "config.model.test_nms_thresh was nothing instead of 0.3",
        ),
    ]:
        code, lines, said = run(*flags, *changes)
        assert code == 2
        assert len(said.splitlines()) == 1
        assert sentence in said
        assert "choose another --output, or start anew with --overwrite" in said
        assert lines == expected
    code, lines, said = run("--manifest", "shorter.txt")
    assert code == 2
    assert "images was 12 instead of 11" in said
    code, lines, _ = run("--manifest", "shorter.txt", "--shard", "0/2", "--overwrite")
    assert code == 0
    assert len(lines) == 6  # nothing of the old run
    with pytest.MonkeyPatch.context() as patch:  # a job that SLURM has queued again goes on
        patch.setenv("SLURM_RESTART_COUNT", "1")
        _, lines, _ = run("--manifest", "shorter.txt", "--shard", "1/2", "--overwrite")
    assert len(lines) == 11
    # Batches and workers may change.
    code, lines, _ = run(
        "--manifest", "shorter.txt", "--shard", "1/2", "--batch-size", 4, "--num-workers", 1
    )
    assert code == 0
    assert len(lines) == 11


def test_yaml_configs(run, inputs, tmp_path):
    config = tmp_path / "toy.yaml"
    config.write_text(toy.yaml_config(tmp_path))
    flags = ("--manifest", write_list("list.txt", good_images(inputs)[:2]), "--config-file", config)
    score = ("--confidence-threshold", 0)
    code, lines, _ = run(*flags, *score, "--opts", "MODEL.DEVICE", "cpu")
    assert code == 0
    assert [len(x["boxes"]) > 0 for x in lines] == [True, True]
    assert run(*flags, *score, "--device", "cpu")[0] == 0  # finished
    code, _, said = run(*flags, *score, "--opts", "INPUT.MIN_SIZE_TEST", "64")
    assert code == 2
    assert "config.INPUT.MIN_SIZE_TEST was 96 instead of 64" in said


def test_a_shard_has_one_writer(run, inputs):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    run(*flags)
    lock = Path("out/.detections.00000-of-00001.lock")
    code = (
        "import fcntl, time\n"
        f"f = open({str(lock)!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for more in ([], ["--overwrite"], ["--overwrite", "--confidence-threshold", "0.1"]):
            exit_code, lines, said = run(*flags, *more)
            assert exit_code == 2
            assert "another process is writing" in said
            assert len(lines) == NUM_IMAGES
        other.kill()
    assert run(*flags)[0] == 0


def test_a_full_disk_is_a_sentence(run, inputs, monkeypatch, capsys):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    write, num = os.write, 0

    def full(file, data):
        nonlocal num
        num += 1
        if num == 4:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) if num < 3 else 7])  # as much as fits

    with monkeypatch.context() as patch:
        patch.setattr(json_lines.os, "write", full)
        assert predict.main([*inputs[1], *flags, "--output", "out"]) == 1
    said = capsys.readouterr().err
    assert "error: [Errno 28] No space left on device" in said
    assert "2 of 12 images of shard 0 of 1 are done; run the same command again to cont" in said
    code, lines, said = run(*flags)
    assert code == 0
    assert "1 damaged lines were removed" in said
    assert len(lines) == NUM_IMAGES


def test_shards_that_are_not_complete_are_named(run, inputs, capsys):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    run(*flags, "--shard", "1/3")
    assert predict.main(["--merge", "out"]) == 1
    said = capsys.readouterr().err
    assert "shard 0 of 3 lacks 4 of 4 images; shard 2 of 3 lacks 4 of 4 images" in said
    assert predict.main(["--merge", "nowhere"]) == 1
    assert "'nowhere' has no run.json" in capsys.readouterr().err
    assert not Path("out/detections.json").exists()


# Wrong input


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "lists no image: it is empty"),
        (['{"file_name": "a"}', "b"], "line 2 of 'm' is not a JSON object with \"file_name\""),
        (['{"images": []}'], "line 1 of 'm' is not a JSON object"),
        (['{"file_name": "a", "boxes": []}'], 'has the key "boxes", a key of the results'),
        (['{"file_name": "a", "image_id": 1.5}'], 'has the "image_id" 1.5'),
        (
            ['{"file_name": "a", "image_id": 2}', "", '{"file_name": "b"}'],
            "lines 1 and 3 of 'm' have the same image_id 2",
        ),
        (["a\0b"], "line 1 of 'm' is not text"),
    ],
)
def test_wrong_lists(run, rows, sentence):
    write_list("m", rows)
    code, lines, said = run("--manifest", "m")
    assert code == 2
    assert sentence in said
    assert len(said.splitlines()) == 1 or "names of the classes" in said
    assert not lines


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--manifest", "none.txt"], "there is no list of images 'none.txt'"),
        (["--input", "a.png", "--shard", "0/2"], "--shard is for --manifest or --json-lines"),
        (["--input", "a.png", "--retry-bad"], "--retry-bad is for --manifest or --json-lines"),
        (["--input", "none", "--json-lines"], "--input 'none' does not exist"),
        (["--video-input", "a.mp4", "--json-lines"], "--json-lines is for --input"),
        (["--manifest", "m", "--shard", "2/2"], "I from 0 to N - 1, such as 0/4, got '2/2'"),
        (["--manifest", "m", "--num-workers", "-1"], "--num-workers must be at least 0"),
        (["--manifest", "m", "--image-ids", "a"], "--image-ids is for --input"),
        (["--input", "m", "--image-root", "a"], "--image-root is for --manifest"),
        (["--manifest", "m", "--tile-overlap", "0.5"], "--tile-overlap is for --tiles"),
    ],
)
def test_wrong_flags(run, flags, sentence):
    code, _, said = run(*flags)
    assert code == 2
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not Path("out").exists()


def test_several_processes_need_a_way_for_many_images(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, _, said = run("--input", "a.png")
    assert code == 2
    assert "several processes need --manifest or --json-lines" in said


# As a person types it


def test_torchrun(inputs, tmp_path):
    """Two processes; the one with bad images does not end the other."""
    images = inputs[0] / "images"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", ROOT / "tools" / "demo.py", *inputs[1]]
    command += ["--input", images, "--json-lines", "--output", "found"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, cwd=tmp_path, env=environment, text=True
    )
    assert result.returncode == 1, result.stderr  # the bad images
    for i in range(2):
        assert f"shard {i} of 2 is finished" in result.stdout
    assert len(read_lines(tmp_path / "found")) == NUM_IMAGES + NUM_BAD
    assert len(list((tmp_path / "found").glob("bad_images.*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("device", "local_rank", "expected"),
    [
        ("cuda", "3", "cuda:1"),  # two processes on each of two GPUs
        ("cuda", None, "cuda"),
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_the_gpu_of_a_process(monkeypatch, device, local_rank, expected):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert processes.device_here(device) == expected
    assert used == ([expected] if expected == "cuda:1" else [])


def test_shards_of_torchrun_in_a_job_array(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    shards = set()
    for job in range(3):
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            shards.add(processes.shard_here(processes.shard_of(f"{job}/3")))
    assert shards == {(i, 12) for i in range(12)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_batch(run, inputs, monkeypatch, number):
    flags = ("--manifest", write_list("list.txt", good_images(inputs)))
    _, expected, _ = run(*flags, output="whole")
    detect = shard_run.ShardRun._detect_batch

    def signaled(self, batch):
        if batch[0]["row"]["index"] == 4:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return detect(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(shard_run.ShardRun, "_detect_batch", signaled)
        code, lines, said = run(*flags)
    assert code == 128 + number
    assert [x["index"] for x in lines] == [0, 1, 2, 3, 4]
    assert (
        f"stopped by {number.name}: 5 of 12 images of shard 0 of 1 are done; run the same" in said
    )
    code, lines, _ = run(*flags)
    assert code == 0
    assert lines == expected
