"""`model.prompt_from_hf` of the batch that an HF processor would return gives the prompt that the files give."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

import avjax
from avjax.media.decode import read_audio
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import MODALITIES
from tests import hf_mel
from tests.media.cases import CASES, TEXT, VL_CASES, expected_ids, write_files
from tests.tiny_hf import TinyCheckpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"), clip)


def hf_batch(model: avjax.Model, tiny: TinyCheckpoint, case: str, files: dict[str, Path]) -> dict[str, torch.Tensor]:
    """What the HF processor returns: images and sound by HF's own classes; the video's patches, for which it needs
    torchvision, are ours."""
    batch: dict[str, torch.Tensor] = {}
    ids = torch.tensor(expected_ids(tiny, case, files, "Listen well."))[None]
    batch["input_ids"], batch["attention_mask"] = ids, torch.ones_like(ids)
    media = CASES[case](files)
    paths = media.get("image", [])
    if paths:
        images = [Image.open(path) for path in (paths if isinstance(paths, list) else [paths])]
        size = {"shortest_edge": 3136, "longest_edge": 12845056}
        batch |= Qwen2VLImageProcessorPil(size=size)(images, return_tensors="pt")
    if "video" in media:
        clip = model.prompt(TEXT, video=media["video"], audio=None).videos[0]
        batch["pixel_values_videos"], batch["video_grid_thw"] = torch.tensor(clip.patches), torch.tensor([clip.grid])
        batch["video_second_per_grid" if "audio" in tiny.ids else "second_per_grid_ts"] = torch.tensor([1.0])
    if media.get("audio") is not None:
        waveform = read_audio(media["video"] if media["audio"] == "from_video" else media["audio"])
        out = hf_mel.hf_batch(waveform, return_tensors="pt")
        batch["input_features"], batch["feature_attention_mask"] = out["input_features"], out["attention_mask"]
    return batch


def padded(batch: Mapping[str, torch.Tensor], pad: int, left: int, right: int) -> dict[str, torch.Tensor]:
    """As in a batch beside longer prompts; HF pads Qwen's on the left."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    sides = (left, right)
    return {
        **batch,
        "input_ids": torch.nn.functional.pad(ids, sides, value=pad),
        "attention_mask": torch.nn.functional.pad(mask, sides, value=0),
    }


def assert_same(got: Prompt, expected: Prompt) -> None:
    for name in ("token_ids", "positions", "kinds", "roles", "special", "frames"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        assert getattr(got, name).dtype == getattr(expected, name).dtype, name
    assert got.next_position() == expected.next_position()
    # A batch does not say when its frames were taken, so their time is the nominal one.
    video = got.kinds == MODALITIES.index("video")
    np.testing.assert_array_equal(got.seconds[~video], expected.seconds[~video])
    for clip in got.videos[:1]:
        np.testing.assert_allclose(got.seconds[video], got.frames[video] * clip.seconds_per_grid, rtol=1e-6)
    for name, tolerance in (("images", 1e-6), ("videos", 0.0)):
        for a, b in zip(getattr(got, name), getattr(expected, name), strict=True):
            assert (a.grid, a.seconds_per_grid) == (b.grid, b.seconds_per_grid)
            assert np.abs(a.patches - b.patches).max() <= tolerance
    for a, b in zip(got.audio, expected.audio, strict=True):
        assert a.mel.shape == b.mel.shape and a.mel.dtype == b.mel.dtype
        assert np.abs(a.mel - b.mel).max() <= 1e-5


def assert_batch_gives_the_prompt(model: avjax.Model, tiny: TinyCheckpoint, case: str, files: dict[str, Path]) -> None:
    expected = model.prompt(TEXT, system="Listen well.", **CASES[case](files))
    batch = hf_batch(model, tiny, case, files)
    assert_same(model.prompt_from_hf(batch), expected)
    assert_same(model.prompt_from_hf({k: v.numpy() for k, v in batch.items()}), expected)
    for left, right in ((7, 0), (0, 3)):
        assert_same(model.prompt_from_hf(padded(batch, tiny.ids["endoftext"], left, right)), expected)


@pytest.mark.parametrize("case", CASES)
def test_omni_batch(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path], case: str):
    assert_batch_gives_the_prompt(omni_model, omni, case, files)


