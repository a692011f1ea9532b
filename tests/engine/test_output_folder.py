"""An output folder belongs to one run at a time."""

import errno
import fcntl
import os
import signal
from contextlib import ExitStack

import pytest

from atss_d2.config import ConfigError
from atss_d2.engine.output_folder import claimed_folder, locked


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "output"
    with claimed_folder(folder):
        message = rf"another run is using '{folder}' \(process {os.getpid()} on .*, since 20.*\)"
        with pytest.raises(ConfigError, match=message), claimed_folder(folder, overwrite=True):
            pass
    with claimed_folder(folder, resume=True):
        pass


def test_a_killed_run_leaves_no_lock_though_its_workers_live_on(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with ExitStack() as stack:
            stack.enter_context(locked(tmp_path))
            worker = os.fork()
            if not worker:
                os.write(write, str(os.getpid()).encode())
                signal.pause()
            signal.pause()
    worker = int(os.read(read, 20))
    try:
        with pytest.raises(ConfigError, match=f"process {child} on"), locked(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with locked(tmp_path):
            os.kill(worker, 0)  # is alive
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_resuming_waits_for_a_run_that_is_about_to_end(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path):
            os.write(write, b"x")
            signal.sigtimedwait([], 0.3)
        os._exit(0)
    os.read(read, 1)
    with claimed_folder(tmp_path, resume=True):
        assert os.waitpid(child, os.WNOHANG)[0] in (0, child)
    os.close(read)
    os.close(write)


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with claimed_folder(tmp_path):
        assert f"file system of '{tmp_path}' has no locks (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"'.*/file/output' cannot be written \(Not a directory\)"),
        claimed_folder(tmp_path / "file" / "output"),
    ):
        pass


@pytest.mark.parametrize("name", ["model_final.pth", "model_0000003.pth", "model_best.pth"])
def test_a_run_is_not_overwritten_by_accident(tmp_path, capsys, name):
    for file in (name, "metrics.json"):
        (tmp_path / file).write_text(file)
    message = rf"'{tmp_path}' holds a run \({name}\): continue it by --resume, start again"
    with pytest.raises(ConfigError, match=message), claimed_folder(tmp_path):
        pass
    assert (tmp_path / name).read_text() == name
    with claimed_folder(tmp_path, resume=True):
        assert (tmp_path / name).is_file()
    with claimed_folder(tmp_path, overwrite=True):
        assert [path.name for path in tmp_path.iterdir() if path.suffix] == []
    assert f"now in {tmp_path / 'previous_1'}" in capsys.readouterr().out
    assert (tmp_path / "previous_1" / name).read_text() == name


def test_a_run_that_ended_before_its_first_checkpoint_may_be_started_again(tmp_path):
    (tmp_path / "metrics.json").touch()
    (tmp_path / "log.txt").touch()
    with claimed_folder(tmp_path):
        assert not (tmp_path / "metrics.json").exists()
        assert (tmp_path / "log.txt").exists()
