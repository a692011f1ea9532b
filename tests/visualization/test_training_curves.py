import json
import math

import matplotlib
import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter
from PIL import Image

from atss_d2.visualization import plot_training_curves, read_metrics
from atss_d2.visualization.training_curves import _draw


def _row(iteration, **scalars):
    return {
        "iteration": iteration,
        "lr": 0.01,
        "total_loss": 3.0 - iteration / 100,
        "loss_cls": 1.0,
        "loss_box_reg": 1.5 - iteration / 100,
        "loss_centerness": 0.5,
    } | scalars


def _write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


@pytest.fixture
def metrics_json(tmp_path):
    rows = []
    for i in range(9, 200, 10):
        rows.append(
            _row(
                i,
                **{
                    "atss/num_positives": 60.0,
                    "atss/num_positives_p3": 50.0,
                    "atss/num_positives_p4": 10.0,
                    "atss/gt_without_positive": 0.0,
                    "atss/mean_threshold": 0.4,
                },
            )
        )
        if i in (99, 199):
            rows[-1] |= {"bbox/AP": i / 10, "bbox/AP50": i / 5, "bbox/AP75": math.nan}
    return _write(tmp_path / "metrics.json", rows)


def test_reads_what_detectron2_writes(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=1)
        for i in range(3):
            storage.put_scalars(total_loss=float(i), lr=0.1, smoothing_hint=False)
            if i == 1:
                storage.put_scalars(**{"bbox/AP": 12.5}, smoothing_hint=False)
            writer.write()
            storage.step()
        writer.close()
    assert read_metrics(path) == {
        0: {"total_loss": 0.0, "lr": 0.1},
        1: {"total_loss": 1.0, "lr": 0.1, "bbox/AP": 12.5},
        2: {"total_loss": 2.0, "lr": 0.1},
    }


def test_rows_of_one_iteration_are_one(tmp_path):
    # The rows of one write are not always in order.
    rows = [{"iteration": 19, "bbox/AP": 5.0}, _row(9), _row(19), {"iteration": 9, "x": 1.0}]
    metrics = read_metrics(_write(tmp_path / "m.json", rows))
    assert list(metrics) == [9, 19]
    assert metrics[19]["bbox/AP"] == 5.0
    assert metrics[19]["loss_cls"] == 1.0
    assert metrics[9]["x"] == 1.0


def test_a_resumed_run_wins_over_what_was_before(tmp_path):
    first = [_row(i, loss_cls=1.0) for i in range(9, 100, 10)]
    first[-1]["bbox/AP"] = 3.0
    # Another period of logging: nothing of the abandoned iterations may stay between.
    second = [_row(i, loss_cls=2.0) for i in range(54, 80, 5)]
    metrics = read_metrics(_write(tmp_path / "m.json", first + second))
    assert list(metrics) == [9, 19, 29, 39, 49, 54, 59, 64, 69, 74, 79]
    assert [row["loss_cls"] for row in metrics.values()] == [1.0] * 5 + [2.0] * 6
    assert not any("bbox/AP" in row for row in metrics.values())


@pytest.mark.parametrize("rest", ['{"iteration": 2', '{"iteration": 29, "lr": 0.', "\x00\x00", "3"])
def test_a_cut_off_line_is_skipped(tmp_path, caplog, rest):
    path = _write(tmp_path / "m.json", [_row(9), _row(19)], end="\n" + rest)
    assert list(read_metrics(path)) == [9, 19]
    assert "skipped 1 incomplete lines" in caplog.text
    # Detectron2 appends: the resumed run goes on in the same line.
    path.write_text(path.read_text() + json.dumps(_row(29)) + "\n" + json.dumps(_row(39)) + "\n")
    assert list(read_metrics(path)) == [9, 19, 39]