@pytest.mark.parametrize("case", VL_CASES)
def test_vl_batch(vl_model: avjax.Model, vl: TinyCheckpoint, files: dict[str, Path], case: str):
    assert_batch_gives_the_prompt(vl_model, vl, case, files)


def test_bfloat16_batch(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path]):
    batch = hf_batch(omni_model, omni, "image", files)
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    got = omni_model.prompt_from_hf(batch).images[0].patches
    np.testing.assert_array_equal(got, batch["pixel_values"].float().numpy())


def without_an_image_token(batch: dict[str, torch.Tensor], image: int) -> None:
    place = int((batch["input_ids"][0] == image).nonzero()[0])
    for key in ("input_ids", "attention_mask"):
        batch[key] = torch.cat([batch[key][:, :place], batch[key][:, place + 1 :]], dim=1)


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no tokens": (lambda b: b.pop("input_ids"), "expected input_ids"),
    "two prompts": (lambda b: b.update(input_ids=b["input_ids"].repeat(2, 1)), "expected one prompt"),
    "unknown key": (lambda b: b.update(pixels=b["pixel_values"]), r"got also \['pixels'\]"),
    "no grid": (lambda b: b.pop("image_grid_thw"), "pixel values and the grid"),
    "no patches": (lambda b: b.pop("pixel_values"), "pixel values and the grid"),
    "patches of another grid": (
        lambda b: b.update(pixel_values=b["pixel_values"][:-4]),
        r"patches \[32, ",
    ),
    "mask of another length": (lambda b: b.update(attention_mask=b["attention_mask"][:, 1:]), "attention_mask"),
    "ids beyond 32 bits": (lambda b: b.update(input_ids=b["input_ids"] + 2**32), "32 bits"),
    "fractional ids": (lambda b: b.update(input_ids=b["input_ids"].float()), "integers"),
    "pixels that are NaN": (lambda b: b["pixel_values"].fill_(torch.nan), "batch image 0: expected finite"),
    "sound that is NaN": (lambda b: b["input_features"].fill_(torch.nan), "batch audio 0: expected finite"),
    "flat sound mask": (lambda b: b.update(feature_attention_mask=b["feature_attention_mask"][0]), "clips, frames"),
    "no sound mask": (lambda b: b.pop("feature_attention_mask"), "feature_attention_mask"),
    "silent mask": (lambda b: b["feature_attention_mask"].zero_(), "too few for a token"),
    "all padding": (lambda b: b["attention_mask"].zero_(), "at least one token"),
    "no image at all": (lambda b: (b.pop("pixel_values"), b.pop("image_grid_thw")), "no image features are left"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BROKEN)
def test_broken_batches(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path], name: str):
    damage, message = BROKEN[name]
    batch = hf_batch(omni_model, omni, "audio and image", files)
    damage(batch)
    with pytest.raises(ValueError, match=message):
        omni_model.prompt_from_hf(batch)


def test_tokens_of_another_image(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path]):
    batch = hf_batch(omni_model, omni, "audio and image", files)
    without_an_image_token(batch, omni.ids["image"])
    with pytest.raises(ValueError, match=r"expected 8 image tokens from position .*, got 7"):
        omni_model.prompt_from_hf(batch)


def test_batch_without_a_tokenizer(omni: TinyCheckpoint, omni_model: avjax.Model, tmp_path: Path):
    """Roles are unknown then; the rest is the same."""
    shutil.copytree(omni.directory, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    batch = {"input_ids": omni_model.prompt(TEXT).token_ids}
    got, expected = avjax.load(tmp_path / "bare").prompt_from_hf(batch), omni_model.prompt_from_hf(batch)
    np.testing.assert_array_equal(got.positions, expected.positions)
    assert set(got.roles) == {""}


def test_a_batch_without_the_seconds_of_its_grids(
    omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path]
):
    """HF's Omni cannot run it; a guess would place the frames wrongly."""
    batch = hf_batch(omni_model, omni, "video", files)
    del batch["video_second_per_grid"]
    with pytest.raises(ValueError, match="video_second_per_grid"):
        omni_model.prompt_from_hf(batch)
