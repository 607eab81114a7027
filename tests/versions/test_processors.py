"""Processors' settings in the files of transformers 4.50 (one), 4.52 to 4.57 (one for videos too) and 5 (sections)."""

import json
from pathlib import Path
from typing import Any

import pytest

from avjax.families.registry import read_config
from avjax.media.options import CLIP_MEAN, CLIP_STD, MediaOptions, read_options
from tests.versions.published import PUBLISHED

CONFIG = read_config(PUBLISHED["omni-3b"])
IMAGE = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
SOUND = {"feature_size": 128, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 300, "n_fft": 400}
EDGES = {"shortest_edge": 6272, "longest_edge": 200704}
PIXELS = {"min_pixels": 6272, "max_pixels": 200704}
STALE = {**IMAGE, **SOUND, "min_pixels": 1, "max_pixels": 2}

FILES: dict[str, dict[str, dict[str, Any]]] = {
    "4.50": {"preprocessor_config": {**IMAGE, **SOUND, **PIXELS}},
    "4.52, edges alone": {"preprocessor_config": {**IMAGE, **SOUND, "size": EDGES}},
    "4.57, both": {
        "preprocessor_config": {**IMAGE, **SOUND, **PIXELS, "size": {"shortest_edge": 3136, "longest_edge": 12845056}},
        "video_preprocessor_config": {**IMAGE, **PIXELS, "size": EDGES, "fps": None, "do_sample_frames": False},
        "processor_config": {"processor_class": "Qwen2_5OmniProcessor"},
    },
    "5": {
        "processor_config": {
            "processor_class": "Qwen2_5OmniProcessor",
            "image_processor": {**IMAGE, "size": EDGES, "min_pixels": None},
            "video_processor": {**IMAGE, "size": EDGES, "fps": 2.0},
            "feature_extractor": SOUND,
        }
    },
    "5, over files of before": {
        "preprocessor_config": STALE,
        "processor_config": {"image_processor": {**IMAGE, "size": EDGES}, "feature_extractor": SOUND},
    },
    "5, empty sections": {
        "preprocessor_config": {**IMAGE, **SOUND, **PIXELS},
        "processor_config": {"image_processor": None, "feature_extractor": None, "video_processor": None},
    },
}


def options_of(directory: Path, files: dict[str, dict[str, Any]]) -> MediaOptions:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return read_options(directory, CONFIG)


@pytest.mark.parametrize("version", FILES)
def test_every_form_says_the_same(version: str, tmp_path: Path):
    options = options_of(tmp_path, FILES[version])
    assert (options.image_min_pixels, options.image_max_pixels) == (6272, 200704)
    assert dict(options.audio) == SOUND
    assert (options.min_pixels, options.max_pixels) == (MediaOptions().min_pixels, MediaOptions().max_pixels), (
        "frames are resized by the published utilities before a processor sees them"
    )


@pytest.mark.parametrize("change", [{"patch_size": 16}, {"merge_size": 1}, {"temporal_patch_size": 1}])
def test_a_video_processor_of_another_checkpoint(change: dict[str, int], tmp_path: Path):
    with pytest.raises(ValueError, match=r"the video processor has \{'\w+': \d+\}, the vision tower"):
        options_of(tmp_path, {"preprocessor_config": IMAGE, "video_preprocessor_config": {**IMAGE, **change}})


def test_videos_in_other_colours_than_images(tmp_path: Path):
    video = {**IMAGE, "image_mean": [0.5, 0.5, 0.5]}
    with pytest.raises(ValueError, match=r"expected image_mean of the video processor.*got \[0\.5, 0\.5, 0\.5\]"):
        options_of(tmp_path, {"preprocessor_config": IMAGE, "video_preprocessor_config": video})