def test_a_file_without_metrics_is_an_error(tmp_path):
    (tmp_path / "m.json").write_text("\n")
    with pytest.raises(ValueError, match=r"m\.json' holds no metrics"):
        plot_training_curves(tmp_path / "m.json", tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        plot_training_curves(tmp_path / "none.json", tmp_path / "m.png")


def _curves(axis):
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def test_curves_show_the_logged_values(metrics_json):
    losses, ap, lr, positives, threshold = _draw(read_metrics(metrics_json), small=False).axes
    iterations = np.arange(9, 200, 10)

    box_reg = _curves(losses)["loss_box_reg"]  # a line stays a line when it is smoothed
    np.testing.assert_array_equal(box_reg[:, 0], iterations)
    np.testing.assert_allclose(box_reg[1:-1, 1], 1.5 - iterations[1:-1] / 100, atol=0.06)
    assert {"total_loss", "loss_cls", "loss_centerness"} <= _curves(losses).keys()
    raw = [line for line in losses.lines if line.get_alpha() is not None]
    np.testing.assert_allclose(raw[0].get_ydata(), 3.0 - iterations / 100)

    # AP75 was NaN: no curve. The others are in percent as logged.
    assert _curves(ap).keys() == {"AP (last 19.9)", "AP50 (last 39.8)"}
    np.testing.assert_allclose(_curves(ap)["AP50 (last 39.8)"], [[99, 19.8], [199, 39.8]])
    np.testing.assert_allclose(lr.lines[0].get_ydata(), 0.01)

    heights = {label: xy[:, 1] for label, xy in _curves(positives).items()}
    for label, value in {
        "positives": 60,
        "positives on p3": 50,
        "positives on p4": 10,
        "boxes without a positive": 0,
    }.items():
        np.testing.assert_allclose(heights[label], value, atol=1e-9, err_msg=label)
    np.testing.assert_allclose(threshold.lines[0].get_ydata(), 0.4)

    for axis in (losses, ap, lr, positives):
        assert axis.get_xlabel() == "iteration"
        assert axis.get_title()
        top = max(line.get_ydata().max() for line in axis.lines)
        assert axis.get_ylim()[1] > 0.95 * top
    assert [axis.get_ylabel() for axis in (losses, ap, lr, positives, threshold)] == [
        "loss",
        "AP (%)",
        "learning rate",
        "count per image",
        "mean IoU threshold",
    ]


def test_several_test_sets_have_a_curve_each(tmp_path):
    rows = [_row(9), {"iteration": 9, "val/bbox/AP": 30.0, "site2/bbox/AP": 20.0, "bbox/APs": 1.0}]
    axis = _draw(read_metrics(_write(tmp_path / "m.json", rows)), small=False).axes[1]
    assert _curves(axis).keys() == {"val AP (last 30.0)", "site2 AP (last 20.0)"}
    assert len({line.get_linestyle() for line in axis.lines}) == 2


@pytest.mark.parametrize("row", [{"iteration": 0, "lr": 0.1}, {"iteration": 0, "time": 1.0}])
@pytest.mark.parametrize("small", [False, True])
def test_what_is_absent_is_said(tmp_path, row, small):
    figure = _draw(read_metrics(_write(tmp_path / "m.json", [row])), small=small)
    texts = [axis.texts[0].get_text() for axis in figure.axes if axis.texts]
    expected = ["no losses logged", "no evaluation logged"]
    if not small:
        expected += [] if "lr" in row else ["no learning rate logged"]
        expected += ["nothing logged about positives"]
    assert texts == expected
    if not small and "lr" in row:
        assert figure.axes[2].lines[0].get_marker() == "."  # a single point is seen


def test_pictures_are_written_without_touching_pyplot(metrics_json, tmp_path):
    import matplotlib.pyplot as plt

    state = matplotlib.get_backend(), plt.get_fignums(), dict(matplotlib.rcParams)
    large = plot_training_curves(metrics_json, tmp_path / "new" / "curves.png")
    small = plot_training_curves(str(metrics_json), str(tmp_path / "small.png"), small=True)
    assert (matplotlib.get_backend(), plt.get_fignums(), dict(matplotlib.rcParams)) == state
    assert Image.open(large).size == (1200, 750)
    assert Image.open(small).size == (800, 300)
    assert small.stat().st_size <= 150_000
