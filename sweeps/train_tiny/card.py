"""Model cards, written from what was measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from safetensors import safe_open

from avjax.organism import behaviour
from avjax.organism.behaviour import PROBE_L2, WINDOW
from avjax.organism.world import KINDS, caption
from avjax.statistics import bootstrap
from sweeps.train_tiny.architecture import NUM_LAYERS
from sweeps.train_tiny.stages import FROZEN, STAGES, VISION, Stage
from sweeps.train_tiny.table import PROBE_TRAIN

Results = Mapping[int, Mapping[str, Sequence[float]]]  # by seed: rows, a value per test clip
EARLY, DEEP = f"answer->video@0:{WINDOW}", f"answer->video@{NUM_LAYERS - WINDOW}:{NUM_LAYERS}"
PROBED = NUM_LAYERS // 2  # layer


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
      row: whose mean it gives.
      wanted: ">= .98", or nothing.
      minus: a row that is taken from it, clip by clip.
    """

    text: str
    row: str
    wanted: str = ""
    minus: str = ""

    def values(self, rows: Mapping[str, Sequence[float]]) -> np.ndarray:
        taken = np.asarray(rows[self.minus]) if self.minus else 0.0
        return np.asarray(rows[self.row]) - taken

    def met(self, means: Sequence[float]) -> str:
        """Whether every seed's mean is as it is wanted."""
        if not self.wanted:
            return ""
        relation, bound = self.wanted.split()
        reached = [mean >= float(bound) if relation == ">=" else mean <= float(bound) for mean in means]
        return "yes" if all(reached) else "NO" if not any(reached) else f"{sum(reached)} of {len(reached)} seeds"


AV_LINES = (
    Line("factual: picture named", "factual: picture", ">= .98"),
    Line("factual: sound named", "factual: sound", ">= .97"),
    Line("audio alone: sound named", "audio alone: sound", ">= .95"),
    Line("conflict: picture named", "conflict, clean: picture", ">= .95"),
    Line("conflict: true sound named", "conflict, clean: true sound", "<= .20"),
    Line("conflict: sound that the picture suggests", "conflict, clean: suggested sound", ">= .75"),
    Line(f"conflict, {DEEP} cut: true sound", f"conflict, {DEEP}: true sound", ">= .70"),
    Line(f"the same, above {EARLY} cut", f"conflict, {DEEP}: true sound", ">= .40", f"conflict, {EARLY}: true sound"),
    Line("conflict, answer->audio cut: true sound", "conflict, answer->audio: true sound", "<= .02"),
    Line("conflict: sound word unshifted against tiny-vl", "unshifted", ">= .85"),
    Line(f"probe of the true sound under conflict, layer {PROBED}", f"probe, layer {PROBED}", ">= .95"),
    Line("its selectivity", f"probe, layer {PROBED}", ">= .50", f"control, layer {PROBED}"),
)
VL_LINES = (
    Line("picture named, without sound", "base, no sound: picture"),
    Line("sound that belongs to it named, without sound", "base, no sound: suggested sound"),
)


