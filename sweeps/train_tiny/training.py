"""Training of the tiny models with optax: captions under teacher forcing, one fixed token layout per condition.

Axes: B clip, T prompt position, A caption token, D embed.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avjax.families.qwen2_5_omni import Qwen2_5Omni
from avjax.media.features import frame_features, waveform_features
from avjax.media.frames import evenly_spaced
from avjax.model import Model
from avjax.models.audio import AudioTower
from avjax.models.decoder import Block, Decoder
from avjax.models.parameters import path_name
from avjax.models.vision import VisionTower, window_layout
from avjax.organism import world
from avjax.organism.behaviour import SOUND_WORD
from avjax.organism.pictures import SIDE
from avjax.organism.world import QUESTIONS, Question, ask
from avjax.prompts.prompt import AudioFeatures, Prompt, VisionFeatures

SAMPLED_FRAMES = 4  # of a clip of 2 s, at 2 a second


@dataclasses.dataclass(frozen=True)
class Task:
    """What a prompt shows of a clip, what it asks, and what of the caption is taught.

    Attributes:
      black: the picture is black.
      open_ended: the caption is taught up to the sound's word: neither that it ends there nor that it goes on.
      any_sound: the sound is of any kind; the caption names any sound too, and that word is not taught.
    """

    picture: bool
    sound: bool
    question: Question
    black: bool = False
    open_ended: bool = False
    any_sound: bool = False

    def __str__(self) -> str:
        picture, sound = "black picture" if self.black else "picture", "any sound" if self.any_sound else "sound"
        shown = [name for name, there in ((picture, self.picture), (sound, self.sound)) if there]
        untaught = ["what follows its word not taught"] * self.open_ended + ["its word not taught"] * self.any_sound
        return ", ".join([f"{' and '.join(shown) or 'nothing'}, asked what one can {self.question}", *untaught])


DESCRIBE = Task(True, True, "see and hear")
LOOK, GUESS = Task(True, False, "see"), Task(True, False, "see and hear")
LOOK_PAST = Task(True, True, "see and hear", any_sound=True)
LISTEN, HARK = (Task(False, True, question, open_ended=True) for question in ("hear", "see and hear"))
HEAR_OVER_BLACK = Task(True, True, "see and hear", black=True, open_ended=True)
READ = tuple(Task(False, False, question) for question in QUESTIONS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips as features, and their captions as tokens."""

    patches: jax.Array | None  # float32 [B, steps, patches, P]
    mel: jax.Array | None  # float32 [B, frames, bins]
    captions: jax.Array  # int32 [B, A], ends with the stop token, then padding of -1
    taught: jax.Array  # bool [B, A], tokens that the loss counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLayout:
    """What all prompts of one kind share."""

    prompt: Prompt
    video: np.ndarray  # int [n], positions of video tokens
    audio: np.ndarray


def features(model: Model, clip: world.Clip) -> tuple[np.ndarray, np.ndarray]:
    """What the media path makes of a clip: of its picture and of its sound."""
    return seen_features(model, clip.frames), heard_features(model, clip.samples)


def seen_features(model: Model, frames: np.ndarray) -> np.ndarray:
    """float32 [steps, patches, P], of the sampled frames."""
    chosen = frames[evenly_spaced(len(frames), SAMPLED_FRAMES)]
    seen = frame_features(chosen, model.config.vision, model.processor.options, source="clip")
    return seen.patches.reshape(seen.grid[0], -1, seen.patches.shape[-1])


def heard_features(model: Model, samples: np.ndarray) -> np.ndarray:
    """float32 [frames, bins], log-mel."""
    return waveform_features(samples, model.processor.options, source="clip").mel


def layout(model: Model, clip: world.Clip, task: Task) -> ClipLayout:
    """The prompt of a clip, whose tokens are those of every clip's."""
    processor, vision = model.processor, model.config.vision
    chosen = clip.frames[evenly_spaced(len(clip.frames), SAMPLED_FRAMES)]
    videos: tuple[VisionFeatures, ...] = ()
    audio: tuple[AudioFeatures, ...] = ()
    if task.picture:
        videos = (frame_features(chosen, vision, processor.options, source="clip"),)
    if task.sound:
        audio = (waveform_features(clip.samples, processor.options, source="clip"),)
    inside = task.picture and task.sound
    prompt = processor.prompt_of(ask(task.question), videos=videos, audio=audio, audio_in_video=inside)
    ids = model.config.tokens
    return ClipLayout(
        prompt=prompt,
        video=np.flatnonzero(prompt.token_ids == ids.video),
        audio=np.flatnonzero(prompt.token_ids == ids.audio),
    )


def caption_tokens(model: Model, text: str, length: int) -> np.ndarray:
    """int32 [length]: the text and a stop token, padded with -1."""
    tokens = [*model.processor.tokenizer(text, add_special_tokens=False)["input_ids"], model.generation.stop_tokens[0]]
    if len(tokens) > length:
        raise ValueError(f"caption {text!r}: expected at most {length} tokens, got {len(tokens)}")
    return np.array(tokens + [-1] * (length - len(tokens)), np.int32)


