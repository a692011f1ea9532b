import pytest
import torch

from atss_d2.data.embedded.voc import read_voc

_OBJECT = """<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
_SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def _write(tmp_path, body):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{body}</annotation>")
    return path


def _object(*corners, name="Tree"):
    return _OBJECT.format(*corners, name=name)


def test_corners_are_inclusive_and_count_from_one(tmp_path):
    path = _write(tmp_path, _SIZE + _object(1, 1, 40, 30) + _object(5, 6, 5, 7))
    annotation = read_voc(path, class_name="tree")
    assert (annotation.width, annotation.height) == (40, 30)
    # The whole photograph; one column (the fifth) of two rows (the sixth and seventh).
    expected = torch.tensor([[0.0, 0, 40, 30], [4, 5, 5, 7]], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(annotation.boxes), expected)


def test_no_objects(tmp_path):
    assert read_voc(_write(tmp_path, _SIZE), class_name="tree").boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "<size/width> is missing"),
        ("<size><width>a</width></size>", "<size/width> is 'a', expected a number"),
        (_SIZE + "<object></object>", "object 0: the tag <name> is missing"),
        (_SIZE + _object(1, 1, 2, 2) + _object(1, 1, 2, 2, name="Bird"), "object 1: unknown class"),
        (_SIZE + "<object><name>Tree</name></object>", "<bndbox/xmin> is missing"),
        (_SIZE + _object(1, 1, 41, 2), r"\(1, 1, 41, 2\) is empty or leaves the photograph"),
        (_SIZE + _object(0, 1, 4, 2), r"\(0, 1, 4, 2\) is empty or leaves the photograph"),
        (_SIZE + _object(5, 1, 4, 2), r"\(5, 1, 4, 2\) is empty or leaves the photograph"),
        (_SIZE + _object(1, "", 4, 2), "<bndbox/ymin> is '', expected a number"),
        (_SIZE + _object(1, "nan", 4, 2), "is empty or leaves the photograph"),
        ("<object>", "is not a valid XML file"),
    ],
)
def test_damaged_files_are_named(tmp_path, body, message):
    path = _write(tmp_path, body)
    with pytest.raises(ValueError, match=message) as error:
        read_voc(path, class_name="tree")
    assert str(path) in str(error.value)
