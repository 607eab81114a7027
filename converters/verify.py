"""How far avjax is from Hugging Face on one checkpoint: per tower, per layer, and at the logits. Needs torch."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.checkpoint.huggingface import open_source
from avjax.checkpoint.loading import load
from avjax.engine.run import run
from avjax.families.token_runs import MediaShapes
from avjax.model import Model
from avjax.models.audio import AudioTower, chunk_lengths
from avjax.models.clip_features import num_positions
from avjax.models.encoding import encode_audio, encode_vision
from avjax.models.sites import Site
from avjax.models.vision import window_layout
from avjax.prompts.layout import expand_placeholders
from avjax.prompts.prompt import AudioFeatures, Prompt, VisionFeatures
from avjax.prompts.selectors import KINDS

TOWER_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-4
MEL_FRAMES = 430  # two chunks of 2 s and a short one
GRID = (2, 12, 18)  # frame pairs and patches: several windows, the last ones cut
IMAGE_GRID = (1, 8, 6)
NUM_WORDS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One compared tensor.

    Attributes:
      part: what was compared.
      difference: the largest |avjax - HF|.
      scale: the largest |HF|.
      tolerance: the largest difference that passes.
    """

    part: str
    difference: float
    scale: float
    tolerance: float

    @property
    def passes(self) -> bool:
        return self.difference <= self.tolerance


