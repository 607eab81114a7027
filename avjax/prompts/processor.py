"""Text and clips to a `Prompt`, through the checkpoint's own tokenizer and chat template."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from avjax.families.registry import family_of
from avjax.families.token_runs import MediaShapes, PositionRule
from avjax.media.corruption import Corruption, corruptions_of
from avjax.media.errors import MediaError
from avjax.media.options import MediaOptions
from avjax.media.reading import HERE, Reader
from avjax.media.sources import ImageSource, SoundSource, VideoSource
from avjax.models.config import ModelConfig
from avjax.nearest import did_you_mean
from avjax.prompts.hf_batch import as_numpy, read_batch, require_finite, require_integers
from avjax.prompts.layout import expand_placeholders, token_layout
from avjax.prompts.prompt import AudioFeatures, Prompt, VisionFeatures
from avjax.prompts.selectors import MODALITIES
from avjax.prompts.tokenizer import load_tokenizer

Order = Literal["media-first", "text-first"]
Sound = SoundSource | Literal["auto", "from_video", "none"] | None
AUTO, FROM_VIDEO, NO_SOUND = "auto", "from_video", "none"


class Processor:
    """A checkpoint's tokenizer, chat template and media options."""

    def __init__(self, directory: Path, config: ModelConfig, options: MediaOptions, reader: Reader = HERE):
        self.directory, self.config, self.options, self.reader = directory, config, options, reader

    def with_reader(self, reader: Reader) -> "Processor":
        """The same processor with its media read by another reader, and the tokenizer shared."""
        processor = copy.copy(self)
        if self.has_tokenizer:
            processor.tokenizer = self.tokenizer
        processor.reader = reader
        return processor

    @property
    def has_tokenizer(self) -> bool:
        return (self.directory / "tokenizer_config.json").is_file()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Loaded when first used; importing transformers takes a second."""
        return load_tokenizer(self.directory)

    def prompt(
        self,
        text: str,
        *,
        video: VideoSource | None,
        audio: Sound,
        image: ImageSource | Sequence[ImageSource] | None,
        system: str | None,
        options: MediaOptions,
        corrupt: Corruption | Sequence[Corruption] = (),
        order: Order = "media-first",
        positions: PositionRule = "trained",
    ) -> Prompt:
        """See `avjax.Model.prompt`."""
        vision = self.config.vision
        if not isinstance(text, str):
            raise TypeError(f"text: expected the user's words, got {type(text).__name__}; pass a str")
        video, audio = _single(video), _single(audio)
        audio = self.sound_source(video, audio, options)
        corruptions = corruptions_of(corrupt, has_audio=audio is not None, has_video=video is not None)
        of_audio, of_video = ([c for c in corruptions if c.modality == kind] for kind in ("audio", "video"))
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [] if image is None else [image]
        image_clips = tuple(self.reader.image(path, vision, options) for path in images)
        video_clips: tuple[VisionFeatures, ...] = ()
        if video is not None:
            clip, sampled_fps = self.reader.video(video, vision, options, of_video)
            if family_of(self.config).sampled_frame_times:
                clip = dataclasses.replace(clip, seconds_per_grid=vision.temporal_patch_size / sampled_fps)
            video_clips = (clip,)
        inside = _is_word(audio, FROM_VIDEO)
        source = video if inside else audio
        audio_clips = () if source is None else (self.reader.audio(source, options, of_audio),)

        return self.prompt_of(
            text,
            images=image_clips,
            videos=video_clips,
            audio=audio_clips,
            audio_in_video=inside,
            system=system,
            order=order,
            positions=positions,
        )

    def sound_source(self, video: VideoSource | None, audio: Sound, options: MediaOptions) -> Sound:
        """Where a prompt's sound comes from: a file or samples, "from_video", or None for silence.

        Raises:
          MediaError: sound was asked for, and the model does not hear, or there is no video that could have it.
        """
        hears = self.config.audio is not None and options.hears
        if _is_word(audio, AUTO):
            own = hears and isinstance(video, str | Path) and self.reader.has_sound(video)
            return FROM_VIDEO if own else None
        if audio is None or _is_word(audio, NO_SOUND):
            return None
        name = str(audio) if isinstance(audio, str | Path) else "samples"
        if self.config.audio is None:
            raise MediaError(f"audio={name!r}: {self.config.family} has no audio tower; pass audio=None")
        if not hears:
            raise MediaError(
                f"audio={name!r}: {self.directory.name} was not trained on sound, its audio tower is random; "
                "pass audio=None"
            )
        if _is_word(audio, FROM_VIDEO) and not isinstance(video, str | Path):
            got = "no video was given" if video is None else "frames were given, which have no sound"
            raise MediaError(f"audio='from_video': {got}; pass a file as video=, or a sound as audio=")
        return audio

    def prompt_of(
        self,
        text: str,
        *,
        images: tuple[VisionFeatures, ...] = (),
        videos: tuple[VisionFeatures, ...] = (),
        audio: tuple[AudioFeatures, ...] = (),
        audio_in_video: bool = False,
        system: str | None = None,
        order: Order = "media-first",
        positions: PositionRule = "trained",
    ) -> Prompt:
        """A prompt from text and the features of its clips."""
        if order not in get_args(Order):
            hint = did_you_mean(order, get_args(Order))
            raise ValueError(f"order: expected {' or '.join(map(repr, get_args(Order)))}, got {order!r}{hint}")
        clips = [{"type": "image", "image": clip.source} for clip in images]
        clips += [{"type": "video", "video": clip.source} for clip in videos]
        clips += [] if audio_in_video else [{"type": "audio", "audio": clip.source} for clip in audio]
        words = [{"type": "text", "text": text}]
        token_ids = expand_placeholders(
            self._templated([*clips, *words] if order == "media-first" else [*words, *clips], system),
            _shapes(images, videos, audio),
            self.config,
            audio_in_video=audio_in_video,
        )
        prompt = self.assemble(token_ids, images=images, videos=videos, audio=audio, positions=positions)
        return dataclasses.replace(prompt, order=order) if clips else prompt

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
        positions: PositionRule = "trained",
    ) -> Prompt:
        """A prompt from written-out token ids and the features of their clips."""
        if not len(token_ids):
            raise ValueError("prompt: expected at least one token, got none")
        for clip in (*images, *videos, *audio):
            require_finite(clip.source, clip.mel if isinstance(clip, AudioFeatures) else clip.patches)
        layout = token_layout(token_ids, _shapes(images, videos, audio), self.config, positions)
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
            made_for=self.config,
        )

    def _turns(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The speaker of each token's turn; and which tokens nobody said: control tokens, and a turn's frame."""
        ids = self.config.tokens
        control = {i for i in dataclasses.astuple(ids) if i is not None}
        roles = np.full(len(token_ids), "", dtype="<U16")
        if not self.has_tokenizer:
            return roles, np.isin(token_ids, list(control))
        tokenizer = self.tokenizer
        control |= set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        special = np.isin(token_ids, list(control))
        opens, closes = (token_ids == tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
        for start, stop in itertools.pairwise([*np.flatnonzero(opens), len(token_ids)]):
            header, size = self._header(token_ids[start + 1 : min(start + 33, stop)])
            roles[start:stop] = header
            special[start : start + 1 + size] = True
            ends = np.flatnonzero(closes[start:stop])
            if len(ends):
                special[start + ends[-1] : stop] = True
        return roles, special

    def _header(self, after: np.ndarray) -> tuple[str, int]:
        """The speaker that a turn begins with, and how many tokens the line takes."""
        for size in range(1, len(after) + 1):
            text = self.tokenizer.decode(after[:size].tolist())
            if "\n" in text:
                return text.split("\n", 1)[0].strip(), size
        return self.tokenizer.decode(after.tolist()).strip(), len(after)

    def from_hf(self, batch: Mapping[str, Any], positions: PositionRule = "trained") -> Prompt:
        """See `avjax.Model.prompt_from_hf`."""
        token_ids, clips = read_batch(batch, self.config)
        if clips["audio"] and not self.options.hears:
            raise ValueError(f"batch: {self.directory.name} was not trained on sound; leave input_features out")
        return self.assemble(token_ids, **clips, positions=positions)

    def from_embeddings(self, embeddings: np.ndarray, positions: np.ndarray, types: Sequence[str]) -> Prompt:
        """See `avjax.Model.prompt_from_embeddings`."""
        embeddings, positions = as_numpy(embeddings), as_numpy(positions)
        size, width = len(types), self.config.decoder.embed_dim
        if embeddings.shape != (size, width) or positions.shape != (3, size) or not size:
            raise ValueError(
                f"embeddings: expected [T, {width}], positions [3, T] and T > 0 types, got {list(embeddings.shape)}, "
                f"{list(positions.shape)} and {size}"
            )
        require_finite("embeddings", embeddings)
        require_integers("positions", positions)
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
            made_for=self.config,
        )


def _single(clip: Any) -> Any:
    """The item of a list of one, which can mean nothing else."""
    return clip[0] if isinstance(clip, list) and len(clip) == 1 else clip


def _is_word(audio: Any, word: str) -> bool:
    """Whether a word stands in place of a sound; an array would be compared value by value."""
    return isinstance(audio, str) and audio == word


def _shapes(
    images: Sequence[VisionFeatures], videos: Sequence[VisionFeatures], audio: Sequence[AudioFeatures]
) -> MediaShapes:
    return MediaShapes(
        images=[clip.grid for clip in images],
        videos=[clip.grid for clip in videos],
        seconds_per_grid=[clip.seconds_per_grid or 1.0 for clip in videos],
        step_seconds=[clip.step_seconds for clip in videos],
        audio_frames=[len(clip.mel) for clip in audio],
    )