def taught_tokens(captions: np.ndarray, task: Task) -> np.ndarray:
    """bool [B, A], the tokens of captions [B, A] that a task teaches."""
    taught = captions >= 0
    if task.any_sound:
        taught[:, SOUND_WORD] = False
    if task.open_ended:
        taught[:, SOUND_WORD + 1 :] = False
    return taught


def loss(network: Qwen2_5Omni, batch: Batch, place: ClipLayout) -> tuple[jax.Array, jax.Array]:
    """Mean negative log-likelihood (nats) per taught token, and the share of those that are predicted."""
    logits, real = caption_logits(network, batch, place), batch.taught
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.captions, 0))
    hits = jnp.argmax(logits, -1) == batch.captions
    return jnp.sum(nll * real) / jnp.sum(real), jnp.sum(hits * real) / jnp.sum(real)


def caption_logits(network: Qwen2_5Omni, batch: Batch, place: ClipLayout) -> jax.Array:
    """float32 [B, A, V], what each caption token is predicted from."""
    decoder, ids = network.decoder, jnp.asarray(place.prompt.token_ids)
    size, fed = len(place.prompt), batch.captions[:, :-1]
    x = jnp.broadcast_to(decoder.embed(ids), (len(fed), size, decoder.cfg.embed_dim))
    if batch.patches is not None:
        x = x.at[:, place.video].set(_video(network.vision, batch.patches))
    if batch.mel is not None:
        assert network.audio is not None
        x = x.at[:, place.audio].set(_audio(network.audio, batch.mel))
    x = jnp.concatenate([x, decoder.embed(jnp.maximum(fed, 0))], axis=1)
    after = place.prompt.next_position() + np.arange(fed.shape[1])
    positions = np.concatenate([place.prompt.positions, np.broadcast_to(after, (3, len(after)))], axis=1)
    return decoder.logits(hidden_states(decoder, x, jnp.asarray(positions))[:, size - 1 :])


def hidden_states(decoder: Decoder, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Final residuals [B, T, D] of sequences of one layout, all heads in one product: made for gradients.

    Args:
      x: [B, T, D], embeddings.
      positions: int32 [3, T].
    """
    rotary = decoder.rotary(positions, x.dtype)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True), None

    def layer(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
        return block(x, rotary, attend, lambda _, x: x)

    return jax.lax.scan(layer, x, decoder.layers)[0]


def _video(tower: VisionTower, patches: jax.Array) -> jax.Array:
    """[B, video tokens, D]"""
    side = SIDE // tower.cfg.patch_size
    order = window_layout(tower.cfg, side, side)
    windows = jnp.where(order.valid[..., None], patches[:, :, order.patch_index], 0)
    flat = windows.reshape(-1, *windows.shape[2:])
    merged = tower(flat, jnp.asarray(order.rows_columns), jnp.asarray(order.valid))[0][:, order.merged_index]
    return merged.reshape(patches.shape[0], -1, merged.shape[-1])


def _audio(tower: AudioTower, mel: jax.Array) -> jax.Array:
    """[B, audio tokens, D]; a clip of 2 s is one chunk."""
    tokens, _ = tower(mel, jnp.full(len(mel), mel.shape[1]))
    return tokens.reshape(len(mel), -1, tokens.shape[-1])


def optimiser(
    network: Qwen2_5Omni, rates: Mapping[str, float], steps: int, frozen_layers: int = 0
) -> optax.GradientTransformation:
    """AdamW with a warm-up and a cosine for each part of the network by the start of its path; a rate of 0 freezes it.

    Args:
      rates: peak learning rates by the start of a parameter's path; the longest that fits is taken.
      frozen_layers: how many of the decoder's first layers stay as they are.
    """

    def part(path: Any, _: Any) -> str:
        name = path_name(path)
        return max((p for p in rates if name.startswith(p)), key=len)

    labels = jax.tree_util.tree_map_with_path(part, network)
    transformations: dict[Hashable, Any] = {
        name: optax.set_to_zero()
        if rate == 0
        else optax.adamw(
            optax.warmup_cosine_decay_schedule(0, rate, steps // 20 + 1, steps, rate / 50), weight_decay=0.01
        )
        for name, rate in rates.items()
    }
    moves = jnp.arange(network.decoder.cfg.num_layers) >= frozen_layers

    def by_layer(path: Any, change: jax.Array) -> jax.Array:
        stacked = path_name(path).startswith("decoder.layers.")
        return change * moves.reshape(-1, *[1] * (change.ndim - 1)) if stacked else change

    thawed = optax.stateless(lambda changes, _: jax.tree_util.tree_map_with_path(by_layer, changes))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(transformations, labels), thawed)


def start(network: Any, transformation: optax.GradientTransformation) -> Any:
    """The optimiser's first state; optax's types know no NNX modules."""
    return transformation.init(network)


def stepper(place: ClipLayout, transformation: optax.GradientTransformation) -> Any:
    """A compiled step: (network, state, batch) -> (network, state, loss, share of tokens predicted)."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(network: Any, state: Any, batch: Batch) -> tuple[Any, Any, jax.Array, jax.Array]:
        (value, hits), gradient = jax.value_and_grad(loss, has_aux=True)(network, batch, place)
        changes, state = transformation.update(gradient, state, network)
        return optax.apply_updates(network, changes), state, value, hits

    return step