def verify(source: str | Path, converted: str | Path | None = None, *, seed: int = 0) -> Iterator[Difference]:
    """Compares both implementations in float32 on random media and text, one row at a time.

    Args:
      source: the Hugging Face directory or hub id.
      converted: its converted checkpoint; None converts the source in memory.

    Raises:
      ImportError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "avjax verify compares with torch: install the test extra, pip install 'avjax[test]'"
        ) from error

    directory = open_source(source).directory
    model = load(converted if converted is not None else directory)
    reference = _hf_model(directory, model.config.family)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        if model.network.audio is not None:
            yield from _audio_rows(model.network.audio, reference, rng)
        yield from _vision_rows(model, reference, rng)
        for name, prompt in _prompts(model, rng):
            yield from _decoder_rows(name, model, reference, prompt)


def _hf_model(directory: Path, family: str) -> Any:
    import torch
    import transformers

    arguments = {"dtype": torch.float32, "attn_implementation": "eager"}
    if family == "qwen2_5_vl":
        return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, **arguments).eval()
    config = transformers.AutoConfig.from_pretrained(directory)
    # A whole checkpoint holds its thinker under a prefix and a nested config.
    config = getattr(config, "thinker_config", config)
    thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration
    return thinker.from_pretrained(directory, config=config, key_mapping={r"^thinker\.": ""}, **arguments).eval()


class _Recorder:
    """Outputs of torch modules while a forward pass runs."""

    def __init__(self, modules: Any):
        self.seen: list[np.ndarray] = []
        self.handles = [module.register_forward_hook(self._record) for module in modules]

    def _record(self, module: Any, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        self.seen.append(output.float().numpy())

    def take(self, call: Callable[[], Any]) -> tuple[Any, list[np.ndarray]]:
        try:
            return call(), self.seen
        finally:
            for handle in self.handles:
                handle.remove()


def _row(part: str, got: Any, expected: np.ndarray, tolerance: float) -> Difference:
    got = np.asarray(got)
    if got.shape != expected.shape:
        raise ValueError(f"{part}: expected shape {list(expected.shape)} from HF, got {list(got.shape)}")
    scale = float(np.abs(expected).max())
    return Difference(
        part=part,
        difference=float(np.abs(got - expected).max()),
        scale=scale,
        # Inner layers of large models hold values in the thousands; float32 rounding grows with them.
        tolerance=tolerance * max(1.0, scale),
    )


def _audio_rows(tower: AudioTower, reference: Any, rng: np.random.Generator) -> Iterator[Difference]:
    import torch

    frames = 2 * tower.cfg.n_window
    mel = rng.normal(size=(MEL_FRAMES, tower.cfg.num_mel_bins)).astype(np.float32)
    theirs = reference.model.audio_tower
    output, layers = _Recorder(theirs.layers).take(
        lambda: theirs(torch.tensor(mel.T), feature_lens=torch.tensor([MEL_FRAMES])).last_hidden_state.numpy()
    )
    chunks = -(-MEL_FRAMES // frames)
    padded = np.pad(mel, ((0, chunks * frames - MEL_FRAMES), (0, 0))).reshape(chunks, frames, -1)
    lengths = jnp.asarray(chunk_lengths(MEL_FRAMES, frames, chunks))
    _, captures = tower(jnp.asarray(padded), lengths, capture_layers=True)
    for i, expected in enumerate(layers):
        got = np.asarray(captures)[i].reshape(-1, tower.cfg.embed_dim)[: num_positions(MEL_FRAMES)]
        yield _row(f"audio tower, layer {i}", got, expected, TOWER_TOLERANCE)
    yield _row("audio tower, output", encode_audio(tower, mel, jnp.float32), output, TOWER_TOLERANCE)


def _vision_rows(model: Model, reference: Any, rng: np.random.Generator) -> Iterator[Difference]:
    import torch

    tower = model.network.vision
    steps, height, width = GRID
    patches = rng.normal(size=(steps * height * width, int(np.prod(tower.cfg.patch_shape)))).astype(np.float32)
    theirs = reference.model.visual
    output, layers = _Recorder(theirs.blocks).take(
        lambda: theirs(torch.tensor(patches), grid_thw=torch.tensor([GRID])).pooler_output.numpy()
    )
    layout = window_layout(tower.cfg, height, width)
    windows = np.where(layout.valid[..., None], patches.reshape(steps, height * width, -1)[:, layout.patch_index], 0)
    capture = jax.jit(lambda tower, *args: tower(*args, capture_layers=True)[1])
    captures = capture(tower, jnp.asarray(windows), layout.rows_columns, layout.valid)
    for i, expected in enumerate(layers):
        got = np.asarray(captures[i])[:, layout.valid].reshape(expected.shape)
        yield _row(f"vision tower, layer {i}", got, expected, TOWER_TOLERANCE)
    yield _row("vision tower, output", encode_vision(tower, patches, GRID, jnp.float32), output, TOWER_TOLERANCE)


def _prompts(model: Model, rng: np.random.Generator) -> Iterator[tuple[str, Prompt]]:
    config = model.config
    pixels = int(np.prod(config.vision.patch_shape))
    image, video = (
        VisionFeatures(
            patches=rng.normal(size=(int(np.prod(grid)), pixels)).astype(np.float32),
            grid=grid,
            seconds_per_grid=seconds,
            source="random",
        )
        for grid, seconds in ((IMAGE_GRID, None), (GRID, 1.0))
    )
    yield "text", media_prompt(model)
    yield "image", media_prompt(model, images=(image,))
    yield "video", media_prompt(model, videos=(video,))
    if config.audio is not None:
        mel = rng.normal(size=(MEL_FRAMES, config.audio.num_mel_bins)).astype(np.float32)
        sound = AudioFeatures(mel=mel, source="random")
        yield "audio", media_prompt(model, audio=(sound,))
        yield "audio in video", media_prompt(model, videos=(video,), audio=(sound,), audio_in_video=True)


def media_prompt(
    model: Model,
    *,
    images: tuple[VisionFeatures, ...] = (),
    videos: tuple[VisionFeatures, ...] = (),
    audio: tuple[AudioFeatures, ...] = (),
    audio_in_video: bool = False,
) -> Prompt:
    """Words, then the clips between their markers, then words; needs no tokenizer."""
    ids = model.config.tokens
    words = [i for i in range(NUM_WORDS * 2) if i not in dataclasses.astuple(ids)][:NUM_WORDS]
    template: list[int | None] = [*words]
    for clips, kind in ((images, ids.image), (videos, ids.video)):
        template += [ids.vision_bos, kind, ids.vision_eos] * len(clips)
    if not audio_in_video:
        template += [ids.audio_bos, ids.audio, ids.audio_eos] * len(audio)
    shapes = MediaShapes(
        images=[clip.grid for clip in images],
        videos=[clip.grid for clip in videos],
        seconds_per_grid=[clip.seconds_per_grid or 1.0 for clip in videos],
        audio_frames=[len(clip.mel) for clip in audio],
    )
    known = [token for token in (*template, *words) if token is not None]
    token_ids = expand_placeholders(known, shapes, model.config, audio_in_video=audio_in_video)
    return model.processor.assemble(token_ids, images=images, videos=videos, audio=audio)


def _decoder_rows(name: str, model: Model, reference: Any, prompt: Prompt) -> Iterator[Difference]:
    output, layers = _Recorder(reference.model.language_model.layers).take(lambda: reference(**hf_batch(prompt, model)))
    expected = output.logits[0].float().numpy()
    ours = run(model, prompt, at="all", capture=[Site.RESID_POST])
    if name != "text":  # one prompt is enough to place a difference in a layer
        layers = []
    for i, layer in enumerate(layers):
        got = ours.captures[Site.RESID_POST][i]
        yield _row(f"decoder, layer {i} ({name})", got, layer[0], LOGIT_TOLERANCE)
    yield _row(f"logits ({name})", ours.logits, expected, LOGIT_TOLERANCE)


def hf_batch(prompt: Prompt, model: Model) -> dict[str, Any]:
    """The keyword arguments under which HF's model sees the same prompt.

    Positions of Qwen2.5-VL are given: versions of transformers number text after a video differently, and the weights
    were trained by one rule. Those of Qwen2.5-Omni are HF's own.
    """
    import torch

    ids = torch.tensor(prompt.token_ids[None].astype(np.int64))
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for clips, pixels, grid in (
        (prompt.images, "pixel_values", "image_grid_thw"),
        (prompt.videos, "pixel_values_videos", "video_grid_thw"),
    ):
        if clips:
            batch[pixels] = torch.tensor(np.concatenate([c.patches for c in clips]))
            batch[grid] = torch.tensor([c.grid for c in clips])
    seconds = torch.tensor([c.seconds_per_grid for c in prompt.videos])
    if model.config.family == "qwen2_5_vl":
        types = {"text": 0, "generated": 0, "image": 1, "video": 2}
        batch["position_ids"] = torch.tensor(prompt.positions[:, None].astype(np.int64))
        batch["mm_token_type_ids"] = torch.tensor([[types[KINDS[kind]] for kind in prompt.kinds]])
        return {**batch, "second_per_grid_ts": seconds} if prompt.videos else batch
    if prompt.videos:
        batch["video_second_per_grid"] = seconds
    if prompt.audio:
        longest = max(len(c.mel) for c in prompt.audio)
        batch["input_features"] = torch.tensor(
            np.stack([np.pad(c.mel, ((0, longest - len(c.mel)), (0, 0))).T for c in prompt.audio])
        )
        batch["feature_attention_mask"] = torch.tensor([[i < len(c.mel) for i in range(longest)] for c in prompt.audio])
        opens = prompt.token_ids == model.config.tokens.vision_bos
        inside = np.roll(prompt.token_ids == model.config.tokens.audio_bos, -1)
        batch["use_audio_in_video"] = bool(np.any(opens & inside))
    return batch
