"""Captions of the published script, run unmodified with transformers 4.52.4, equal ours to the token."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import avjax
from avjax.prompts.compat import compatible_prompt
from tests.reference import cases, clips, tiny_omni
from tests.reference.cases import CaptionCase

FIXTURE = json.loads((tiny_omni.FIXTURES / "published_captions.json").read_text())
FIELDS = [field.name for field in dataclasses.fields(CaptionCase)]
# A smaller gap between the two best logits is within the noise of float32 sums in another order.
NOISE = 2e-5
PIXELS = {"min_pixels": 128 * 28 * 28, "max_pixels": 768 * 28 * 28}  # Qwen's; the shipped model has its own


@dataclasses.dataclass(frozen=True)
class Published:
    """A caption as the script wrote it."""

    case: CaptionCase
    tokens: list[int]  # the first ones
    count: int
    sha256: str
    smallest_margin: float


def published() -> list[Published]:
    rows = []
    for row in FIXTURE["captions"]:
        case = CaptionCase(**{name: row[name] for name in FIELDS})
        rows.append(Published(case, row["tokens"], row["count"], row["sha256"], row["smallest_margin"]))
    return rows


PUBLISHED = published()


@pytest.fixture(scope="module")
def made_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return clips.write_all(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def random_thinker(tmp_path_factory: pytest.TempPathFactory) -> avjax.Model:
    directory = tmp_path_factory.mktemp("thinker") / "checkpoint"
    assert tiny_omni.write_thinker(directory) == FIXTURE["weights"]["random"]
    return avjax.load(directory)


@pytest.fixture(scope="module")
def shipped() -> avjax.Model:
    weights = load_file(tiny_omni.SHIPPED / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    values = {name: tensor.float().numpy() for name, tensor in weights.items()}
    assert tiny_omni.checksum(values) == FIXTURE["weights"]["shipped"], "tiny-av was trained anew: run the script again"
    return avjax.load("tiny-av", dtype="float32")


def prompt_of(model: avjax.Model, clip: Path, case: CaptionCase, **media: Any) -> avjax.Prompt:
    return model.prompt(cases.QUESTION, video=clip, system=cases.SYSTEM, order=case.order, **PIXELS, **media)


def compat_of(case: CaptionCase) -> str:
    return "published-script" if case.positions == "published" else "published"


def rules_of(case: CaptionCase, model: avjax.Model) -> list[str]:
    """The rules as avjax takes them: the script cuts a window at the last layer, avjax refuses such a one."""
    if case.rules == cases.CLEAN:
        return []
    rules = [rule.split(",") for rule in case.rules.split(";")]
    layers = model.config.decoder.num_layers
    return [f"{query},{key},{start},{min(int(stop), layers)}" for query, key, start, stop in rules]


def caption_of(model: avjax.Model, prompt: avjax.Prompt, case: CaptionCase, limit: int | None) -> list[int]:
    generation = avjax.generate(model, prompt, *rules_of(case, model), max_new_tokens=limit, compat=compat_of(case))
    return np.asarray(generation.tokens).tolist()


def sha256(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, np.int32).tobytes()).hexdigest()[:16]


def assert_prompt_equal(prompt: avjax.Prompt, case: CaptionCase) -> None:
    expected = FIXTURE["prompts"][case.prompt]
    token_ids = [token for token, count in expected["token_ids"] for _ in range(count)]
    np.testing.assert_array_equal(prompt.token_ids, token_ids)
    assert sha256(compatible_prompt(prompt, compat_of(case)).positions) == expected["positions"]["sha256"]


def assert_captions_equal(model: avjax.Model, clip: Path, rows: list[Published], limit: int, **media: Any) -> None:
    assert rows
    for row in rows:
        prompt = prompt_of(model, clip, row.case, **media)
        assert_prompt_equal(prompt, row.case)
        tokens = caption_of(model, prompt, row.case, limit)
        assert tokens == row.tokens[:limit], row.case.name


def select(model: str, clip: str) -> list[Published]:
    return [row for row in PUBLISHED if (row.case.model, row.case.clip) == (model, clip)]


def test_every_case_is_there():
    assert [row.case for row in PUBLISHED] == cases.CAPTIONS


@pytest.mark.exhaustive
@pytest.mark.parametrize("clip", sorted(clips.CLIPS))
def test_random_model(random_thinker: avjax.Model, made_clips: dict[str, Path], clip: str):
    assert_captions_equal(random_thinker, made_clips[clip], select("random", clip), 24)


@pytest.mark.exhaustive
def test_shipped_model(shipped: avjax.Model, made_clips: dict[str, Path]):
    assert_captions_equal(shipped, made_clips["exact-7s.mkv"], select("shipped", "exact-7s.mkv"), 24)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ("random", "shipped"))
def test_real_clip(name: str, random_thinker: avjax.Model, shipped: avjax.Model, real_clips: Path):
    model = random_thinker if name == "random" else shipped
    assert_captions_equal(model, real_clips / "clip.mp4", select(name, "clip.mp4"), 24, media="qwen-omni-utils")


@pytest.mark.exhaustive
def test_limit_of_the_script(random_thinker: avjax.Model, made_clips: dict[str, Path]):
    """The script passes 50; what holds is 1,024."""
    rows = [row for row in select("random", "exact-3s.mkv") if row.case.positions == "published"]
    row = max(rows, key=lambda row: row.smallest_margin)
    assert row.count == 1024 and row.smallest_margin > NOISE
    tokens = caption_of(random_thinker, prompt_of(random_thinker, made_clips[row.case.clip], row.case), row.case, None)
    assert (len(tokens), sha256(tokens)) == (row.count, row.sha256)
