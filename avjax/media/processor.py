"""Text and clips to a `Prompt`, through the checkpoint's own tokenizer and chat template."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avjax.config import ModelConfig
from avjax.media.decode import MediaError
from avjax.media.features import audio_features, image_features, video_features
from avjax.media.layout import MediaShapes, expand_placeholders, token_layout
from avjax.media.options import MediaOptions
from avjax.models.audio import num_audio_tokens
from avjax.prompt import AudioFeatures, Prompt, VisionFeatures
from avjax.tokens import MODALITIES

StrPath = str | Path


class Processor:
    """A checkpoint's tokenizer, chat template and media options."""

    def __init__(self, directory: Path, config: ModelConfig, options: MediaOptions):
        self.directory, self.config, self.options = directory, config, options

    @property
    def has_tokenizer(self) -> bool:
        return (self.directory / "tokenizer_config.json").is_file()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Loaded when first used; importing transformers takes seconds."""
        from transformers import AutoTokenizer

        if not self.has_tokenizer:
            raise ValueError(
                f"{self.directory}: expected the tokenizer's files beside the weights, found none; copy "
                "tokenizer.json and tokenizer_config.json there, or use model.prompt_from_hf"
            )
        tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        if not tokenizer.chat_template:
            legacy = self.directory / "chat_template.json"  # where hub checkpoints keep a processor's template
            if legacy.is_file():
                tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
        return tokenizer

    def prompt(
        self,
        text: str,
        *,
        video: StrPath | None,
        audio: StrPath | Literal["from_video"] | None,
        image: StrPath | Sequence[StrPath] | None,
        system: str | None,
        options: MediaOptions,
    ) -> Prompt:
        """See `avjax.Model.prompt`."""
        vision = self.config.vision
        if audio is not None and self.config.audio is None:
            raise MediaError(f"audio={audio!r}: {self.config.family} has no audio tower; pass audio=None")
        if audio == "from_video" and video is None:
            raise MediaError("audio='from_video': no video was given; pass video= or a sound file")
        images = [image] if isinstance(image, str | Path) else list(image or ())
        image_clips = tuple(image_features(path, vision, options) for path in images)
        video_clips: tuple[VisionFeatures, ...] = ()
        if video is not None:
            clip, sampled_fps = video_features(video, vision, options)
            if self.config.family == "qwen2_5_vl":  # which places frames by the rate that they were really sampled at
                clip = dataclasses.replace(clip, seconds_per_grid=vision.temporal_patch_size / sampled_fps)
            video_clips = (clip,)
        source = video if audio == "from_video" else audio
        audio_clips = () if source is None else (audio_features(source, options),)

        content = [{"type": "image", "image": str(path)} for path in images]
        content += [{"type": "video", "video": str(video)}] if video is not None else []
        content += [{"type": "audio", "audio": str(audio)}] if audio not in (None, "from_video") else []
        token_ids = expand_placeholders(
            self._templated([*content, {"type": "text", "text": text}], system),
            _shapes(image_clips, video_clips, audio_clips),
            self.config,
            audio_in_video=audio == "from_video",
        )
        return self.assemble(token_ids, images=image_clips, videos=video_clips, audio=audio_clips)

    def _templated(self, content: list[dict[str, str]], system: str | None) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.directory}: the tokenizer has no chat template; copy chat_template.jinja "
                "(or chat_template.json) from the original checkpoint"
            )
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def assemble(
        self,
        token_ids: np.ndarray,
        *,
        images: tuple[VisionFeatures, ...] = (),
        videos: tuple[VisionFeatures, ...] = (),
        audio: tuple[AudioFeatures, ...] = (),
    ) -> Prompt:
        """A prompt from written-out token ids and the features of their clips."""
        if not len(token_ids):
            raise ValueError("prompt: expected at least one token, got none")
        layout = token_layout(token_ids, _shapes(images, videos, audio), self.config)
        roles, special = self._turns(token_ids)
        return Prompt(
            token_ids=token_ids,
            positions=layout.positions,
            kinds=layout.kinds,
            roles=roles,
            special=special,
            seconds=layout.seconds,
            frames=layout.frames,
            images=images,
            videos=videos,
            audio=audio,
        )

    def _turns(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The speaker of each token's turn, and which tokens are control tokens."""
        ids = self.config.tokens
        control = {i for i in dataclasses.astuple(ids) if i is not None}
        roles = np.full(len(token_ids), "", dtype="<U16")
        if not self.has_tokenizer:
            return roles, np.isin(token_ids, list(control))
        tokenizer = self.tokenizer
        control |= set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        begins = np.flatnonzero(token_ids == tokenizer.convert_tokens_to_ids("<|im_start|>"))
        for start, stop in itertools.pairwise([*begins, len(token_ids)]):
            header = tokenizer.decode(token_ids[start + 1 : min(start + 33, stop)].tolist())
            roles[start:stop] = header.split("\n", 1)[0].strip()
        return roles, np.isin(token_ids, list(control))

    def from_hf(self, batch: Mapping[str, Any]) -> Prompt:
        """See `avjax.Model.prompt_from_hf`."""
        known = {name: _numpy(value) for name, value in batch.items() if value is not None}
        unknown = known.keys() - HF_KEYS
        if unknown:
            raise ValueError(f"batch: expected keys among {sorted(HF_KEYS)}, got also {sorted(unknown)}")
        if "input_ids" not in known:
            raise ValueError("batch: expected input_ids, got none; pass what the HF processor returned")
        ids = np.atleast_2d(known["input_ids"])
        if len(ids) != 1:
            raise ValueError(f"batch: expected one prompt, got {len(ids)}; call once per prompt")
        keep = np.atleast_2d(known.get("attention_mask", np.ones_like(ids)))[0].astype(bool)
        token_ids = ids[0][keep].astype(np.int32)
        seconds = known.get("video_second_per_grid", known.get("second_per_grid_ts"))
        return self.assemble(
            token_ids,
            images=_vision(known.get("pixel_values"), known.get("image_grid_thw"), None, "image"),
            videos=_vision(known.get("pixel_values_videos"), known.get("video_grid_thw"), seconds, "video"),
            audio=_audio(known.get("input_features"), known.get("feature_attention_mask")),
        )

    def from_embeddings(self, embeddings: np.ndarray, positions: np.ndarray, types: Sequence[str]) -> Prompt:
        """See `avjax.Model.prompt_from_embeddings`."""
        embeddings, positions = np.asarray(embeddings), np.asarray(positions)
        size, width = len(types), self.config.decoder.embed_dim
        if embeddings.shape != (size, width) or positions.shape != (3, size) or not size:
            raise ValueError(
                f"embeddings: expected [T, {width}], positions [3, T] and T > 0 types, got {list(embeddings.shape)}, "
                f"{list(positions.shape)} and {size}"
            )
        unknown = sorted(set(types) - set(MODALITIES))
        if unknown:
            raise ValueError(f"types: expected {', '.join(MODALITIES)}, got {', '.join(map(repr, unknown))}")
        return Prompt(
            token_ids=np.full(size, -1, np.int32),
            positions=positions.astype(np.int32),
            kinds=np.array([MODALITIES.index(t) for t in types], np.int8),
            roles=np.full(size, "", "<U16"),
            special=np.zeros(size, bool),
            seconds=np.full(size, np.nan, np.float32),
            frames=np.full(size, -1, np.int32),
            embeddings=embeddings,
        )