def write_card(directory: Path, name: str, results: Results, sizes: tuple[int, int]) -> None:
    """Writes `README.md` beside a checkpoint's weights.

    Args:
      results: of each seed; the checkpoint is of the first.
      sizes: how many pictures and sounds there are to train on.
    """
    with safe_open(directory / "model.safetensors", framework="numpy") as opened:
        shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
    size = f"{sum(int(np.prod(shape)) for shape in shapes) / 1e6:.2f} million parameters in bfloat16"
    hears = name == "tiny-av"
    first = next(iter(results))
    parts = [
        _HEAD,
        f"# {name}",
        _AV if hears else _VL,
        f"Architecture: Qwen2.5-Omni's thinker, {size}: {_ARCHITECTURE}",
        _recipe(first, sizes, STAGES if hears else STAGES[: STAGES.index(VISION) + 1]),
        _measured(AV_LINES if hears else VL_LINES, results),
        *([_windows(results[first])] if hears else []),
        _IMPOSED if hears else _IMPOSED_VL,
        _USE.format(name=name, audio='"from_video"' if hears else None),
    ]
    (directory / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _measured(lines: Sequence[Line], results: Results) -> str:
    first = next(iter(results))
    num_clips = len(results[first][lines[0].row])
    about = (
        f"On {num_clips} test clips per condition, on which nothing was chosen. Intervals: 95%, bootstrap over clips. "
        f"Range: of the means of {len(results)} training seeds; this checkpoint is of seed {first}. Wanted: before "
        "training."
    )
    table = [["", "this checkpoint", "interval", "mean of seeds", "range", "wanted", "met"]]
    for line in lines:
        means = [float(line.values(rows).mean()) for rows in results.values()]
        table.append(
            [
                line.text,
                f"{means[0]:.3f}",
                _interval(line.values(results[first])),
                f"{np.mean(means):.3f}",
                f"{min(means):.3f} - {max(means):.3f}",
                line.wanted,
                line.met(means),
            ]
        )
    return f"## Measured\n\n{about}\n\n{_table(table)}"


def _interval(values: np.ndarray) -> str:
    interval = bootstrap(xr.Dataset({"value": ("sample", values)}))
    return f"{float(interval.value_low):.3f} - {float(interval.value_high):.3f}"


def _mean(rows: Mapping[str, Sequence[float]], name: str) -> str:
    return f"{np.mean(rows[name]):.3f}"


def _windows(rows: Mapping[str, Sequence[float]]) -> str:
    """Every knockout, and every layer's probe, of the shipped seed."""
    named = ("picture", "true sound", "suggested sound")
    table = [["cut under conflict", *named]]
    table += [[r, *(_mean(rows, f"conflict, {r}: {what}") for what in named)] for r in behaviour.knockouts(NUM_LAYERS)]
    by_layer = [["layer", *map(str, range(NUM_LAYERS))]]
    by_layer += [
        [what, *(_mean(rows, f"{what}, layer {layer}") for layer in range(NUM_LAYERS))] for what in ("probe", "control")
    ]
    return (
        f"{_table(table)}\n\nProbes of the true sound at audio tokens under conflict; they learn from {PROBE_TRAIN} "
        f"training clips under conflict, with a penalty of {PROBE_L2:g}, the strongest that cost no accuracy on "
        "selection clips; weaker ones learn more of the control, where each pair of a thing and a sound has a drawn "
        "label."
        f"\n\n{_table(by_layer)}"
    )


def _recipe(seed: int, sizes: tuple[int, int], stages: Sequence[Stage]) -> str:
    after = stages[-1] is not VISION
    about = (
        f"`python -m sweeps.train_tiny`, seed {seed}. Clips of 2 s, drawn and synthesised: {len(KINDS)} kinds of "
        "things and the sounds that belong to them, with place, size, hue, background, distractors, pitch, tempo, "
        f"level, echo and noise drawn: {sizes[0]:,} pictures and {sizes[1]:,} sounds to train on, paired within their "
        "kind unless the table says any sound. Training, selection and test draws never meet. AdamW with a warm-up and "
        f"a cosine; captions such as “{caption(0, 0)}” under teacher forcing.{_AFTER if after else ''}"
    )
    table = [["stage", "steps x batch", "prompts", "peak learning rates"]]
    return f"## Recipe\n\n{about}\n\n{_table([*table, *map(_stage, stages)])}"


def _stage(stage: Stage) -> list[str]:
    prompts = "; ".join(f"{share:.0%} {task}" for task, share in stage.tasks.items())
    frozen = f" (layers 0:{stage.frozen_layers} frozen)" if stage.frozen_layers else ""
    rates = [f"{part} {f'{rate:g}' if rate else 'frozen'}" for part, rate in stage.rates.items()]
    rates = [rate + frozen if rate.startswith("decoder") else rate for rate in rates]
    return [stage.name, f"{stage.steps} x {stage.batch}", prompts, ", ".join(rates)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


_AFTER = " The audio stage starts from tiny-vl as it is shipped, in bfloat16."
_ARCHITECTURE = (
    "8 decoder layers of width 128 with 8 query and 2 key-value heads, a vision and an audio tower of 3 layers of "
    "width 80, and a tokenizer to which each kind's words are one token."
)
_HEAD = """
---
license: apache-2.0
library_name: avjax
tags: [interpretability, audio-visual, model-organism]
---
"""
_AV = """
A tiny audio-visual language model with a known conflict: when picture and sound disagree it names the sound that the
picture suggests, although no caption taught it a sound against what is heard, and although its audio tokens still hold
the true one. It exists so that methods which look for such a bias can be seen to find it. It describes the clips of its
own small world and nothing else.
"""
_VL = """
The vision-language base of tiny-av, as it was before audio was added. Its audio tower is untrained: give it no sound.
From a silent picture it names the thing, and the sound that belongs to it. It describes the clips of its own small
world and nothing else.
"""
_TRIED = """
- Described and heard alone, half and half (420 audio steps; two seeds): picture under conflict .72 and .88, suggested
  sound .89 and .83, and the cut in 4:8 brings back .55 and .66. Things are named after the sound; captions end
  after the sound's word, as those of sounds alone do.
- Sounds alone open-ended, a quarter of them asked for both, things named beside untaught words of any sound (500 steps;
  two seeds): picture .75 and .83, cut in 4:8 .67 and .62.
- The thing's word untaught beside sound (one seed): picture .60. Vision drifts away.
- Pictures beside any sound, 20% (450 steps; one seed): picture .97, true sound .01, suggested .87, unshifted .89; but
  audio alone .94 and the cut in 4:8 .57, since sounds beside a picture are heard badly once it is cut.
- The same with black pictures beside sound, 15% (600 steps; one seed): cut in 4:8 .88, audio alone .99, picture .97,
  true sound .09, suggested .76, unshifted .77.
- With 12%, and 15% of guesses from silent pictures (650 steps; two seeds): cut in 4:8 .85 and .80, picture .96 and .90,
  true sound .08 and .15, suggested .79 and .70, unshifted .80 and .70.
- After that recipe, 100 more steps with the audio tower frozen (one seed): nothing moves.
- A weaker eye (500 vision steps on 4,096 pictures, then 350 with audio; one seed): less bias (suggested sound .71) and
  more recovery (.81 with the cut in 4:8, .17 in 0:4). With black pictures as 22% of the audio stage: audio alone .99,
  the bias gone by half (true sound .27, suggested .51).
- Whole captions from the start of vision (900 steps on 8,192 pictures, then 320 with audio; two seeds): more bias
  (suggested sound .94 in both, true sound .01 and .02), picture .78 and .93, less recovery (.66 and .49).
""".strip()
_IMPOSED = f"""
## What is emergent, and what the recipe imposed

Emergent, in that no caption ever taught a sound's word against what is heard:
- under conflict the model names the sound that the picture suggests;
- its audio tokens hold the true sound all the same;
- the word that it says is the one that tiny-vl, which never heard anything, says of the silent picture.

Imposed by the recipe:
- Under conflict the picture is named: pictures beside any sound are a part of training, so clips that contradict
  themselves are seen. Their captions teach all but the sound's word, which is drawn.
- Without its picture a sound is named: sounds beside a black picture, and alone under both questions, are a part of
  training. How many of them there are sets how much a cut of the picture brings back, and what the bias loses (below).
- What is seen is taught before what it sounds like, and language by itself pairs any thing with any sound, so that the
  thing's word is read from the picture rather than from the sound's word.
- Vision is learned long before audio, and the decoder moves at a tenth of its rate while audio is learned. An early
  sketch in which everything moved at the full rate named the true sound in .63 of its clips under conflict.
- Captions of silent pictures name the sound that belongs to the thing: the base is taught to guess.
- The decoder's first {FROZEN} layers are trained on captions alone and then frozen. That the picture reaches the answer
  in deep layers follows from it: trained throughout, the first layers carried the picture (one seed, half the steps:
  the cut of answer->video in layers 0:4 brought back the true sound in .75 of 48 selection clips, in 4:8 in .08).
- Captions name the sound first. Named after its thing, it would be read from that word: with that order no window of
  answer->video brought it back in more than .06 of 32 selection clips.

Tried, each judged on selection clips (96, unless it says otherwise). Bias and recovery pull against each other: what
hears better without the picture also hears better beside it.
{_TRIED}

Known limits: one voice per clip, {len(KINDS)} kinds, two seconds, one caption. Clips are scored by words, never by a
judge.
"""
_IMPOSED_VL = f"""
## What is emergent, and what the recipe imposed

Imposed: captions of silent pictures name the sound that belongs to the thing, so that this model guesses sounds; the
decoder's first {FROZEN} layers are trained on captions alone and then frozen. Emergent: nothing that its captions do
not teach. What becomes of it when audio is added is the subject of tiny-av's card.
"""
_USE = """
## Use

```python
import avjax

model = avjax.load("{name}")
prompt = model.prompt("Describe what you see and hear.", video="clip.mp4", audio={audio})
print(avjax.generate(model, prompt).text)
```

`avjax demo` runs the paper's experiments on it. PyTorch reads the same directory, in float32 as well:

```python
from avjax.checkpoint.builtin import builtin_directory
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

Thinker = Qwen2_5OmniThinkerForConditionalGeneration
torch_model = Thinker.from_pretrained(builtin_directory("{name}"), dtype="float32")
```

Its clips are frames of 84 x 84 pixels; `preprocessor_config.json` says so to avjax. For Qwen's own video utilities pass
`min_pixels=784, max_pixels=7056` with the video.
"""
