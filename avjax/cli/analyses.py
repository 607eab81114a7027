"""`avjax run ANALYSIS`: the analyses of `avjax.analysis` on clips of the user's, a line each."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avjax.cli.options import (
    ClipReading,
    Commands,
    DType,
    ModelPath,
    Order,
    Resources,
    Tokens,
    exit_with_message,
    prompt_of,
)

if TYPE_CHECKING:
    import xarray as xr

    from avjax.model import Model
    from avjax.prompts.prompt import Prompt

analyses = Commands(pretty_exceptions_enable=False)

Words = Annotated[str, typer.Option("--prompt", "-p", help="The user's words.")]
Videos = Annotated[list[Path], typer.Option("--video", "-v", help="A video file; may be repeated.")]
Sound = Annotated[str | None, typer.Option("--audio", help="'none' leaves the videos' sound out.")]
Opening = Annotated[
    str, typer.Option(help="Text that starts the answer, before the scored words; the selector 'answer' covers it.")
]
Answer = Annotated[list[str], typer.Option(help="The answer to score; once for all videos, or once for each.")]
LensAnswer = Annotated[
    list[str],
    typer.Option(
        "--answer",
        help="An answer to follow through the layers of every video; may be repeated. With --latent each video's "
        "sound, once for all videos, or once for each.",
    ),
]
Other = Annotated[
    list[str] | None,
    typer.Option(help="Score the answer's logit minus this one's; once for all videos, or once for each."),
]
Keys = Annotated[list[str] | None, typer.Option("--key", help="Tokens that are attended to; may be repeated.")]
Query = Annotated[str, typer.Option(help="Tokens that attend.")]
Caption = Annotated[str | None, typer.Option(help="A caption to measure along; by default the model's own.")]
Out = Annotated[Path | None, typer.Option(help="A netCDF file for the whole dataset.", rich_help_panel="Output")]
Json = Annotated[bool, typer.Option("--json", help="Print the whole dataset as JSON.", rich_help_panel="Output")]
MODALITIES = ("audio", "video", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every analysis takes: a model and clips, a prompt for each."""

    model: ModelPath
    prompt: Words
    video: Videos
    audio: Sound = None
    dtype: DType = "float32"
    order: Order = "media-first"
    reading: ClipReading
    resources: Resources

    def load(self, opening: str = "") -> tuple["Model", dict[str, "Prompt"]]:
        """The model, and a prompt for each video."""
        import avjax

        model = avjax.load(self.model, dtype=self.dtype)
        return model, self.prompts(model, opening=opening)

    def prompts(
        self, model: "Model", *, videos: Sequence[Path] | None = None, audio: str | None = None, **words: Any
    ) -> dict[str, "Prompt"]:
        """By the name of each video's file; `videos` and `audio` in place of those that were given."""
        from avjax.edits.edits import numbered

        paths = self.video if videos is None else videos
        sound = self.audio if audio is None else audio
        return {
            name: prompt_of(model, self.prompt, self.reading, video=path, audio=sound, order=self.order, **words)
            for name, path in zip(numbered([path.name for path in paths]), paths, strict=True)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What becomes of an analysis's dataset."""

    out: Out = None
    as_json: Json = False

    def show(self, dataset: "xr.Dataset", names: Sequence[str], over: Sequence[str] = ()) -> None:
        """Prints means of some variables, or the whole dataset as JSON; writes it where asked."""
        if self.out is not None:
            dataset.to_netcdf(self.out, engine="h5netcdf")
        if self.as_json:
            typer.echo(json.dumps(_plain(dataset.to_dict()), default=str, allow_nan=False))
        else:
            print_means(dataset, names, over)


@analyses.command()
def attention(
    inputs: Inputs, output: Output, key: Keys = None, query: Query = "generated",
    caption: Caption = None, max_new_tokens: Tokens = 50,
    sinks: Annotated[bool, typer.Option("--sinks", help="Sink tokens and their modality dominance instead.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="With --sinks: the |RMSNorm| that makes a sink; the default depends on width.")
    ] = None,
) -> None:  # fmt: skip
    """Attention mass from the caption to each modality, by layer; or sink tokens and who attends to them."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import attention_mass, find_sinks

        loaded, prompts = inputs.load()
        if sinks:
            dataset = find_sinks(loaded, prompts, threshold)
            reached = float(dataset["dimension_peak"].max())
            typer.echo(
                f"{int((dataset['sink_layers'] > 0).sum())} sink tokens in {len(prompts)} clips; outlier dimensions "
                f"{dataset['dimension'].values[dataset['outlier'].values].tolist()}; largest |RMSNorm| {reached:.1f}, "
                f"threshold {dataset.attrs['threshold']:.1f}",
                err=True,
            )
            output.show(dataset, ("sink_layers", "mds"))
            return
        dataset = attention_mass(
            loaded, prompts, key or MODALITIES, query, captions=caption, max_new_tokens=max_new_tokens
        )
        output.show(dataset, ("mass", "per_key", "value_weighted"), over=("head",))


@analyses.command()
def lens(
    inputs: Inputs, output: Output, answer: LensAnswer,
    where: Annotated[str, typer.Option(help="Tokens whose activations are read.")] = "audio",
    site: Annotated[str, typer.Option(help="Site at which they are read.")] = "resid_post",
    norm: Annotated[bool, typer.Option(help="Apply the final norm first; the published code does not.")] = True,
    k: Annotated[int, typer.Option(min=1, help="Likeliest tokens to keep at each position.")] = 5,
    tuned: Annotated[
        list[Path] | None, typer.Option(help="A video that a tuned lens is trained on first; may be repeated.")
    ] = None,
    latent: Annotated[
        bool, typer.Option("--latent", help="Latent audio understanding instead.")
    ] = False,
    caption: Caption = None,
) -> None:  # fmt: skip
    """The logit lens: what each layer's activations say of given answers, by layer."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import latent_audio_understanding, logit_lens, train_tuned_lens

        loaded, prompts = inputs.load()
        trained = None
        if tuned:
            known = inputs.prompts(loaded, videos=tuned)
            trained = train_tuned_lens(loaded, known, prompts, where, site, captions=caption, held_out_captions=caption)
            if not output.as_json:
                print_means(trained.report, ("kl_before", "kl_after"))
        if latent:
            if caption is not None:
                raise ValueError("--caption: --latent reads only the prompt's own tokens; leave --caption out")
            events, reading = _each(prompts, answer, "--answer"), {"where": where, "site": site, "norm": norm}
            dataset = latent_audio_understanding(loaded, prompts, events, k=k, lens=trained, **reading)
            output.show(dataset, ("recall", "recall_swapped", "understanding"))
            return
        dataset = logit_lens(
            loaded, prompts, where, site, norm=norm, k=k, answers=answer, captions=caption, lens=trained
        )
        output.show(dataset, ("rank", "log_prob", "entropy"), over=("position",))


@analyses.command()
def knockout(
    inputs: Inputs, output: Output, answer: Answer, other: Other = None, opening: Opening = "",
    key: Keys = None, query: Query = "answer",
    width: Annotated[int, typer.Option(min=1, help="Layers in a window.")] = 4,
    heads: Annotated[bool, typer.Option("--heads", help="Cut one head at a time instead of windows.")] = False,
    pathways: Annotated[bool, typer.Option("--pathways", help="Cut all but one key group at a time instead.")] = False,
) -> None:  # fmt: skip
    """Attention knockout over windows of layers, head by head, or of everything but one pathway."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import edge_sufficiency, knockout_heads, knockout_windows

        if heads and pathways:
            raise ValueError("knockout: expected --heads or --pathways, got both; run one after the other")
        loaded, prompts = inputs.load(opening)
        metrics, name = _metrics(prompts, answer, other)
        if pathways:
            dataset = edge_sufficiency(loaded, prompts, metrics, query=query, pathways=key or MODALITIES)
        elif heads:
            dataset = knockout_heads(loaded, prompts, metrics, query=query, keys=key or MODALITIES[:2])
        else:
            dataset = knockout_windows(loaded, prompts, metrics, query=query, keys=key or MODALITIES[:2], width=width)
        output.show(dataset, (name, f"{name}_clean", f"{name}_random"), over=("draw",))


@analyses.command()
def trace(
    inputs: Inputs, output: Output, answer: Answer, other: Other = None, opening: Opening = "",
    decides: Annotated[
        bool, typer.Option("--decides", help="Find the one modality that decides each video's answer instead.")
    ] = False,
    corrupt: Annotated[
        str,
        typer.Option(
            help="What is done to a clip: mute, blank, noise:DECIBELS (signal to noise), shift:SECONDS, swap:FILE (the "
            "sound) or swap-video:FILE."
        ),
    ] = "mute",
    group: Annotated[list[str] | None, typer.Option(help="Tokens to restore; may be repeated.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site at which to restore them; may be repeated.")] = None,
    width: Annotated[int, typer.Option(min=1, help="Layers in a window.")] = 1,
    min_gap: Annotated[
        float | None,
        typer.Option(
            help="Smallest difference between the clean and the corrupt run, in nats, that gives a recovery; by "
            "default 8 times their rounding."
        ),
    ] = None,
) -> None:  # fmt: skip
    """Causal tracing: clean activations restored in a corrupt run.

    --answer is what the clean run would say next, --other what the corrupt one would.
    """
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import deciding_modality
        from avjax.analysis import trace as traced

        corruption = _corruption(corrupt)
        loaded, clean = inputs.load(opening)
        if decides:
            dataset = deciding_modality(loaded, clean, _each(clean, answer, "--answer"))
            output.show(dataset, ("lost",))
            if not output.as_json:
                typer.echo(dataset["by"].to_pandas().to_string())
            return
        if not other:
            raise ValueError(
                "--other: expected what the corrupt run would say, got nothing; give it, or pass --decides"
            )
        broken = inputs.prompts(loaded, opening=opening, corrupt=corruption)
        answers, others = _each(clean, answer, "--answer"), _each(clean, other, "--other")
        dataset = traced(
            loaded, clean, broken, answers, others, groups=group or (*MODALITIES, "last"),
            sites=site or ("resid_post",), width=width, min_gap=min_gap,
        )  # fmt: skip
        output.show(dataset, ("ie_clean", "ie_corrupt", "recovery"))
        if not output.as_json:
            typer.echo(f"recovery is missing for {dataset.attrs['recovery_missing']}, whose runs differ too little;")
            typer.echo(f"the smallest difference that counts is {dataset.attrs['min_gap']}")


@analyses.command()
def scale(
    inputs: Inputs, output: Output, answer: Answer, other: Other = None, opening: Opening = "",
    what: Annotated[str, typer.Option(help="What to scale: attention, value or embed.")] = "attention",
    factor: Annotated[list[float] | None, typer.Option(help="A factor; 1 changes nothing; may be repeated.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Layers in a window; by default all at once.")] = None,
) -> None:  # fmt: skip
    """Dose-response curves of each modality: its embeddings, values or attention times a factor."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import scale_modalities
        from avjax.analysis.scaling import FACTORS

        loaded, prompts = inputs.load(opening)
        metrics, name = _metrics(prompts, answer, other)
        options: dict[str, Any] = {"what": what, "factors": factor or FACTORS, "width": width}
        output.show(scale_modalities(loaded, prompts, metrics, **options), (name, f"{name}_clean"))


@analyses.command()
def attribute(
    inputs: Inputs, output: Output, answer: Answer, other: Other = None, opening: Opening = "",
    key: Keys = None, query: Query = "answer",
    top: Annotated[int, typer.Option(min=1, help="Strongest candidates of each kind to verify exactly.")] = 20,
) -> None:  # fmt: skip
    """Attribution patching: every edge and scale by its gradient, and the strongest exactly."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import attribute as attributed

        loaded, prompts = inputs.load(opening)
        metrics, _ = _metrics(prompts, answer, other)
        dataset = attributed(loaded, prompts, metrics, queries=query, keys=key, top=top)
        output.show(dataset, ())
        if not output.as_json:
            means = dataset[["estimate", "exact"]].mean("sample").to_dataframe()[["estimate", "exact"]]
            typer.echo(means.round(4).to_string())


@analyses.command()
def gates(
    inputs: Inputs, output: Output, answer: Answer, other: Other = None, opening: Opening = "",
    key: Annotated[str, typer.Option(help="Tokens that are attended to.")] = "video", query: Query = "answer",
    per: Annotated[str, typer.Option(help="head or layer.")] = "head",
    penalty: Annotated[str, typer.Option(help="l0 or l1.")] = "l0",
    strength: Annotated[float, typer.Option(help="Penalty per cut, in the metric's units.")] = 0.1,
    steps: Annotated[int, typer.Option(min=1)] = 200,
    held_out: Annotated[float, typer.Option(help="The share of videos to measure on.")] = 0.5,
    seed: int = 0,
) -> None:  # fmt: skip
    """Gate learning: the few heads or layers whose cut raises the answer most, on videos held out."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import learn_gates

        loaded, prompts = inputs.load(opening)
        metrics, _ = _metrics(prompts, answer, other)
        options: dict[str, Any] = {"per": per, "penalty": penalty, "strength": strength, "steps": steps, "seed": seed}
        dataset = learn_gates(loaded, prompts, metrics, query=query, key=key, held_out=held_out, **options)
        output.show(dataset, ("cut", "change"))


@analyses.command()
def probe(
    inputs: Inputs, output: Output,
    label: Annotated[list[str], typer.Option(help="The class of each video, in their order.")],
    site: Annotated[list[str] | None, typer.Option(help="Site whose activations are read; may be repeated.")] = None,
    where: Annotated[str, typer.Option(help="Tokens that are pooled.")] = "audio",
    seeds: Annotated[int, typer.Option(min=1, help="Number of random splits into training and test videos.")] = 5,
    pooling: Annotated[list[str] | None, typer.Option(help="mean, last or max; may be repeated.")] = None,
    strength: Annotated[list[float] | None, typer.Option(help="Penalty strength; may be repeated.")] = None,
    validation: Annotated[float, typer.Option(help="Share of videos held out to choose the strength.")] = 0.0,
    control: Annotated[
        list[str] | None,
        typer.Option(help="For the control task: each video's type, such as what is seen and heard."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="A directory for the probes.")] = None,
) -> None:  # fmt: skip
    """Linear probes of the videos' labels, by site, pooling and layer."""
    with exit_with_message(), inputs.resources.applied():
        from avjax.analysis import probe_features, train_probes
        from avjax.analysis.probes.features import POOLINGS

        loaded, prompts = inputs.load()
        labels = _each(prompts, label, "--label")
        features = probe_features(loaded, prompts, site or ("resid_post",), where, pooling or POOLINGS)
        options: dict[str, Any] = {"seeds": tuple(range(seeds)), "validation_fraction": validation}
        options |= {"strengths": strength} if strength else {}
        options |= {"control": _each(prompts, control, "--control")} if control else {}
        probes = train_probes(features, labels, **options)
        if save is not None:
            probes.save(save)
        shown = ("accuracy", "balanced_accuracy", "auroc", "control_accuracy", "selectivity")
        output.show(probes.results, shown, over=("seed",))


@analyses.command()
def compare(
    inputs: Inputs, output: Output,
    base: Annotated[str, typer.Option(help="Base checkpoint with the same vocabulary; run without sound.")],
    word: Annotated[list[str] | None, typer.Option(help="A word of the class 'named'; may be repeated.")] = None,
    caption: Caption = None, max_new_tokens: Tokens = 50,
) -> None:  # fmt: skip
    """What a base without sound would say in place of each token of the captions."""
    with exit_with_message(), inputs.resources.applied():
        import avjax
        from avjax.analysis import compare_with_base, shift_shares

        loaded, prompts = inputs.load()
        other = avjax.load(base, dtype=inputs.dtype)
        dataset = compare_with_base(
            loaded, other, prompts, inputs.prompts(other, audio="none"), captions=caption,
            classes={"named": word} if word else None, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        typer.echo(f"caveat: {dataset.attrs['caveat']}", err=True)
        output.show(dataset, ("kl_model_base", "kl_base_model", "rank"))
        if not output.as_json:
            shares = shift_shares(dataset)
            typer.echo(f"share of tokens, of {dataset.sizes['sample']} captions")
            typer.echo(shares["share"].to_pandas().assign(tokens=shares["tokens"].to_pandas()).round(4).to_string())


def _metrics(prompts: Mapping[str, Any], answer: list[str], other: list[str] | None) -> tuple[dict[str, Any], str]:
    """A logit difference by sample where there is something to differ from, else a log-probability; and its name."""
    from avjax.metrics import LogitDiff, LogProb

    answers = _each(prompts, answer, "--answer")
    if not other:
        return {name: LogProb(answers[name]) for name in prompts}, LogProb.name
    others = _each(prompts, other, "--other")
    return {name: LogitDiff(answers[name], others[name]) for name in prompts}, LogitDiff.name


def _each(prompts: Mapping[str, Any], words: Sequence[str], option: str) -> dict[str, str]:
    """A word for each sample.

    Raises:
      ValueError: there is neither one nor as many as there are samples.
    """
    if len(words) not in (1, len(prompts)):
        raise ValueError(
            f"{option}: expected it once, or once for each of {len(prompts)} videos, got {len(words)} times"
        )
    return dict(zip(prompts, list(words) * (len(prompts) if len(words) == 1 else 1), strict=True))


def print_means(dataset: "xr.Dataset", names: Sequence[str], over: Sequence[str] = ()) -> None:
    """Means over samples, and over other dimensions, of those variables that the dataset has."""
    from avjax.analysis.means import floor_line, mean_table
    from avjax.statistics import below_floor

    for name in (name for name in names if name in dataset):
        dims, units = ("sample", *over), str(dataset[name].attrs.get("units", ""))
        means = dataset[name].mean([d for d in dims if d in dataset[name].dims])
        below = below_floor(dataset, name, dims)
        typer.echo(f"{name} ({units}), mean over {_clips(dataset, name)} clips")
        typer.echo(mean_table(means, below))
        if line := floor_line(below, dataset.get(f"{name}_floor"), units):
            typer.echo(line)


def _clips(dataset: "xr.Dataset", name: str) -> str:
    """How many clips a mean is over: those in which the variable is missing everywhere are left out of it."""
    count, values = dataset.sizes.get("sample", 1), dataset[name]
    if "sample" not in values.dims:
        return str(count)
    missing = int(values.isnull().all([d for d in values.dims if d != "sample"]).sum())
    return f"{count - missing} of {count}" if missing else str(count)


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is missing is null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _corruption(text: str) -> Any:
    """A corruption from its name and what it needs, as `noise:-5`."""
    import avjax

    corruptions = {
        "mute": lambda _: avjax.MuteAudio(),
        "blank": lambda _: avjax.BlankVideo(),
        "noise": lambda value: avjax.NoiseAudio(float(value)),
        "shift": lambda value: avjax.ShiftAudio(float(value)),
        "swap": lambda value: avjax.SwapAudio(value),
        "swap-video": lambda value: avjax.SwapVideo(value),
    }
    name, _, value = text.partition(":")
    if name not in corruptions or bool(value) == (name in ("mute", "blank")):
        raise ValueError(
            "--corrupt: expected mute, blank, noise:DECIBELS, shift:SECONDS, swap:FILE or swap-video:FILE, got "
            f"{text!r}"
        )
    return corruptions[name](value)