HF_KEYS = frozenset(
    """
    input_ids attention_mask pixel_values image_grid_thw pixel_values_videos video_grid_thw video_second_per_grid
    second_per_grid_ts input_features feature_attention_mask mm_token_type_ids num_audio_tokens video_metadata
    """.split()
)


def _shapes(
    images: Sequence[VisionFeatures], videos: Sequence[VisionFeatures], audio: Sequence[AudioFeatures]
) -> MediaShapes:
    return MediaShapes(
        images=[clip.grid for clip in images],
        videos=[clip.grid for clip in videos],
        seconds_per_grid=[clip.seconds_per_grid or 1.0 for clip in videos],
        audio_frames=[len(clip.mel) for clip in audio],
    )


def _vision(
    patches: np.ndarray | None, grids: np.ndarray | None, seconds: np.ndarray | None, kind: str
) -> tuple[VisionFeatures, ...]:
    if patches is None and grids is None:
        return ()
    if patches is None or grids is None:
        raise ValueError(f"batch: expected both the pixel values and the grid of each {kind}, got one of them")
    sizes = np.prod(grids, axis=1)
    if sizes.sum() != len(patches):
        raise ValueError(f"batch: expected {sizes.sum()} {kind} patches for grids {grids.tolist()}, got {len(patches)}")
    steps = [None] * len(grids) if kind == "image" else np.ones(len(grids)) if seconds is None else seconds
    parts = np.split(patches.astype(np.float32), np.cumsum(sizes)[:-1])
    return tuple(
        VisionFeatures(
            patches=part,
            grid=(int(grid[0]), int(grid[1]), int(grid[2])),
            seconds_per_grid=None if step is None else float(step),
            source=f"batch {kind} {i}",
        )
        for i, (part, grid, step) in enumerate(zip(parts, grids, steps, strict=True))
    )


def _audio(features: np.ndarray | None, mask: np.ndarray | None) -> tuple[AudioFeatures, ...]:
    if features is None:
        return ()
    if mask is None:
        raise ValueError("batch: expected feature_attention_mask beside input_features; ask the processor for it")
    clips = tuple(
        AudioFeatures(mel=clip[:, keep.astype(bool)].T.astype(np.float32), source=f"batch audio {i}")
        for i, (clip, keep) in enumerate(zip(features, mask, strict=True))
    )
    for i, clip in enumerate(clips):
        if num_audio_tokens(len(clip.mel)) < 1:
            raise ValueError(f"batch: audio {i} has {len(clip.mel)} mel frames, too few for a token")
    return clips


def _numpy(value: Any) -> Any:
    """numpy from numpy, lists or torch tensors, without importing torch."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()
    return value if isinstance(value, str | Mapping) else np.asarray(value)
