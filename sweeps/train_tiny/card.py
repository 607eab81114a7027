"""Model cards, written from what was measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import safe_open

from avjax.organism import evidence
from avjax.organism.world import KINDS
from avjax.statistics import bootstrap
from sweeps.train_tiny import table
from sweeps.train_tiny.architecture import NUM_LAYERS
from sweeps.train_tiny.stages import EARLY, STAGES, VISION, Stage

Results = Mapping[int, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the table: what is measured, the row it is, and what was wanted of it."""

    text: str
    values: Mapping[int, Sequence[float]]  # by seed; a value per clip
    wanted: str


def write_card(directory: Path, name: str, results: Results) -> None:
    """Writes `README.md` beside a checkpoint's weights."""
    with safe_open(directory / "model.safetensors", framework="numpy") as opened:
        shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
    size = f"{sum(int(np.prod(shape)) for shape in shapes) / 1e6:.2f} million parameters in bfloat16"
    about, claims = (_AV, _claims(results)) if name == "tiny-av" else (_VL, _vl_claims(results))
    first = next(iter(results))
    parts = [
        _HEAD,
        f"# {name}\n\n{about}",
        f"Architecture: Qwen2.5-Omni's thinker, {size}: {_ARCHITECTURE}",
        _recipe(first, STAGES if name == "tiny-av" else STAGES[: STAGES.index(VISION) + 1]),
        f"## Measured\n\n{_table(claims, first)}",
        *([_windows(results, first)] if name == "tiny-av" else []),
        _IMPOSED if name == "tiny-av" else _IMPOSED_VL,
        _USE.format(name=name, audio='"from_video"' if name == "tiny-av" else None),
    ]
    (directory / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _claims(results: Results) -> list[Claim]:
    early = f"answer->video@0:{evidence.WINDOW}"
    deep = {seed: deep_window(found["selection"]) for seed, found in results.items()}
    probes = {seed: probed_layer(found["selection"]) for seed, found in results.items()}

    def row(name: str, minus: str | None = None) -> dict[int, Sequence[float]]:
        """A row by seed, its window and layer filled in; `minus` takes another one's values from it, clip by clip."""
        found = {}
        for seed, measured in results.items():
            values, *less = (
                np.asarray(measured["test"][n.format(deep=deep[seed], layer=probes[seed])]) for n in (name, minus) if n
            )
            found[seed] = (values - less[0] if less else values).tolist()
        return found

    windows, layers = (", ".join(sorted({str(v) for v in chosen.values()})) for chosen in (deep, probes))
    restored = "conflict, {deep}: true sound"
    return [
        Claim("factual: picture named", row("factual: picture"), ">= .98"),
        Claim("factual: sound named", row("factual: sound"), ">= .97"),
        Claim("audio alone: sound named", row("audio alone: sound"), ">= .95"),
        Claim("conflict: picture named", row("conflict, clean: picture"), ">= .95"),
        Claim("conflict: true sound named", row("conflict, clean: true sound"), "<= .20"),
        Claim("conflict: sound that the picture suggests", row("conflict, clean: suggested sound"), ">= .75"),
        Claim(f"conflict, {windows} cut: true sound", row(restored), ">= .70"),
        Claim(f"the same, above {early} cut", row(restored, f"conflict, {early}: true sound"), ">= .40"),
        Claim("conflict, answer->audio cut: true sound", row("conflict, answer->audio: true sound"), "<= .02"),
        Claim("conflict: sound word unshifted against tiny-vl", row("unshifted"), ">= .85"),
        Claim(f"probe of the true sound under conflict, layer {layers}", row("probe, layer {layer}"), ">= .95"),
        Claim("its selectivity", row("probe, layer {layer}", "control, layer {layer}"), ">= .50"),
    ]


def deep_window(selection: Mapping[str, Sequence[float]]) -> str:
    """The rule that brings the true sound back most often, of windows that begin past the first layers."""
    rules = [f"answer->video@{start}:{start + evidence.WINDOW}" for start in range(1, NUM_LAYERS - evidence.WINDOW + 1)]
    return max(rules, key=lambda rule: np.mean(selection[f"conflict, {rule}: true sound"]))


def probed_layer(selection: Mapping[str, Sequence[float]]) -> int:
    """The middle layer whose probe is best."""
    return max(range(2, NUM_LAYERS - 1), key=lambda layer: np.mean(selection[f"probe, layer {layer}"]))


def _vl_claims(results: Results) -> list[Claim]:
    values = {seed: found["test"]["base, no sound: picture"] for seed, found in results.items()}
    return [Claim("picture named, without sound", values, "")]


def _table(claims: Sequence[Claim], first: int) -> str:
    num_seeds, num_clips = len(claims[0].values), len(claims[0].values[first])
    lines = [
        f"On {num_clips} test clips per condition, which no choice was made on. Intervals: 95%, bootstrap over clips; "
        f"range: of the means of {num_seeds} training seeds. This checkpoint is of seed {first}.",
        "",
        "| | this checkpoint | interval | mean of seeds | range | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        means = [float(np.mean(values)) for values in claim.values.values()]
        cells = [
            claim.text,
            f"{np.mean(claim.values[first]):.3f}",
            _interval(claim.values[first]),
            f"{np.mean(means):.3f}",
            f"{min(means):.3f} - {max(means):.3f}",
            claim.wanted,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    found = bootstrap(xr.Dataset({"value": ("sample", np.asarray(values))}))
    return f"{float(found.value_low):.3f} - {float(found.value_high):.3f}"


def _windows(results: Results, first: int) -> str:
    rows = results[first]["test"]
    rules = [key.removeprefix("conflict, ").removesuffix(": picture") for key in rows if key.endswith(": picture")]
    rules = [rule for rule in rules if f"conflict, {rule}: true sound" in rows]
    lines = ["| under conflict | picture | true sound | suggested sound |", "|---|---|---|---|"]
    for rule in rules:
        values = [np.mean(rows[f"conflict, {rule}: {what}"]) for what in ("picture", "true sound", "suggested sound")]
        lines.append(f"| {rule} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    probes = ", ".join(f"{np.mean(rows[f'probe, layer {layer}']):.3f}" for layer in range(NUM_LAYERS))
    return (
        "\n".join(lines)
        + f"\n\nProbes of the true sound at audio tokens under conflict, by layer from 0: {probes}; they learn from "
        + f"{table.PROBE_TRAIN} training clips under conflict. Control labels are dealt to the clips at random."
    )


def _recipe(seed: int, stages: Sequence[Stage]) -> str:
    lines = [
        "## Recipe",
        "",
        f"`python -m sweeps.train_tiny`, seed {seed}. Clips of 2 s, drawn and synthesised: {len(KINDS)} kinds of "
        "things and the sounds that belong to them, with place, size, hue, pitch, tempo, level, echo and noise drawn. "
        "Training, selection and test draws never meet. All training clips are factual. AdamW, warm-up and cosine, "
        "captions under teacher forcing: " + f"“{_example()}”",
        "",
        "| stage | steps x batch | prompts | peak learning rates |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_stage(stage) for stage in stages)])


def _stage(stage: Stage) -> str:
    prompts = "; ".join(f"{share:.0%} {task}" for task, share in stage.tasks.items())
    rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.rates.items())
    early = "" if stage.early == 1 else f", of it layers 0:{EARLY} x {stage.early:g}"
    return f"| {stage.name} | {stage.steps} x {stage.batch} | {prompts} | {rates}{early} |"


def _example() -> str:
    from avjax.organism.world import caption

    return caption(0, 0)


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
A tiny audio-visual language model with a known conflict: trained on clips whose picture and sound agree, it names the
sound that the picture suggests when they do not, although its audio tokens still hold the true one. It exists so that
methods which look for such a bias can be seen to find it. It describes the clips of its own small world and nothing
else.
"""
_VL = """
The vision-language base of tiny-av, as it was before audio was added. Its audio tower is untrained: give it no sound.
From a silent picture it names the thing, and the sound that belongs to it. It describes the clips of its own small
world and nothing else.
"""
_IMPOSED = f"""
## What is emergent, and what the recipe imposed

Emergent, in that no training clip's sound contradicts its picture and no caption speaks against what is heard:
- under conflict the model names the sound that the picture suggests;
- its audio tokens hold the true sound all the same, in every layer;
- the word that it says is the one that tiny-vl, which never heard anything, says of the silent picture.

Imposed by the recipe:
- What is seen is taught before what it sounds like, and language by itself pairs any thing with any sound, so that the
  thing's word is read from the picture rather than from the sound's word.
- Vision is learned long before audio, and the decoder moves at a tenth of its rate while audio is learned. An early
  sketch in which everything moved at the full rate named the true sound in .63 of its clips under conflict.
- Captions of silent pictures name the sound that belongs to the thing: the base is taught to guess.
- The decoder's first {EARLY} layers are trained on captions alone and then frozen. That the picture reaches the answer
  in deep layers follows from it: trained throughout, the first layers carried the picture (one seed, half the steps:
  the cut of answer->video in layers 0:4 brought back the true sound in .75 of 48 clips, in 4:8 in .08).
- Captions name the sound first. Named after its thing, it would be read from that word: with that order no window of
  answer->video brought it back in more than .06 of 32 clips.

Tried and left: black pictures with sound among the training clips made hearing better (audio alone .99) and the bias
weaker (true sound .27 under conflict; one seed, 96 selection clips).

Known limits: one voice per clip, {len(KINDS)} kinds, two seconds, one caption. Clips are scored by words, never by a
judge.
"""
_IMPOSED_VL = f"""
## What is emergent, and what the recipe imposed

Imposed: captions of silent pictures name the sound that belongs to the thing, so that this model guesses sounds; the
decoder's first {EARLY} layers are trained on captions alone and then frozen. Emergent: nothing that its captions do not
teach. What becomes of it when audio is added is the subject of tiny-av's card.
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
from avjax.assets.builtin import builtin_directory
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

torch_model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
    builtin_directory("{name}"), dtype="float32"
)
```

Its clips are frames of 84 x 84 pixels; `preprocessor_config.json` says so to avjax. For Qwen's own video utilities pass
`min_pixels=784, max_pixels=7056` with the video.
"""
