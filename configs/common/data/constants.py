"""Means and standard deviations of ImageNet pixels, 0..255."""

constants = dict(
    imagenet_bgr256_mean=[103.530, 116.280, 123.675],
    imagenet_rgb256_mean=[123.675, 116.280, 103.530],
    imagenet_rgb256_std=[58.395, 57.120, 57.375],
    imagenet_bgr256_std=[57.375, 57.120, 58.395],
    # In MSRA's models the weights of the first convolution already include the deviation.
    msra_std=[1.0, 1.0, 1.0],
)
