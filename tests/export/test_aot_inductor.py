"""AOTInductor: compiled for images of all sizes.

Compiling takes a minute and more, so it is tested where ATSS_D2_TEST_AOT_INDUCTOR=1 asks for it.
"""

import os

import pytest

from atss_d2.export import export_aot_inductor, load_exported
from tests.exported import BATCHES, assert_same_detections, needs_graphs


@pytest.mark.skipif(
    os.environ.get("ATSS_D2_TEST_AOT_INDUCTOR") != "1",
    reason="takes minutes: set ATSS_D2_TEST_AOT_INDUCTOR=1",
)
def test_detections_are_those_of_the_model(model, metadata, sample, tmp_path):
    path = export_aot_inductor(model, sample, tmp_path / "model.pt2", metadata=metadata)
    exported = load_exported(path)
    assert exported.format == "aot_inductor"
    assert exported.metadata == metadata
    for batch in BATCHES.values():
        assert_same_detections(exported(batch), model, batch)


@needs_graphs
def test_a_missing_compiler_is_named(model, metadata, sample, tmp_path, monkeypatch):
    def get_cpp_compiler():
        raise RuntimeError("none")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", get_cpp_compiler)
    with pytest.raises(RuntimeError, match="AOTInductor needs a C\\+\\+ compiler and found none"):
        export_aot_inductor(model, sample, tmp_path / "model.pt2", metadata=metadata)
