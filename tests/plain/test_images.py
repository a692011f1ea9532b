"""Kinds of image files: each becomes the RGB picture that a person sees."""

import warnings

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image

from atss_d2.data.images import read_image
from atss_d2.plain.images import open_rgb, to_8_bit

GREY = np.tile(np.arange(256, dtype=np.uint8), (20, 1))


@pytest.fixture
def colors():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_is_the_same_as_8_bit_gray(tmp_path, suffix):
    paths = [tmp_path / f"{bits}{suffix}" for bits in (8, 16)]
    Image.fromarray(GREY).save(paths[0])
    Image.fromarray(GREY.astype(np.uint16) * 257).save(paths[1])
    assert Image.open(paths[1]).mode in ("I;16", "I")  # the latter in Pillow 10.1
    # What this is about: Detectron2 sees a white image.
    assert (detectron2_read_image(str(paths[1]), "BGR")[:, 1:] == 255).all()
    np.testing.assert_array_equal(read_image(paths[1]), read_image(paths[0]))
    np.testing.assert_array_equal(np.asarray(open_rgb(paths[1])), np.asarray(open_rgb(paths[0])))


def test_12_bit_gray_in_a_16_bit_file_is_not_dark(tmp_path):
    values = (GREY.astype(np.float64) / 255 * 4095).round().astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "12.png")
    np.testing.assert_array_equal(read_image(tmp_path / "12.png")[:, :, 0], GREY)


def test_32_bit_and_floating_point_files(tmp_path):
    for name, values in {
        "int": GREY.astype(np.int32) * 257,
        "large": GREY.astype(np.int32) * 2**20 - 5,  # beyond 16 bits: from least to most
        "unit": GREY.astype(np.float32) / 255,
        "kelvin": 270 + GREY.astype(np.float32) / 10,
    }.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert Image.open(tmp_path / f"{name}.tif").mode in ("I", "F")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.tif")[:, :, 0], GREY, name)


def test_8_bit_values_by_hand():
    def scaled(values, dtype):
        return to_8_bit(np.array([values], dtype=dtype)).tolist()[0]

    assert scaled([0, 7, 255], np.uint16) == [0, 7, 255]  # 8 bits are enough
    assert scaled([0, 256, 1023], np.uint16) == [0, 64, 255]  # 10 bits: 256 / 1023 x 255 = 63.8
    assert scaled([0, 65535], np.int32) == [0, 255]
    assert scaled([-10, 0, 10], np.int32) == [0, 128, 255]
    assert scaled([0.0, 0.5], np.float32) == [0, 128]
    assert scaled([-1.0, np.nan, np.inf, 1.0], np.float32) == [0, 0, 0, 255]
    assert scaled([np.nan], np.float32) == [0]
    assert scaled([3.0, 3.0], np.float32) == [0, 0]


@given(arrays(np.uint16, (4, 5)))
def test_contrast_is_kept(values):
    """Order is never reversed, and values further apart than a 255th of the brightest differ."""
    scaled = to_8_bit(values).astype(int).ravel()
    values = values.astype(int).ravel()
    order = values.argsort(kind="stable")
    assert (np.diff(scaled[order]) >= 0).all()
    # The range of a depth is at most four times the brightest value.
    distant = np.diff(values[order]) > 4 * 2 * max(values.max(), 255) / 255
    assert (np.diff(scaled[order])[distant] > 0).all()


def test_other_modes_are_as_detectron2_reads_them(tmp_path, colors):
    image = Image.fromarray(colors)
    alpha = Image.fromarray(colors[:, :, 0])
    modes = {
        "rgb.png": image,
        "rgba.png": Image.merge("RGBA", [*image.split(), alpha]),
        "gray.png": alpha,
        "la.png": Image.merge("LA", [alpha, alpha]),
        "palette.png": image.quantize(16),
        "bits.png": alpha.point(lambda x: 255 * (x > 99), "1"),
        "cmyk.jpg": image.convert("CMYK"),
    }
    for name, content in modes.items():
        content.save(tmp_path / name)
        assert Image.open(tmp_path / name).mode == content.mode
        for order in ("BGR", "RGB"):
            expected = detectron2_read_image(str(tmp_path / name), order)
            found = read_image(tmp_path / name, order)
            np.testing.assert_array_equal(found, expected, name)
            assert found.strides == expected.strides
    expected = detectron2_read_image(str(tmp_path / "rgb.png"), "L")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png", "L"), expected)


def test_transparent_palettes_without_a_warning(tmp_path, colors):
    palette = Image.fromarray(colors).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(open_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs(tmp_path, colors, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colors).save(tmp_path / "a.png", exif=exif)
    expected = detectron2_read_image(str(tmp_path / "a.png"), "BGR")
    assert (expected.shape == (20, 30, 3)) == (orientation <= 4)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    of_opencv = cv2.imread(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), of_opencv)


def test_turned_16_bit_gray(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 0], np.rot90(GREY, -1))


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify image file"):
        read_image(tmp_path / "text.png")
