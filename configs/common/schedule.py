"""Learning-rate schedules: the paper's 90k ("1x") and 180k ("2x") at batch 16; a cosine."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler


def _multistep(max_iter, milestones):
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01],
            milestones=milestones,
            num_updates=max_iter,
        ),
        warmup_length=500 / max_iter,
        warmup_method="constant",
        warmup_factor=1 / 3,
    )


lr_multiplier_1x = _multistep(90000, [60000, 80000])
lr_multiplier_2x = _multistep(180000, [120000, 160000])

# For training of any length, in particular short training with AdamW.
lr_multiplier_cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.07,
    warmup_method="linear",
    warmup_factor=0.02,
)
