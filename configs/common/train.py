"""The ``train`` node: all that is not model, data or optimizer. train_net.py reads every key."""

train = dict(
    output_dir="./output",
    init_checkpoint="",
    # Looks at annotations and image files before the first iteration, and stops if training or
    # evaluation would stop or go wrong later. False for data sets of tens of millions of images.
    check_data=True,
    # A training image that cannot be used: "stop", or "skip" to take another one and list it in
    # bad_images.jsonl; the run stops if there are more than max_bad_images.
    on_bad_image="stop",
    max_bad_images=100,
    max_iter=90000,
    seed=0,  # of initialization, data order and augmentation; negative: a new one each run
    # Only operators that give the same bits in every run on the same kind of device, which is
    # slower; "warn": with a warning for each operator that has no such implementation.
    deterministic=False,
    # Autocast of the training steps, and, if inference is true, of the evaluations. float16 needs a
    # GPU for training; bfloat16 also runs on a CPU.
    amp=dict(enabled=False, dtype="float16", inference=False),
    # Micro-batches that every batch is split into: less memory. The gradient is that of the batch
    # where boxes alone tell the positives; elsewhere, it is the mean over the micro-batches.
    accumulate=1,
    # Steps whose gradient is not finite change no weight; more than max_skips in a row end a run.
    nonfinite=dict(max_skips=0),
    # Patterns of names that do not train, such as ["backbone.bottom_up"], and of names with the
    # factor of their learning rate, such as [["backbone.bottom_up", 0.1]]; the last one counts.
    freeze=[],
    lr_factors=[],
    shard_optimizer=False,  # ZeRO-1: every process keeps a part of the optimizer's state
    # Parts that keep only their input for the backward pass, which computes them again.
    activation_checkpointing=dict(
        enabled=False, parts=["backbone", "head.cls_subnet", "head.bbox_subnet"]
    ),
    ddp=dict(  # options of DistributedDataParallel
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    channels_last=False,  # memory format of the convolutions: changes speed, not results
    # torch.compile of backbone and head, with its options.
    compile=dict(enabled=False, mode=None, dynamic=None),
    clip_gradients=dict(enabled=False, max_norm=5.0),  # L2 norm over all parameters
    ema=dict(enabled=False, decay=0.999),  # exponential moving average of the weights
    # Iterations between checkpoints, and how many of the newest stay, also when a run is resumed.
    checkpointer=dict(period=5000, max_to_keep=100),
    # Keeps the weights of the best evaluation as model_best.pth; metric: a key of its results.
    best_checkpoint=dict(enabled=False, metric="bbox/AP"),
    # Ends the run after so many evaluations that are not better by min_delta; mode: "max" or "min".
    early_stopping=dict(enabled=False, metric="bbox/AP", mode="max", patience=5, min_delta=0.0),
    # At every evaluation, the losses on the test set, as validation/total, validation/cls, ...
    validation_loss=dict(enabled=False),
    # Before every evaluation, exact statistics of BatchNorm from num_iter batches.
    precise_bn=dict(enabled=False, num_iter=200),
    # After training: learning_curve.png, and pictures of the worst validation images.
    report=dict(enabled=False, num_pictures=24),
    hooks=[],  # your own, L(MyHook)(...); they run after the weights' average is updated
    eval_period=5000,
    log_period=20,
    writers=[],  # also "wandb", "mlflow", "trackio", or L(WandbWriter)(project=...)
    # A trace of active iterations by torch's profiler, after wait + warmup iterations.
    profiler=dict(enabled=False, wait=20, warmup=5, active=5),
    fast_dev_run=0,  # tries everything for so many iterations, in a folder of its own
    device="cuda",  # without a GPU, the CPU is used
)
