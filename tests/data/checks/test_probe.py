"""What is seen of one file is what training reads of it, and half a file is not taken for whole."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from atss_d2.data.checks.probe import probe
from atss_d2.plain.images import open_rgb

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 36, 3)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 99])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_sizes_are_those_that_training_reads(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    seen = probe(str(path))
    assert (seen.width, seen.height) == open_rgb(path).size
    assert seen.problem == ""
    assert seen.orientation == (orientation if orientation < 9 else 1)


def test_exif_data_behind_the_pixels_are_seen(tmp_path):
    """As written by some tools; Pillow only sees them after it has decoded the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    data, chunk = content.getvalue(), io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", exif.tobytes()[6:])
    end = data.index(b"IEND") - 4
    path = tmp_path / "a.png"
    path.write_bytes(data[:end] + chunk.getvalue() + data[end:])
    seen = probe(str(path))
    assert (seen.width, seen.height, seen.orientation) == (48, 36, 6)
    assert open_rgb(path).size == (48, 36)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm"])
def test_no_part_of_a_file_is_taken_for_the_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    assert probe(str(path)).problem == ""
    for length in range(0, len(data) * 9 // 10, len(data) // 40):
        path.write_bytes(data[:length])
        assert probe(str(path)).problem in ("image_empty", "image_truncated", "image_unreadable")


def test_names_that_no_file_can_have(tmp_path):
    for name in ("a\0b", "x" * 5000, "\ud800", ""):
        assert probe(str(tmp_path / name)).problem in ("image_missing", "image_no_file")
