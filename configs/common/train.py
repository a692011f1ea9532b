"""The ``train`` node: all that is not model, data or optimizer. train_net.py reads every key."""

train = dict(
    output_dir="./output",
    init_checkpoint="",
    # Looks at annotations and image files before the first iteration, and stops if training or
    # evaluation would stop or go wrong later. False for data sets of tens of millions of images.
    check_data=True,
    max_iter=90000,
    seed=0,  # of initialization, data order and augmentation; negative: a new one each run
    # Autocast of the training steps, and, if inference is true, of the evaluations. float16 needs a
    # GPU for training; bfloat16 also runs on a CPU.
    amp=dict(enabled=False, dtype="float16", inference=False),
    # Micro-batches that every batch is split into: less memory, the same gradient.
    accumulate=1,
    # Steps whose gradient is not finite change no weight; more than max_skips in a row end a run.
    nonfinite=dict(max_skips=0),
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
    # After training: learning_curve.png, and pictures of the worst validation images.
    report=dict(enabled=False, num_pictures=24),
    hooks=[],  # your own, L(MyHook)(...); they run after the weights' average is updated
    eval_period=5000,
    log_period=20,
    device="cuda",  # without a GPU, the CPU is used
)
