"""Draws the parts of the generated scenes: outlines, textures and backgrounds.

OpenCV versions differ in how they fill polygons and draw thin arcs. So outlines are filled here,
and only those OpenCV functions are used that give the same pixels in versions 4 and 5.
"""

import cv2
import numpy as np

SHAPES_CLASSES = ("disc", "square", "triangle", "ring", "cross", "star")


def _regular(num: int, radius: float = 1.0) -> np.ndarray:
    """Returns the corners (num, 2) of a regular polygon."""
    angles = 2 * np.pi * np.arange(num) / num
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    corners = _regular(10)
    corners[1::2] *= 0.42
    return corners


_ARM = 0.32  # half the width of a cross's arm; half the cross's side is 1
_CROSS = np.array(
    [
        *((_ARM, 1), (_ARM, _ARM), (1, _ARM), (1, -_ARM), (_ARM, -_ARM), (_ARM, -1)),
        *((-_ARM, -1), (-_ARM, -_ARM), (-1, -_ARM), (-1, _ARM), (-_ARM, _ARM), (-_ARM, 1)),
    ]
)
# Contours (P, 2) of each class around (0, 0); a second one is a hole.
_CONTOURS = {
    "disc": [_regular(64)],
    "square": [_regular(4)],
    "triangle": [_regular(3)],
    "ring": [_regular(64), _regular(64, 0.55)],
    "cross": [_CROSS],
    "star": [_star()],
}


def shape_mask(rng: np.random.Generator, label: int, size: float) -> np.ndarray:
    """Returns the tight mask of a randomly rotated object, (h, w) bool.

    Args:
        rng: Source of the rotation.
        label: Index into :data:`SHAPES_CLASSES`.
        size: Longer side of the rotated object, in pixels. The mask may be two pixels off, and 4 %
            shorter if a thin tip contains no pixel center.
    """
    contours = _CONTOURS[SHAPES_CLASSES[label]]
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = [contour @ rotation for contour in contours]
    low = turned[0].min(0)
    extent = turned[0].max(0) - low  # (2,)
    scale = size / extent.max()
    width, height = np.ceil(extent * scale).astype(int)
    mask = _fill([(contour - low) * scale for contour in turned], height, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fill(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Returns a mask (height, width) of pixels with centers inside an odd number of contours."""
    toggles = np.zeros((height, width + 1), np.int64)
    y = np.arange(height)[:, None] + 0.5  # (height, 1)
    for contour in contours:
        (x0, y0), (x1, y1) = contour.T, np.roll(contour, -1, axis=0).T  # (P,) each
        rows, edges = np.nonzero((y0 <= y) != (y1 <= y))  # edges that cross a row of pixel centers
        slopes = (x1 - x0)[edges] / (y1 - y0)[edges]
        crossings = x0[edges] + (y[rows, 0] - y0[edges]) * slopes
        # The first center to the right of the crossing, and all after it, change sides.
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
        np.add.at(toggles, (rows, columns), 1)
    return toggles.cumsum(1)[:, :width] % 2 == 1


def paint(rng: np.random.Generator, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Paints an object in place, in a color that stands out from the pixels below it.

    Args:
        rng: Source of the color and the texture.
        pixels: (h, w, 3) uint8, changed where the mask is set.
        mask: (h, w) bool, with at least one pixel set.
    """
    below = pixels[mask].mean(0)  # (3,)
    color = rng.integers(0, 256, 3)
    while np.abs(color - below).max() < 80:
        color = rng.integers(0, 256, 3)
    rows, columns = np.indices(mask.shape)
    texture = rng.integers(4)
    if texture == 0:
        shade = np.zeros(mask.shape, np.int16)
    elif texture == 1:  # stripes
        direction, period = rng.integers(-2, 3, 2), rng.integers(6, 20)
        shade = 20 * ((direction[0] * rows + direction[1] * columns) % period < period // 2)
    elif texture == 2:  # shaded from one side
        shade = 40 * columns // mask.shape[1] - 20
    else:
        shade = rng.integers(-20, 21, mask.shape, np.int16)
    painted = color + shade[mask][:, None]  # (pixels, 3)
    painted += rng.integers(-4, 5, painted.shape, np.int16)
    pixels[mask] = np.clip(painted, 0, 255).astype(np.uint8)


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws a smooth, noisy texture with distractors that belong to no class, (H, W, 3) uint8."""
    coarse = rng.integers(40, 216, (int(rng.integers(2, 8)), int(rng.integers(2, 10)), 3))
    pixels = cv2.resize(
        coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR_EXACT
    )
    for _ in range(int(rng.integers(4, 16))):
        start, stop = (rng.integers(0, (width, height)).tolist() for _ in range(2))
        color = rng.integers(0, 256, 3).tolist()
        if rng.random() < 0.6:
            cv2.line(pixels, start, stop, color, int(rng.integers(1, 5)))
        else:  # an open arc, unlike a ring
            axes, first = rng.integers(10, 80, 2).tolist(), int(rng.integers(0, 360))
            thickness = int(rng.integers(2, 5))
            cv2.ellipse(pixels, start, axes, 0, first, first + 150, color, thickness)
    noise = rng.integers(-4, 5, pixels.shape, np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
