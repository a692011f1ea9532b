import json

import pytest

from atss_d2.config import ConfigError
from tests import toy

KEYS = {"train.max_iter": 5, "train.eval_period": 0}


def profiler(**options) -> dict:
    return {"train.profiler": {"enabled": True, "wait": 1, "warmup": 1, "active": 2, **options}}


@pytest.mark.usefixtures("toy_data")
def test_a_trace(tmp_path, whole_runs):
    run = toy.Run(tmp_path, **KEYS, **profiler()).train()
    (path,) = (run.output_dir / "profiler").iterdir()
    assert path.name.startswith("rank0.")
    events = json.loads(path.read_text())["traceEvents"]
    steps = {x["name"] for x in events if x["name"].startswith("ProfilerStep")}
    assert len(steps) == 2
    assert any(x["name"] == "aten::convolution_backward" for x in events)
    toy.assert_equal(run.checkpoint()["model"], whole_runs(**KEYS).checkpoint()["model"])


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"wait": 3}, "6 iterations .*, but train.max_iter is 5"), ({"active": 0}, "active >= 1")],
)
def test_impossible_values(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.Run(tmp_path, **KEYS, **profiler(**options)).train()
