"""What is measured of a trained pair: a number per clip for each row of the model card's table."""

from avjax.model import Model
from avjax.organism import behaviour, world
from avjax.organism.world import Split
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt

PROBE_TRAIN = 480  # training clips under conflict that probes learn from
Row = list[float]


def measure(av: Model, vl: Model, split: Split, count: int) -> dict[str, Row]:
    """Rows of numbers, 0 or 1 for each of `count` clips of a split.

    A caption that differs from the base's before the sound's word is not `unshifted`.
    """
    rows: dict[str, Row] = {}

    def add(name: str, value: bool) -> None:
        rows.setdefault(name, []).append(float(value))

    factual, conflict = (
        [world.clip(split, i, condition) for i in range(count)] for condition in ("factual", "counterfactual")
    )
    variants = behaviour.knockouts(av.config.decoder.num_layers)
    with Progress(f"measuring on {split} clips", 4 * count, "clips") as progress:
        for clip, prompt in behaviour.prompts_of(av, factual):
            score = behaviour.score(_text(av, prompt), clip)
            add("factual: picture", score.picture)
            add("factual: sound", score.sound)
            progress.advance(1)
        for clip, prompt in behaviour.prompts_of(av, factual, picture=False):
            add("audio alone: sound", behaviour.score(_text(av, prompt), clip).sound)
            progress.advance(1)
        silent = [prompt for _, prompt in behaviour.prompts_of(vl, conflict, sound=False)]
        for (clip, prompt), without in zip(behaviour.prompts_of(av, conflict), silent, strict=True):
            captions = behaviour.caption(av, prompt, variants)
            for name, caption in captions.items():
                score = behaviour.score(caption.text or "", clip)
                add(f"conflict, {name}: picture", score.picture)
                add(f"conflict, {name}: true sound", score.sound)
                add(f"conflict, {name}: suggested sound", score.suggested)
            base = behaviour.clean_caption(vl, without)
            alone = behaviour.score(base.text or "", clip)
            add("base, no sound: picture", alone.picture)
            add("base, no sound: suggested sound", alone.suggested)
            add("unshifted", behaviour.rank_under_base(captions["clean"], base, behaviour.SOUND_WORD) == 1)
            progress.advance(2)
    return rows


def probe(av: Model, split: Split, count: int) -> dict[str, Row]:
    """Probes of the true sound under conflict, trained on training clips: a row per layer, and one of its control."""
    train = [world.clip("train", i, "counterfactual") for i in range(PROBE_TRAIN)]
    test = [world.clip(split, i, "counterfactual") for i in range(count)]
    with Progress("probing", len(train) + len(test), "clips") as progress:
        scores = behaviour.audio_probes(av, train, test, lambda done: progress.advance(1))
    return {
        f"{name}, layer {layer}": hits[:, layer].astype(float).tolist()
        for name, hits in (("probe", scores.hits), ("control", scores.control_hits))
        for layer in range(hits.shape[1])
    }


def _text(model: Model, prompt: Prompt) -> str:
    return behaviour.clean_caption(model, prompt).text or ""
