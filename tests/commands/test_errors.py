"""Errors of the command line and of config files: one line, with the place and a way on."""

import pytest

from atss_d2.commands.errors import Parser
from atss_d2.config import ConfigError, load_config
from atss_d2.engine import build_model


def said(capsys, arguments, *, has_opts=True):
    parser = Parser(prog="tool")
    parser.add_argument("image")
    parser.add_argument("--num-gpus", type=int)
    parser.add_argument("--confidence-threshold")
    if has_opts:
        parser.add_argument("--opts", nargs="*")
    with pytest.raises(SystemExit, match="^2$"):
        parser.parse_args(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_unknown_flags_are_answered_with_near_ones(capsys):
    start = "tool: error: unrecognized arguments: "
    assert said(capsys, ["a", "--num_gpus=3"]) == (
        f"{start}--num_gpus=3; did you mean --num-gpus?\n"
    )
    assert said(capsys, ["a", "--threshold", "1"]) == (
        f"{start}--threshold 1; did you mean --confidence-threshold?\n"
    )
    # "--help" is never what was meant.
    assert said(capsys, ["a", "--hell"]) == f"{start}--hell; tool --help lists the flags\n"
    overrides = "; overrides come last on the line, behind --opts"
    assert said(capsys, ["a", "x=1"]) == f"{start}x=1{overrides}\n"
    assert said(capsys, ["a", "x=1"], has_opts=False) == f"{start}x=1\n"


def test_other_errors_are_one_line(capsys):
    required = "tool: error: the following arguments are required: image; tool --help explains them"
    assert said(capsys, []) == f"{required}\n"
    assert said(capsys, ["a", "--num-gpus", "b"]) == (
        "tool: error: argument --num-gpus: invalid int value: 'b'\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = (\n", r"config '.*c\.py', line 1: '\(' was never closed"),
        ("\nimport gone\n", r"config '.*c\.py', line 2: No module named 'gone'"),
        ("x = 1\n\nraise KeyError('a b')", r"config '.*c\.py', line 3: a b"),
        ("raise RuntimeError", r"config '.*c\.py', line 1: RuntimeError$"),
        (
            "from omegaconf import OmegaConf\nc = OmegaConf.create({'a': 1})\n"
            "OmegaConf.set_struct(c, True)\nc.b",
            r"config '.*c\.py', line 4: Key 'b' is not in struct$",
        ),
    ],
)
def test_a_config_that_does_not_run_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.py")


def test_an_error_in_a_config_that_a_config_loads_is_placed_there(tmp_path):
    base = tmp_path / "base.py"
    base.write_text("a = 1\nb = c\n")
    text = f"from atss_d2.config import load_config\n\nbase = load_config({str(base)!r})"
    (tmp_path / "child.py").write_text(text)
    with pytest.raises(ConfigError, match=r"base\.py', line 2: name 'c' is not defined"):
        load_config(tmp_path / "child.py")


def test_other_files_are_not_executed_as_configs(tmp_path):
    (tmp_path / "notes.txt").write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"must end in \.py, \.yaml or \.yml"):
        load_config(tmp_path / "notes.txt")


def test_a_value_that_the_model_refuses_is_an_error_of_the_config():
    cfg = load_config("demo/atss_mobilenetv2_shapes")
    cfg.model.matcher.topk = 0
    with pytest.raises(ConfigError, match="the model cannot be built: topk must be >= 1, got 0"):
        build_model(cfg)
