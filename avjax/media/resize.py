"""Bicubic resizing with antialiasing in float32, to the bit of torch's.

Source: `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`, which torchvision resizes video frames with:
Keys' cubic kernel with a = -0.5, stretched by the scale when shrinking, columns before rows.
"""

import numpy as np

SHARPNESS = np.float32(-0.5)  # Keys' a
RADIUS = 2  # pixels on either side that the kernel reads, before it is stretched
# torch's loop over a kernel's taps, as compilers vectorise it on x86 with AVX2: whole groups of four are multiplied,
# rounded and added; what is left over is fused.
VECTOR = 4


def resize_bicubic(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, channels] from uint8 [rows, columns, channels]; rounded once, at the end."""
    if frame.shape[:2] == (height, width):
        return frame
    columns = _resized_last_axis(np.moveaxis(frame.astype(np.float32), 1, 2), width)  # rows, channels, columns
    rows = _resized_last_axis(np.moveaxis(columns, 0, 2), height)  # channels, columns, rows
    return np.rint(rows.clip(0, 255)).astype(np.uint8).transpose(2, 1, 0)


def _resized_last_axis(values: np.ndarray, size: int) -> np.ndarray:
    old_size = values.shape[-1]
    if old_size == size:
        return values
    starts, weights, taps = _kernels(old_size, size)
    grouped = (taps - 1) // VECTOR * VECTOR
    total = values[..., starts] * weights[0]
    for tap in range(1, len(weights)):
        pixels = values[..., np.minimum(starts + tap, old_size - 1)]
        rounded = tap <= grouped
        plain = total + pixels * weights[tap] if rounded.any() else total
        total = plain if rounded.all() else np.where(rounded, plain, _fused(pixels, weights[tap], total))
    return total


def _kernels(old_size: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first pixel that each new one reads, float32 [taps, size] weights, and how many taps each has.

    The mixture of float32 and float64 is torch's.
    """
    scale = np.float32(old_size) / np.float32(size)
    stretch = np.maximum(scale, np.float32(1))
    radius = np.float32(RADIUS * np.float64(stretch))
    centers = (np.float64(scale) * (np.arange(size) + 0.5)).astype(np.float32)
    starts = np.maximum((np.float64(1) * (centers - radius) + 0.5).astype(np.int64), 0)
    stops = np.minimum((np.float64(1) * (centers + radius) + 0.5).astype(np.int64), old_size)
    taps = np.clip(stops - starts, 0, 2 * int(np.ceil(radius)) + 1)
    tap = np.arange(taps.max())[:, None]
    offsets = ((tap + starts).astype(np.float32) - centers).astype(np.float64) + 0.5
    inverse = np.float64(np.float32(1 / np.float64(stretch)))
    weights = np.where(tap < taps, _cubic((offsets * inverse).astype(np.float32)), np.float32(0))
    total = np.zeros(size, np.float32)
    for row in weights:  # one after the other, each sum rounded
        total += row
    return starts, weights / total, taps


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel of float32 distances, its products and sums fused as torch's are."""
    a, x = SHARPNESS, np.abs(x)
    near = _fused(_fused(a + 2, x, -(a + 3)) * x, x, np.float32(1))
    far = _fused(_fused(_fused(a, x, -5 * a), x, 8 * a), x, -4 * a)
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _fused(a: np.ndarray | np.float32, b: np.ndarray, c: np.ndarray | np.float32) -> np.ndarray:
    """a * b + c of float32, rounded once."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
