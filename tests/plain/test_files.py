import cv2
import numpy as np
import pytest

from atss_d2.plain.files import replacing
from atss_d2.visualization import output_names, write_image


def test_different_names_stay_as_they_are():
    assert output_names(["a/1.jpg", "b/2.PNG", "/c/3.tif"]) == ["1.jpg", "2.PNG", "3.tif"]
    assert output_names([]) == []


def test_equal_names_go_to_subfolders():
    names = output_names(["x/a/1.jpg", "x/b/1.jpg", "y/2.jpg", "x/b/c/1.JPG"])
    assert names == ["a/1.jpg", "b/1.jpg", "2.jpg", "b/c/1.JPG"]


def test_names_that_become_equal_by_the_added_suffix_differ():
    names = output_names(["a/1.gif.png", "b/1.gif", "b/1.png"])
    assert names == ["a/1.gif.png", "b/1.gif.png", "1.png"]


@pytest.mark.parametrize("suffix", ["bmp", "jpeg", "jpg", "JPG", "png", "tif", "tiff", "webp"])
def test_write_image_keeps_colors(tmp_path, suffix):
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:, :24] = (200, 100, 20)
    path = tmp_path / "new" / f"picture.{suffix}"
    write_image(path, image)
    difference = cv2.imread(str(path)).astype(int) - image
    assert np.abs(difference).max() <= (0 if suffix in ("bmp", "png", "tif", "tiff") else 40)
    assert np.abs(difference).mean() < 2


def test_write_image_names_what_it_cannot_write(tmp_path):
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"x\.txt': the suffix must be one of \.bmp, "):
        write_image(tmp_path / "x.txt", image)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write '.*file/x\.png'"):
        write_image(tmp_path / "file" / "x.png", image)


def test_a_failed_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("half of the n")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
