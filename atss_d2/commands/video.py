"""Reads videos and cameras, writes videos and shows windows with OpenCV, for ``predict``."""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .detecting import Detecting

# By file suffix. OpenCV's own FFmpeg writes these without another library.
CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
_TITLE = "detections"
_ESCAPE = 27
_USUAL_RATE = 25.0  # frames per second, for a video that does not state its rate


def check_arguments(args: argparse.Namespace) -> None:
    """Checks the flags for videos and cameras.

    Raises:
        ValueError: ``--video-input``, ``--webcam`` or ``--output`` cannot be used.
    """
    if args.webcam is not None:
        if args.output is not None:
            raise ValueError("--webcam shows a window and writes nothing: leave out --output")
        return
    if not os.path.isfile(args.video_input):
        raise ValueError(f"--video-input '{args.video_input}' does not exist")
    if args.output is not None:
        path = output_path(args)
        if path.suffix.lower() not in CODECS:
            raise ValueError(f"--output '{path}' must end in one of {', '.join(CODECS)}")
        for written in (path, path.with_suffix(".json")):
            if written.exists():
                raise ValueError(f"--output '{written}' exists: remove it, or give another name")


def output_path(args: argparse.Namespace) -> Path:
    """Returns the video to write: ``--output``, or a file in that folder named after the input."""
    if args.output.is_dir() or not args.output.suffix:
        return args.output / f"{Path(args.video_input).stem}.mp4"
    return args.output


def require_display() -> None:
    """Checks that a window can be opened.

    Raises:
        ValueError: No window can be opened here.
    """
    import cv2

    # Without a display, a window ends the process instead of raising an error.
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise ValueError("there is no display to show pictures on: give --output")
    if any(line.split() == ["GUI:", "NONE"] for line in cv2.getBuildInformation().splitlines()):
        raise ValueError(
            "this build of OpenCV (opencv-python-headless) opens no windows: give --output, or "
            "install opencv-python instead"
        )


def show_until_key(picture: Image.Image) -> bool:
    """Shows a picture until a key is pressed; returns False if it was Esc."""
    return _show(_to_bgr(picture), milliseconds=0)


def run(detecting: Detecting, args: argparse.Namespace) -> None:
    """Detects objects in the frames of a video or a camera, and writes or shows the frames.

    Results so far are kept on interruption.

    Raises:
        ValueError: The video or camera cannot be read.
        OSError: A file cannot be written.
    """
    import cv2
    from PIL import Image
    from tqdm import tqdm

    is_camera = args.webcam is not None
    name = f"camera {args.webcam}" if is_camera else args.video_input
    capture = cv2.VideoCapture(args.webcam if is_camera else args.video_input)
    frames = _frames(capture)
    first = next(frames, None)
    if first is None:
        capture.release()
        what = "--webcam" if is_camera else "--video-input"
        raise ValueError(f"{what}: OpenCV reads no picture from '{name}'")

    results, writer = detecting.results(), None
    path = None if args.output is None else output_path(args)
    num_frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    bar = functools.partial(
        tqdm,
        total=int(num_frames) if num_frames > 0 and not is_camera else None,
        unit="frame",
        disable=None,
    )
    try:
        if path is not None:
            writer = _open_writer(path, first, capture.get(cv2.CAP_PROP_FPS))
        for index, frame in enumerate(bar(_chain(first, frames))):
            image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            detections = detecting.detect(_to_rgb(frame), f"frame {index} of {name}")
            picture = _to_bgr(detecting.draw(image, detections))
            if writer is None:
                if not _show(picture, milliseconds=1):
                    break
            else:
                results.add(name, image.size, detections, frame_index=index)
                writer.write(picture)
    finally:
        capture.release()
        if writer is not None:
            writer.release()
            results.write(path.with_suffix(".json"))
    if path is not None:
        print(f"{results.num_detections} detections in {results.num_images} frames: {path}")


def _frames(capture: Any) -> Iterator[np.ndarray]:
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return
        yield frame


def _chain(first: np.ndarray, others: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from others


def _open_writer(path: Path, frame: np.ndarray, rate: float) -> Any:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    rate = rate if math.isfinite(rate) and rate > 0 else _USUAL_RATE
    code = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
    writer = cv2.VideoWriter(str(path), code, rate, frame.shape[1::-1])
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write the video '{path}'")
    return writer


def _show(picture: np.ndarray, *, milliseconds: int) -> bool:
    import cv2

    cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
    cv2.imshow(_TITLE, picture)
    return cv2.waitKey(milliseconds) & 0xFF != _ESCAPE


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    return frame[:, :, ::-1]


def _to_bgr(picture: Image.Image) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
