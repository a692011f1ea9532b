"""Flops of deformable convolutions, as Detectron2's analyze_model counts them."""

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis, flop_count_operators
from fvcore.nn import FlopCountAnalysis as ModuleFlopCountAnalysis

from atss_d2.modeling.deform_conv import DeformConv2d
from tests.detector import CHANNELS, build, toy_head

OPERATOR = "deform_conv2d"


def test_v1_by_hand():
    conv = DeformConv2d(4, 6, (1, 3), stride=2, groups=2, deformable_groups=2)
    inputs = (torch.zeros(2, 4, 7, 9), torch.zeros(2, 12, 4, 4))
    # 2 images of 4 x 4 outputs; 6 channels of 2 x 1 x 3 weights; 4 channels read at 3 points.
    expected = 2 * 16 * (6 * 2 * 3 + 4 * 3 * 4)
    assert ModuleFlopCountAnalysis(conv, inputs).by_operator() == {OPERATOR: expected}


def test_v2_by_hand():
    conv = DeformConv2d(4, 6, 3, padding=1, bias=True)
    inputs = (torch.zeros(1, 4, 5, 7), torch.zeros(1, 18, 5, 7), torch.zeros(1, 9, 5, 7))
    expected = 35 * (6 * 4 * 9 + 4 * 9 * (4 + 1))
    assert ModuleFlopCountAnalysis(conv, inputs).by_operator() == {OPERATOR: expected}


def test_of_a_detector():
    size = (64, 96)
    deformable, plain = build(head=toy_head(deform_last_conv=True)).eval(), build().eval()
    inputs = [{"image": torch.zeros(3, *size)}]
    flops = FlopCountAnalysis(deformable, inputs)
    height, width = size[0] // 8, size[1] // 8
    places = height * width * (1 + 1 / 4)  # of two levels
    # The last convolution of two towers.
    expected = 2 * places * CHANNELS * 9 * (CHANNELS + 5)
    assert flops.by_operator()[OPERATOR] == expected
    assert f"torchvision::{OPERATOR}" not in flops.unsupported_ops()
    # It takes the place of a plain one, and predicts 27 offsets and masks by another.
    saved = 2 * places * CHANNELS * 9 * (CHANNELS - 27)
    plain_flops = flop_count_operators(plain, inputs)
    assert OPERATOR not in plain_flops
    assert flops.by_operator()["conv"] == pytest.approx(1e9 * plain_flops["conv"] - saved)
