"""The demo's experiments, on clips of the tiny world or on a clip of the user's."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avjax import metrics
from avjax.demo.findings import Captioned, Findings
from avjax.engine.generate import Generation
from avjax.media.errors import MediaError
from avjax.model import Model
from avjax.organism import behaviour, world
from avjax.organism.world import KINDS, PROMPT, Clip
from avjax.prompts.prompt import Prompt
from avjax.runs.sweep import sweep

ReportProgress = Callable[[str, int, int], None]  # a task, steps done, steps in all
CLIPS = len(KINDS)  # per condition: each kind once
PROBE_TRAIN, PROBE_TEST = 160, 48
KEYS = {"audio": "audio", "video": "video", "text": "text | generated"}  # text: all words, the answer's own included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Clips under conflict as the models see and describe them."""

    prompts: list[Prompt]
    captions: list[dict[str, Generation]]  # by variant
    base: list[Generation]  # without sound


def on_the_tiny_world(av: Model, vl: Model, clips: Path, report: ReportProgress) -> Findings:
    """All experiments on test clips, whose files are written to `clips`."""
    variants = behaviour.knockouts(av.config.decoder.num_layers)
    captions: list[Captioned] = []
    for i in range(CLIPS):
        clip = world.clip("test", i)
        prompt = _prompt(av, clip, clips / f"factual-{i:02}.mp4")
        captions += _captioned(f"factual-{i:02}", "factual", clip, behaviour.caption(av, prompt, {"clean": []}))
        report("factual captions", i + 1, CLIPS)
    conflict = Conflict(prompts=[], captions=[], base=[])
    for i in range(CLIPS):
        clip = world.clip("test", i, "counterfactual")
        path = clips / f"conflict-{i:02}.mp4"
        prompt = _prompt(av, clip, path)
        generations = behaviour.caption(av, prompt, variants)
        _add(conflict, prompt, generations, behaviour.clean_caption(vl, vl.prompt(PROMPT, video=path)))
        captions += _captioned(path.stem, "counterfactual", clip, generations)
        report("captions under conflict, clean and cut", i + 1, CLIPS)
    attention, per_key = _attention(av, conflict, report)
    return Findings(
        captions=captions,
        attention=attention,
        per_key=per_key,
        ranks=_ranks(av, conflict),
        probes=_probes(av, report),
        settings=_settings(av, variants) | {"clips_per_condition": CLIPS, "probe_clips": [PROBE_TRAIN, PROBE_TEST]},
    )


def on_a_clip(av: Model, vl: Model, path: Path, report: ReportProgress) -> Findings:
    """Captions, knockouts, attention and the base's view of one clip, whose content is unknown.

    Raises:
      MediaError: the clip has no picture or no sound.
    """
    variants = behaviour.knockouts(av.config.decoder.num_layers)
    report("reading the clip", 0, 1)
    try:
        prompt = av.prompt(PROMPT, video=path, audio="from_video")
    except MediaError as error:
        raise MediaError(f"{error}; the demo needs a clip with a picture and a sound") from error
    captions = behaviour.caption(av, prompt, variants)
    report("captions, clean and cut", 1, 1)
    conflict = Conflict(prompts=[], captions=[], base=[])
    _add(conflict, prompt, captions, behaviour.clean_caption(vl, vl.prompt(PROMPT, video=path)))
    attention, per_key = _attention(av, conflict, report)
    return Findings(
        captions=_captioned(path.stem, "yours", None, captions),
        attention=attention,
        per_key=per_key,
        ranks=_ranks(av, conflict),
        probes=None,
        settings=_settings(av, variants) | {"clip": path.name},
    )


def _prompt(model: Model, clip: Clip, path: Path) -> Prompt:
    clip.write(path)
    return model.prompt(PROMPT, video=path, audio="from_video")


def _captioned(name: str, condition: str, clip: Clip | None, generations: Mapping[str, Generation]) -> list[Captioned]:
    seen, heard = (None, None) if clip is None else (clip.seen, clip.heard)
    return [
        Captioned(
            clip=name,
            condition=condition,
            seen=None if seen is None else KINDS[seen].thing,
            heard=None if heard is None else KINDS[heard].sound,
            variant=variant,
            text=generation.text or "",
            score=None if clip is None else behaviour.score(generation.text or "", clip),
            edges=generation.touched.edges,
        )
        for variant, generation in generations.items()
    ]


def _add(conflict: Conflict, prompt: Prompt, generations: dict[str, Generation], base: Generation) -> None:
    conflict.prompts.append(prompt)
    conflict.captions.append(generations)
    conflict.base.append(base)


def _ranks(av: Model, conflict: Conflict) -> list[int | None]:
    pairs = zip(conflict.captions, conflict.base, strict=True)
    return [
        behaviour.rank_under_base(generation["clean"], base, behaviour.SOUND_WORD)
        if len(behaviour.opening(av, generation["clean"]))
        else None
        for generation, base in pairs
    ]


def _attention(
    av: Model, conflict: Conflict, report: ReportProgress
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Attention where the sound's word is chosen: the caption's opening joins the prompt."""
    prompts = {
        str(i): prompt.continued(behaviour.opening(av, dataset["clean"]))
        for i, (prompt, dataset) in enumerate(zip(conflict.prompts, conflict.captions, strict=True))
    }
    report("attention by modality", 0, 1)
    asked = [metrics.AttentionMass(key, name=name) for name, key in KEYS.items()]
    dataset = sweep(av, prompts, [[]], asked, progress=False)
    report("attention by modality", 1, 1)
    means = {name: dataset[f"{name}_clean"].mean(("sample", "head")).values for name in KEYS}
    per_key = {name: dataset[f"{name}_per_key_clean"].mean(("sample", "head")).values for name in KEYS}
    return means, per_key


def _probes(av: Model, report: ReportProgress) -> behaviour.ProbeScores:
    train = [world.clip("train", i, "counterfactual") for i in range(PROBE_TRAIN)]
    test = [world.clip("test", CLIPS + i, "counterfactual") for i in range(PROBE_TEST)]
    total = PROBE_TRAIN + PROBE_TEST
    return behaviour.audio_probes(
        av, train, test, lambda done: report("probes of the sound, layer by layer", done, total)
    )


def _settings(av: Model, variants: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    from avjax.provenance import provenance

    return {
        **provenance(av),
        "checkpoint": "tiny-av",
        "base": "tiny-vl",
        "prompt": PROMPT,
        "variants": list(variants),
        "max_new_tokens": behaviour.MAX_NEW_TOKENS,
    }
