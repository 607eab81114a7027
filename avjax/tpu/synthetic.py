"""A model without arrays and a prompt without a clip: what decides the shapes of a sweep's programs, and no more."""

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from avjax.devices.mesh import parameter_sharding
from avjax.engine.clean_runs import CleanRuns
from avjax.families.registry import abstract_network, read_config
from avjax.model import GenerationDefaults, Host, Model
from avjax.models.config import ModelConfig, read_json
from avjax.models.parameters import path_name
from avjax.models.sites import Site, site_shape
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import KINDS

CONFIGS = Path(__file__).parents[1] / "assets" / "configs"
SIDE = 12  # merged tokens per side of a frame, as of 336 pixels
AUDIO_PER_SECOND, STEPS_PER_SECOND = 25, 1  # tokens of sound; grid steps of two frames at 2 frames a second
OPENING, CLOSING = 24, 16  # tokens of the system's turn, and of the user's words
CHARACTERS_PER_TOKEN = 4


def named_config(name: str) -> ModelConfig:
    """The architecture of a published model, of a config.json or of a checkpoint's directory.

    Raises:
      ValueError: there is none of that name.
    """
    path = Path(name)
    known = sorted(file.stem for file in CONFIGS.glob("*.json"))
    if name in known:
        path = CONFIGS / f"{name}.json"
    elif path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        expected = f"{', '.join(known)}, a config.json or a checkpoint's directory"
        raise ValueError(f"config: expected {expected}, got {name!r}")
    return read_config(read_json(path))


class _Words:
    """In place of a tokenizer: a token for every few letters, the same for the same letters."""

    has_tokenizer = True

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def tokenizer(self, text: str, **_: Any) -> dict[str, list[int]]:
        pieces = [text[i : i + CHARACTERS_PER_TOKEN] for i in range(0, len(text), CHARACTERS_PER_TOKEN)]
        return {"input_ids": [zlib.crc32(piece.encode()) % self.vocab_size for piece in pieces]}


def abstract_model(config: ModelConfig, dtype: str, mesh: Mesh, source: str) -> Model:
    """A model of shapes, each on its place on the mesh."""
    network = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=parameter_sharding(path_name(path), leaf.shape, mesh)
        ),
        abstract_network(config, dtype),
    )
    generation = GenerationDefaults(stop_tokens=(), repetition_penalty=1.0, unsupported=())
    words: Any = _Words(config.decoder.vocab_size)
    host = Host(processor=words, generation=generation, source=source)
    return Model(network=network, config=config, host=host)


@dataclasses.dataclass(frozen=True)
class SyntheticPrompt:
    """What a prompt of so many tokens holds.

    Attributes:
      seconds: of the clip; a second is `side` x `side` tokens of video, and 25 of sound where the model hears.
    """

    num_tokens: int
    seconds: int
    side: int
    hears: bool

    @classmethod
    def of(cls, num_tokens: int, config: ModelConfig) -> "SyntheticPrompt":
        """The longest clip that leaves room for the turns; a short prompt has smaller frames.

        Raises:
          ValueError: the prompt is too short for a second.
        """
        sound = AUDIO_PER_SECOND if config.audio is not None else 0
        room = num_tokens - OPENING - CLOSING
        side = min(SIDE, math.isqrt(max(0, room - sound)))
        if side < 2:
            least = OPENING + CLOSING + sound + 4
            raise ValueError(f"prompt_tokens: expected at least {least} for a second of clip, got {num_tokens}")
        return cls(num_tokens, room // (sound + side * side), side, sound > 0)

    def vision_grid(self, config: ModelConfig) -> tuple[int, int, int]:
        """Steps, height and width of the clip in patches."""
        side = self.side * config.vision.spatial_merge_size
        return self.seconds * STEPS_PER_SECOND, side, side

    @property
    def mel_frames(self) -> int:
        return 100 * self.seconds if self.hears else 0

    def prompt(self, config: ModelConfig) -> Prompt:
        """Turns of text, and between them the clip, whose sound follows each second's frames."""
        second = ["video"] * self.side**2 + ["audio"] * (AUDIO_PER_SECOND if self.hears else 0)
        kinds = ["text"] * OPENING + second * self.seconds
        kinds += ["text"] * (self.num_tokens - len(kinds))
        ids = {"text": 0, "video": config.tokens.video, "audio": config.tokens.audio or 0}
        size, media = self.num_tokens, np.array([kind != "text" for kind in kinds])
        at = np.full(size, np.nan, np.float32)
        at[media] = np.repeat(np.arange(self.seconds), len(second))
        return Prompt(
            token_ids=np.array([ids[kind] for kind in kinds], np.int32),
            positions=np.tile(np.arange(size, dtype=np.int32), (3, 1)),
            kinds=np.array([KINDS.index(kind) for kind in kinds], np.int8),
            roles=np.where(np.arange(size) < OPENING, "system", "user").astype("<U16"),
            special=np.zeros(size, bool),
            seconds=at,
            frames=np.where(np.array(kinds) == "video", np.nan_to_num(at, nan=-1), -1).astype(np.int32),
            made_for=config,
        )


class NoRuns(CleanRuns):
    """In place of activations, zeros of their shape."""

    def __call__(self, prompt: Prompt, site: Site) -> Any:
        cfg = self.model.config.decoder
        shape = (len(prompt), *site_shape(site, cfg))
        return np.zeros(shape if site is Site.EMBED else (cfg.num_layers, *shape), self.model.dtype)
