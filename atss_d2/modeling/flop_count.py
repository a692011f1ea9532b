"""Counts the flops of deformable convolutions, which fvcore omits.

Once this module is imported, ``detectron2.utils.analysis.FlopCountAnalysis``, and with it
Detectron2's ``tools/analyze_model.py``, counts them.
"""

from __future__ import annotations

import math
from typing import Any

from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS
from fvcore.nn.jit_handles import get_shape

_OPERATOR = "torchvision::deform_conv2d"


def deform_conv_flop_jit(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts the flops of ``torchvision::deform_conv2d``, as a handle of fvcore.

    They are the multiply-adds of the convolution itself, plus, for each value that it reads (at N x
    Ho x Wo x P places of C channels), four for the bilinear interpolation, as fvcore counts
    ``grid_sample``, and one for the mask, if there is one.

    Args:
        inputs: Inputs of the operator in a traced graph: the input (N, C, H, W), the weight (Co, C
            / groups, kh, kw), offset, mask, bias, geometry and, last, whether the mask is used.
        outputs: (N, Co, Ho, Wo).
    """
    channels = get_shape(inputs[0])[1]
    weight, out = get_shape(inputs[1]), get_shape(outputs[0])
    num_places = out[0] * math.prod(out[2:])
    num_reads = num_places * channels * math.prod(weight[2:])
    return num_places * math.prod(weight) + num_reads * (5 if inputs[-1].toIValue() else 4)


# fvcore offers no other way to make someone else's script count an operator.
_DEFAULT_SUPPORTED_OPS.setdefault(_OPERATOR, deform_conv_flop_jit)
