"""What a tiny model does with clips whose truth is known: captions under edits scored by their words, and probes.

Axes: C clip, L layer, T prompt position, D embed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import jax.numpy as jnp
import numpy as np

from avjax.analysis.probes.train import train_probe
from avjax.edits.edits import Edit
from avjax.engine.generate import Generation, generate_variants
from avjax.engine.run import run
from avjax.model import Model
from avjax.models.sites import Site
from avjax.organism.world import KINDS, PROMPT, Clip, ask
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import select

MAX_NEW_TOKENS = 12  # a caption has 10 with its stop token
SOUND_WORD = 2  # its place in a caption, after the opening
WINDOW = 4  # layers of a knockout
PROBE_L2 = 3e-2  # the strongest penalty that costs no accuracy on selection clips; weaker ones learn the control too
OPENING = "I hear"  # what a caption says before the sound's word
Variants = Mapping[str, Sequence[Edit | str]]


@dataclasses.dataclass(frozen=True)
class Score:
    """Which words a caption has.

    Attributes:
      picture: the thing that is seen is named.
      sound: the sound that is heard is named.
      suggested: the sound that belongs to the thing that is seen is named.
    """

    picture: bool
    sound: bool
    suggested: bool


def score(text: str, clip: Clip) -> Score:
    """A caption's words against a clip's truth; of what a clip lacks, nothing is found."""
    words = set(re.findall(r"\w+", text))
    seen, heard = (None if i is None else KINDS[i] for i in (clip.seen, clip.heard))
    return Score(
        picture=seen is not None and seen.thing in words,
        sound=heard is not None and heard.sound in words,
        suggested=seen is not None and seen.sound in words,
    )


def knockouts(num_layers: int, width: int = WINDOW) -> dict[str, list[str]]:
    """The clean run; answer->video cut in each window of layers and in all; answer->audio cut in all."""
    starts = range(num_layers - width + 1)
    windows = [f"answer->video@{start}:{start + width}" for start in starts]
    return {"clean": [], **{rule: [rule] for rule in (*windows, "answer->video", "answer->audio")}}


def prompts_of(
    model: Model, clips: Iterable[Clip], *, picture: bool = True, sound: bool = True
) -> Iterator[tuple[Clip, Prompt]]:
    """Each clip with its prompt, through a file, as a user's clip comes; a sound alone is asked for what one hears."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "clip.mp4"
        for clip in clips:
            clip.write(path)
            if picture:
                yield clip, model.prompt(PROMPT, video=path, audio="from_video" if sound else None)
            else:
                yield clip, model.prompt(ask("hear"), audio=path)


def caption(model: Model, prompt: Prompt, variants: Variants) -> dict[str, Generation]:
    """A clip's caption under each variant."""
    generations = generate_variants(model, prompt, list(variants.values()), max_new_tokens=MAX_NEW_TOKENS)
    return dict(zip(variants, generations, strict=True))


def clean_caption(model: Model, prompt: Prompt) -> Generation:
    """A clip's caption without edits."""
    return caption(model, prompt, {"clean": []})["clean"]


def rank_under_base(caption: Generation, base: Generation, place: int) -> int | None:
    """Rank that the base gives a caption's token at `place`, 1 for its own choice.

    None where the base's caption differs before that token, since it then speaks of another context.
    """
    if len(caption.tokens) <= place or not np.array_equal(caption.tokens[:place], base.tokens[:place]):
        return None
    assert base.logits is not None
    return 1 + int(np.sum(base.logits[place] > base.logits[place, caption.tokens[place]]))


def opening(model: Model, caption: Generation) -> np.ndarray:
    """The tokens before the sound's word; none in a caption that does not begin as the tiny world's do."""
    tokens = caption.tokens[:SOUND_WORD]
    return tokens if model.decode_text(tokens) == OPENING else tokens[:0]


def audio_residuals(model: Model, prompt: Prompt) -> np.ndarray:
    """float32 [L, D]: `resid_post`, mean over audio tokens."""
    residuals = run(model, prompt, capture=[Site.RESID_POST]).captures[Site.RESID_POST]
    return np.asarray(residuals)[:, select(prompt, "audio")[:-1]].mean(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """Whether probes named the right class, for clips that they were not trained on.

    Attributes:
      hits: bool [C, L], of the sound that is heard.
      control_hits: bool [C, L], of the control task: each pair of a thing and a sound has a label drawn for it, the
        same in training and test clips.
    """

    hits: np.ndarray
    control_hits: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """[L]"""
        return self.hits.mean(0)

    @property
    def control(self) -> np.ndarray:
        """[L]"""
        return self.control_hits.mean(0)

    @property
    def selectivity(self) -> np.ndarray:
        """[L]; Hewitt and Liang 2019."""
        return self.accuracy - self.control


def probe_sound(residuals: np.ndarray, clips: Sequence[Clip], num_train: int, seed: int = 0) -> ProbeScores:
    """Linear probes of the sound from audio tokens: trained on the first `num_train` clips, tested on the others.

    Args:
      residuals: [C, L, D], of `audio_residuals`.
      clips: C clips with a picture and a sound.
      seed: of the control labels.
    """
    train, test = (np.swapaxes(part, 0, 1) for part in (residuals[:num_train], residuals[num_train:]))
    seen, heard = (np.array([getattr(clip, what) for clip in clips], int) for what in ("seen", "heard"))
    dealt = np.random.default_rng(seed).integers(len(KINDS), size=(len(KINDS), len(KINDS)))

    def hits(labels: np.ndarray) -> np.ndarray:
        probe = train_probe(train, labels[:num_train], len(KINDS), l2=PROBE_L2)
        return labels[num_train:, None] == np.asarray(jnp.argmax(probe.logits(test), -1)).T

    return ProbeScores(hits=hits(heard), control_hits=hits(dealt[seen, heard]))


def audio_probes(
    model: Model, train: Sequence[Clip], test: Sequence[Clip], report_done: Callable[[int], None] = lambda done: None
) -> ProbeScores:
    """Probes of the sound that learn from some clips and are tested on others.

    Args:
      report_done: called with the number of clips that are done.
    """
    clips, residuals = [*train, *test], []
    for _, prompt in prompts_of(model, clips):
        residuals.append(audio_residuals(model, prompt))
        report_done(len(residuals))
    return probe_sound(np.stack(residuals), clips, len(train))
