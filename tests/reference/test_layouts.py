"""Tokens, positions and sizes of features against transformers 4.49, 4.52.4 and 5.24, run by hand (README.md)."""

import dataclasses
import functools
import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from avjax.families.registry import read_config
from avjax.families.token_runs import MediaShapes, PositionRule
from avjax.media.features import smart_resize
from avjax.media.frames import sample_frames
from avjax.media.options import MediaOptions
from avjax.models.config import ModelConfig
from avjax.prompts.compat import compatible_prompt
from avjax.prompts.layout import expand_placeholders, token_layout
from avjax.prompts.prompt import Prompt
from tests.reference import layout_cases, tiny_omni
from tests.reference.layout_cases import CASES, Image, LayoutCase, Sound, Video

OLD, PUBLISHED, NEW = "4.49.0", "4.52.4", "5.24.0"
PAIRS = [(version, case) for version in (OLD, PUBLISHED, NEW) for case in CASES]
KNOWN = [(v, case) for v, case in PAIRS if v != OLD or case.family == "qwen2_5_vl"]  # 4.49 has no Omni
HOP = 160  # samples of a mel frame


@functools.cache
def originals(version: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((tiny_omni.FIXTURES / f"layout-{version}.json").read_text())["cases"]
    return {row["name"]: row for row in rows}


@functools.cache
def config_of(family: str) -> ModelConfig:
    return read_config(layout_cases.hf_config(family))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_omni.write_files(directory)
    return AutoTokenizer.from_pretrained(directory)


def shapes_of(row: dict[str, Any]) -> MediaShapes:
    return MediaShapes(
        images=[tuple(grid) for grid in row["images"]],
        videos=[tuple(grid) for grid in row["videos"]],
        seconds_per_grid=row["seconds_per_grid"],
        audio_frames=row["audio_frames"],
    )


def token_ids_of(row: dict[str, Any]) -> np.ndarray:
    return np.repeat(*np.array(row["token_ids"], np.int32).T)


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, np.int32).tobytes()).hexdigest()[:16]


def positions_of(row: dict[str, Any], case: LayoutCase, rule: PositionRule) -> np.ndarray:
    return token_layout(token_ids_of(row), shapes_of(row), config_of(case.family), positions=rule).positions


def identify(value: Any) -> str:
    return value if isinstance(value, str) else value.name


@pytest.mark.parametrize("version, case", KNOWN, ids=identify)
def test_token_ids(tokenizer: PreTrainedTokenizerBase, version: str, case: LayoutCase):
    row = originals(version)[case.name]
    text = tokenizer.apply_chat_template(layout_cases.placeholders(case), tokenize=False, add_generation_prompt=True)
    # The processor orders tokens by these seconds in float64; the fixture has what it then hands on, in float32.
    seconds = [2 / (case.fps or 2.0) for _ in row["videos"]]
    token_ids = expand_placeholders(
        tokenizer(text, add_special_tokens=False)["input_ids"],
        dataclasses.replace(shapes_of(row), seconds_per_grid=seconds),
        config_of(case.family),
        audio_in_video=case.audio_in_video,
    )
    np.testing.assert_array_equal(token_ids, token_ids_of(row))


@pytest.mark.parametrize("version, case", KNOWN, ids=identify)
def test_positions(version: str, case: LayoutCase):
    """Omni: every version; Qwen2.5-VL: 4.49 numbers as the weights were trained, 5.24 by the rule of 5.3."""
    row = originals(version)[case.name]
    rule = "transformers-5.3" if (version, case.family) == (NEW, "qwen2_5_vl") else "trained"
    positions = positions_of(row, case, rule)
    if version == PUBLISHED and case.family == "qwen2_5_vl" and not _whole(row["seconds_per_grid"]):
        # These versions cut the seconds of a grid step to a whole number (QwenLM/Qwen3-VL, issue 1282).
        cut = {**row, "seconds_per_grid": [float(int(seconds)) for seconds in row["seconds_per_grid"]]}
        positions = positions_of(cut, case, rule)
    assert (int(positions.max()), int(positions[0, -1])) == (row["positions"]["largest"], row["positions"]["last"])
    assert sha256(positions) == row["positions"]["sha256"]


def _whole(seconds: list[float]) -> bool:
    return all(second == int(second) for second in seconds)


@pytest.mark.parametrize("version, case", [(v, c) for v, c in KNOWN if c.audio_in_video], ids=identify)
def test_positions_of_the_published_script(version: str, case: LayoutCase):
    row, config = originals(version)[case.name], config_of(case.family)
    token_ids = token_ids_of(row)
    layout = token_layout(token_ids, shapes_of(row), config)
    prompt = Prompt(
        token_ids=token_ids,
        positions=layout.positions,
        kinds=layout.kinds,
        roles=np.full(len(token_ids), "", "<U16"),
        special=np.zeros(len(token_ids), bool),
        seconds=layout.seconds,
        frames=layout.frames,
        made_for=config,
    )
    published = compatible_prompt(prompt, "published-script").positions
    assert sha256(published) == row["published_positions"]["sha256"]


@pytest.mark.parametrize("version, case", KNOWN, ids=identify)
def test_sizes_of_features(version: str, case: LayoutCase):
    """Frames chosen, sides after resizing, mel frames: from the files' properties alone."""
    row, vision = originals(version)[case.name], config_of(case.family).vision
    factor, patch = vision.patch_size * vision.spatial_merge_size, vision.patch_size
    images, videos, sounds = [], [], []
    for item in case.items:
        options = MediaOptions().override(fps=getattr(item, "fps", None))
        if isinstance(item, Image):
            low, high = options.image_min_pixels, options.image_max_pixels
            sides = smart_resize(item.height, item.width, factor=factor, min_pixels=low, max_pixels=high)
            images.append([1, *(side // patch for side in sides)])
        if isinstance(item, Video):
            frames = sample_frames(item.frames, float(item.rate), options)
            low, high = options.min_pixels, options.max_pixels
            sides = smart_resize(item.height, item.width, factor=factor, min_pixels=low, max_pixels=high)
            videos.append([math.ceil(len(frames) / 2), *(side // patch for side in sides)])
        if isinstance(item, Sound | Video) and item.samples and (isinstance(item, Sound) or case.audio_in_video):
            sounds.append(math.ceil(item.samples / HOP))
    assert (images, videos, sounds) == (row["images"], row["videos"], row["audio_frames"])


@pytest.mark.parametrize("version", (OLD, PUBLISHED, NEW))
def test_every_case_is_there(version: str):
    assert list(originals(version)) == [case.name for known, case in KNOWN if known == version]
