"""A loaded checkpoint: its networks, tokenizer and media options, with prompts in and decoder inputs out."""

import collections
import dataclasses
import functools
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from avjax.devices.arrays import on_device
from avjax.devices.mesh import mesh_of
from avjax.families.token_runs import PositionRule
from avjax.media.corruption import Corruption
from avjax.media.reading import Reader
from avjax.media.sources import ImageSource, VideoSource
from avjax.models.config import ModelConfig
from avjax.models.encoder_cache import cached_encoding, same_buffers
from avjax.models.encoding import encode_audio, encode_vision
from avjax.models.network import Network
from avjax.prompts.processor import Order, Processor, Sound
from avjax.prompts.prompt import AudioFeatures, Inputs, Prompt, VisionFeatures, refuse_no_prompt, refuse_no_words
from avjax.prompts.selectors import TokenGroups

CACHED_CLIPS = 32  # encoder outputs that a model keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What the checkpoint's generation config says about greedy decoding.

    Attributes:
      unsupported: settings that change HF's greedy decoding and are not implemented; `generate` refuses them.
    """

    stop_tokens: tuple[int, ...]
    repetition_penalty: float
    unsupported: tuple[str, ...]


@dataclasses.dataclass(eq=False, kw_only=True)
class Host:
    """The parts of a model that are no arrays; compared by identity, so that a jitted function sees one per model."""

    processor: Processor
    generation: GenerationDefaults
    source: str
    encoded: collections.OrderedDict[bytes, tuple[list[jax.Array], jax.Array]] = dataclasses.field(
        default_factory=collections.OrderedDict
    )
    parts: dict[int, "Host"] = dataclasses.field(
        default_factory=dict
    )  # of the model's slices, see `avjax.sweeping.slices`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint. A pytree whose leaves are its parameters, so jitted functions take it as an argument."""

    network: Network
    config: ModelConfig = dataclasses.field(metadata={"static": True})
    host: Host = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"Model({'; '.join(f'{value}' for value in self._facts().values())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts().items()
        )
        return f"<table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """What a glance should tell, by name."""
        cfg = self.config.decoder
        count = sum(leaf.size for leaf in jax.tree.leaves(self.network))
        return {
            "checkpoint": Path(self.host.source).name,
            "family": self.config.family,
            "parameters": f"{count / 1e6:,.2f} million parameters in {self.dtype}",
            "decoder": f"{cfg.num_layers} layers, {cfg.num_heads} heads, width {cfg.embed_dim}",
            "senses": "hears and sees" if self.hears else "sees",
        }

    @property
    def processor(self) -> Processor:
        return self.host.processor

    @property
    def generation(self) -> GenerationDefaults:
        return self.host.generation

    @property
    def hears(self) -> bool:
        """Whether the model takes sound: it has an audio tower, and was trained with it."""
        return self.config.audio is not None and self.processor.options.hears

    @property
    def dtype(self) -> jnp.dtype:
        return self.network.decoder.embed.embedding.dtype

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the parameters lie on; None for one device."""
        return mesh_of(self.network.decoder.embed)

    def with_reader(self, reader: Reader) -> "Model":
        """The same model, with the media of its prompts read by another reader."""
        host = dataclasses.replace(self.host, processor=self.processor.with_reader(reader))
        return dataclasses.replace(self, host=host)

    def prompt(
        self,
        text: str,
        *,
        video: VideoSource | None = None,
        audio: Sound = "auto",
        image: ImageSource | Sequence[ImageSource] | None = None,
        system: str | None = None,
        order: Order = "media-first",
        positions: PositionRule = "trained",
        corrupt: Corruption | Sequence[Corruption] = (),
        opening: str = "",
        **media_options: Any,
    ) -> Prompt:
        """A prompt from text and files, through the checkpoint's chat template.

        Args:
          text: the user's words.
          video: a video file, or (uint8 [n, height, width, 3], frames per second).
          audio: a sound file, or (samples [n] or [n, channels], rate in Hz); "from_video" interleaves the video's own
            sound with its frames; "none" or None is silence. By default the video's own sound, when the model hears and
            the file has one.
          image: an image file, a Pillow image or an array [height, width, 3]; or several.
          system: the system turn; None leaves it to the chat template.
          order: "media-first" puts images, then the video, then a separate sound file before the words, as Qwen's own
            examples do; "text-first" puts the words before all of them, as the paper's published script does. Under
            "text-first" the words cannot attend to the clip: `text->video` then names only what follows it.
          positions: "trained" numbers tokens as the weights were trained; "transformers-5.3" is for comparisons with
            transformers 5.22 to 5.24 on Qwen2.5-VL, see `avjax.prompts.layout.token_layout`.
          corrupt: what to do to the video's frames or to the sound before the encoders, such as `avjax.MuteAudio()`;
            several apply in order. The token layout stays that of the clean prompt.
          opening: what the answer begins with, as `Prompt.continued`.
          **media_options: fields of `avjax.media.options.MediaOptions`, such as fps=1.0 or max_pixels=200704.

        Raises:
          ValueError: a file cannot be used as asked, or what `corrupt` changes is not there; the message names it and
            the next step.
        """
        refuse_no_words(text)
        options = self.processor.options.override(**media_options)
        prompt = self.processor.prompt(
            text,
            video=video,
            audio=audio,
            image=image,
            system=system,
            options=options,
            corrupt=corrupt,
            order=order,
            positions=positions,
        )
        return prompt.continued(self.encode_text(opening)) if opening else prompt

    def prompt_from_hf(self, batch: Mapping[str, Any], *, positions: PositionRule = "trained") -> Prompt:
        """A prompt from the mapping that an HF processor returns for one conversation, numpy or torch.

        Padding is dropped; sound inside a video is recognised by its tokens, and `use_audio_in_video`, which scripts
        pass on, must agree with them. Words that the assistant begins with there are text to a selector;
        `Prompt.continued` makes an opening.

        Args:
          positions: see `prompt`.
        """
        return self.processor.from_hf(batch, positions)

    def prompt_from_embeddings(self, embeddings: Any, positions: Any, types: Sequence[str]) -> Prompt:
        """A prompt from decoder inputs, for families whose encoders are not ported.

        Args:
          embeddings: [T, D].
          positions: int [3, T]; rotary positions t, h, w.
          types: T of "text", "audio", "video", "image".
        """
        return self.processor.from_embeddings(embeddings, positions, types)

    def check(self, prompt: Prompt) -> None:
        """Raises ValueError when the prompt is not one of this architecture, TypeError when it is none."""
        if not isinstance(prompt, Prompt):
            refuse_no_prompt(prompt)
        if prompt.made_for != self.config:
            raise ValueError("prompt: it was made for another architecture; make it with this model's own methods")
        if prompt.audio and not self.hears:
            raise ValueError(f"prompt: {Path(self.host.source).name} was not trained on sound; make it with audio=None")
        vocab = self.config.decoder.vocab_size
        ids = prompt.token_ids[0 if prompt.embeddings is None else len(prompt.embeddings) :]
        if bad := sorted(set(ids[(ids < 0) | (ids >= vocab)].tolist())):
            raise ValueError(f"prompt: expected token ids within 0:{vocab}, got {bad[:5]}")

    def encode(self, prompt: Prompt, groups: TokenGroups | None = None) -> Inputs:
        """What the decoder sees: text embeddings with each clip's encoder output in its place.

        A clip is encoded once and kept, whatever prompt it stands in.

        Args:
          groups: token groups that edits speak of; None puts every position in group 0.

        Returns:
          Embeddings [T, D], positions [3, T] and token groups [T], not padded.
        """
        self.check(prompt)
        if prompt.embeddings is not None:
            embeddings = on_device(prompt.embeddings, self.dtype)
            if len(opening := prompt.token_ids[len(embeddings) :]):
                embeddings = _continued(self.network, embeddings, on_device(opening))
        else:
            embeddings = _merge(self, prompt)
        size = len(prompt)
        return Inputs(
            embeddings=embeddings,
            positions=on_device(prompt.positions),
            groups=on_device(np.zeros(size, np.int32) if groups is None else groups.prompt),
            generated_group=on_device(0 if groups is None else groups.generated, np.int32),
            length=on_device(size, np.int32),
            num_groups=1 if groups is None else groups.num_groups,
        )

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; no control tokens are added.

        Raises:
          ValueError: there are none.
        """
        ids = tuple(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ValueError(f"text {text!r}: expected at least one token, got none")
        return ids

    def decode_text(self, tokens: Sequence[int] | np.ndarray) -> str | None:
        """Text of generated tokens, without control tokens; None when the checkpoint has no tokenizer."""
        if not self.processor.has_tokenizer:
            return None
        return self.processor.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)

    def encoded_clip(self, clip: AudioFeatures | VisionFeatures) -> jax.Array:
        """Encoder output [tokens, D] of one clip, from the cache when it was encoded before."""
        cache, key = self.host.encoded, _digest(clip)
        tower = self.network.vision if isinstance(clip, VisionFeatures) else self.network.audio
        parameters = jax.tree.leaves(tower)
        if any(isinstance(leaf, Tracer) for leaf in parameters):
            return self._encode_clip(clip)
        # Models made from this one share the cache, but not what other parameters computed.
        if key not in cache or not all(map(same_buffers, cache[key][0], parameters)):
            name = "vision" if isinstance(clip, VisionFeatures) else "audio"
            cache[key] = (
                parameters,
                cached_encoding(self.host, name, tower, self.dtype, key, lambda: self._encode_clip(clip)),
            )
            while len(cache) > CACHED_CLIPS:
                cache.popitem(last=False)
        cache.move_to_end(key)
        return cache[key][1]

    def _encode_clip(self, clip: AudioFeatures | VisionFeatures) -> jax.Array:
        if isinstance(clip, VisionFeatures):
            return encode_vision(self.network.vision, clip.patches, clip.grid, self.dtype)
        if self.network.audio is None:
            raise ValueError(f"{clip.source}: {self.config.family} has no audio tower; leave the sound out")
        return encode_audio(self.network.audio, clip.mel, self.dtype)


def refuse_no_model(given: Any) -> None:
    """Raises TypeError when what was given is no model, such as the name of one."""
    if isinstance(given, Model):
        return
    if isinstance(given, str | Path):
        raise TypeError(f"model: expected a loaded model, got {str(given)!r}; pass avjax.load({str(given)!r})")
    raise TypeError(f"model: expected a loaded model (avjax.load(...)), got {type(given).__name__}")


def _merge(model: Model, prompt: Prompt) -> jax.Array:
    ids = model.config.tokens
    media = [
        (on_device(np.flatnonzero(prompt.token_ids == token)), [model.encoded_clip(clip) for clip in clips])
        for token, clips in ((ids.audio, prompt.audio), (ids.image, prompt.images), (ids.video, prompt.videos))
        if clips
    ]
    return _embedded(model.network, on_device(prompt.token_ids), media)


@jax.jit
def _embedded(
    network: Network, token_ids: jax.Array, media: Sequence[tuple[jax.Array, Sequence[jax.Array]]]
) -> jax.Array:
    """[T, D]: embeddings of tokens, with clips' features in their places."""
    embeddings = network.decoder.embed(token_ids)
    for places, clips in media:
        embeddings = embeddings.at[places].set(jnp.concatenate(clips).astype(embeddings.dtype))
    return embeddings


@jax.jit
def _continued(network: Network, embeddings: jax.Array, token_ids: jax.Array) -> jax.Array:
    return jnp.concatenate([embeddings, network.decoder.embed(token_ids)])


@functools.singledispatch
def _digest(clip: Any) -> bytes:
    raise TypeError(f"expected media features, got {type(clip).__name__}")


@_digest.register
def _(clip: AudioFeatures) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(clip.mel).data, person=b"audio", digest_size=16).digest()


@_digest.register
def _(clip: VisionFeatures) -> bytes:
    state = hashlib.blake2b(repr(clip.grid).encode(), person=b"vision", digest_size=16)
    state.update(np.ascontiguousarray(clip.patches).data)
    return state.digest()
