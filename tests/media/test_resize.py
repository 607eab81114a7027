"""Resizing of video frames against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avjax.media.resize import resize_bicubic

# Without AVX2 torch does not fuse products and sums, and about one value in 10^5 is rounded the other way.
fused = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def torch_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `torchvision.transforms.functional.resize` does to uint8 tensors with BICUBIC and antialias=True."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        pixels, size=[height, width], mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()


def assert_equal(frame: np.ndarray, height: int, width: int) -> None:
    resized, expected = resize_bicubic(frame, height, width), torch_resize(frame, height, width)
    assert resized.dtype == np.uint8 and resized.shape == (height, width, 3)
    if fused:
        np.testing.assert_array_equal(resized, expected)
    else:
        assert np.abs(resized.astype(int) - expected).max() <= 1


@given(rows=st.integers(2, 300), columns=st.integers(2, 300), steps=st.tuples(st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=60)
def test_resize_equals_torch(rows: int, columns: int, steps: tuple[int, int]):
    frame = np.random.default_rng(rows * 1000 + columns).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    assert_equal(frame, steps[0] * 28, steps[1] * 28)


@pytest.mark.parametrize(
    ("old", "new"), [((360, 640), (336, 616)), ((720, 1280), (420, 756)), ((24, 36), (280, 420)), ((56, 84), (56, 84))]
)
def test_resize_of_common_sizes(old: tuple[int, int], new: tuple[int, int]):
    assert_equal(np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8), *new)


def test_resize_keeps_flat_colours_and_clips_overshoot():
    np.testing.assert_array_equal(resize_bicubic(np.full((50, 70, 3), 200, np.uint8), 28, 56), 200)
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    assert set(np.unique(resize_bicubic(edge, 40, 80)[:, [0, -1]])) == {0, 255}
