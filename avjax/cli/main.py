"""The command line. Commands import what they need when they run, so that `avjax --help` is instant."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avjax.cli.analyses import analyses
from avjax.cli.caches import cache
from avjax.cli.options import (
    MODEL_HELP,
    Audio,
    ClipReading,
    Commands,
    DType,
    Image,
    ModelPath,
    Order,
    Positions,
    Resources,
    Rules,
    Video,
    exit_with_message,
    isolated_reader,
    prompt_of,
)
from avjax.cli.plan import plan
from avjax.cli.runs import RunGroup, run_spec, runs, schema

if TYPE_CHECKING:
    from avjax.engine.generate import Generation
    from avjax.model import Model
    from avjax.prompts.prompt import Prompt

app = Commands(
    help="Interventions on audio-visual language models, in JAX.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(analyses, name="run", cls=RunGroup)
app.add_typer(runs, name="runs")
app.command()(schema)
app.command()(plan)
app.command()(cache)
analyses.command("spec", hidden=True)(run_spec)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"avjax {version('avjax')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Interventions on audio-visual language models, in JAX."""


# transformers remarks that torch is missing; avjax never needs it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


@analyses.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The user's words.")] = None,
    video: Video = None,
    audio: Audio = None,
    image: Image = None,
    rule: Rules = None,
    system: Annotated[str | None, typer.Option(help="The system turn; by default the chat template's.")] = None,
    order: Order = "media-first",
    positions: Positions = "trained",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens in a caption; by default 50, or 1024 with --compat published-script."),
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option(
            help="'published': a fully blocked query attends to all keys equally. 'published-script': also the "
            "positions and the token limit of the paper's published script."
        ),
    ] = None,
    allow_noop: Annotated[bool, typer.Option(help="Allow rules that touch nothing.")] = False,
    dtype: DType = "float32",
    reading: ClipReading,
    resources: Resources,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Caption a clip, clean and under each rule, side by side; run an analysis: `avjax run knockout --help`; or run a
    specification: `avjax run spec.yaml`."""
    if context.invoked_subcommand is not None:
        if model is not None or prompt is not None:
            raise typer.BadParameter(
                f"options of an analysis come after its name: run {context.invoked_subcommand} -m ..."
            )
        return
    if model is None or prompt is None:
        raise typer.BadParameter(f"expected --model and --prompt, got no {'--model' if model is None else '--prompt'}")
    with exit_with_message(), resources.applied():
        import avjax
        from avjax.cli.tables import caption_rows, print_captions
        from avjax.edits.rules import parse_rules

        variants = [parse_rules(text) for text in rule or []]  # before anything slow
        loaded = avjax.load(model, dtype=dtype)
        words = {"system": system, "order": order, "positions": positions}
        clip = prompt_of(loaded, prompt, reading, video=video, audio=audio, image=image, **words)
        settings: dict[str, Any] = {"compat": compat, "allow_noop": allow_noop}
        if variants:
            generations = _planned_captions(loaded, clip, variants, max_new_tokens, **settings)
        else:
            generations = avjax.generate_variants(
                loaded, clip, [()], max_new_tokens=max_new_tokens, keep_logits=False, **settings
            )
        names = ["clean", *("; ".join(map(str, edits)) for edits in variants)]
        if as_json:
            shown = {"model": model, "prompt": prompt, "tokens": clip.counts(), "order": clip.order, "compat": compat}
            shown |= {"positions": positions, "media": reading.media or "avjax"}
            shown |= {"variants": caption_rows(names, generations)}
            typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        else:
            print_captions(clip, names, generations)


def _planned_captions(
    model: "Model", prompt: "Prompt", variants: Sequence[Any], max_new_tokens: int | None, **settings: Any
) -> list["Generation"]:
    """Captions, clean and of each variant, after saying what they cost; prepared once for both."""
    from avjax.edits.identities import refuse_identities
    from avjax.engine.generate import decoded, generation_penalty
    from avjax.metrics import Caption
    from avjax.sweeping.cost import cost
    from avjax.sweeping.prepare import prepare

    refuse_identities(variants, settings["allow_noop"])
    sweep = prepare(model, prompt, variants, Caption(max_new_tokens), **settings)
    typer.echo(f"plan: {cost(sweep, calibrate=True)}", err=True)
    (session,), (caption,) = sweep.sessions.values(), sweep.captions
    return decoded(session, caption.limit, generation_penalty(session), "replay")


@app.command()
def demo(
    *,
    clip: Annotated[Path | None, typer.Option(help="A video with sound, in place of clips of the tiny world.")] = None,
    out: Annotated[Path, typer.Option(help="Directory for the page, figures, clips and numbers.")] = Path("avjax-demo"),
    resources: Resources,
) -> None:
    """The paper's main experiments on the built-in tiny-av, in a minute; leaves a page to open."""
    with exit_with_message(), resources.applied():
        from avjax.demo.show import show

        show(clip, out)


@app.command()
def inspect(
    clip: Annotated[Path, typer.Argument(help="A video, sound or image file.")],
    *,
    model: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The user's words.")] = "Describe this.",
    audio: Annotated[
        str | None, typer.Option(help="For a video: a sound file, 'from_video' or 'none'; by default its own.")
    ] = None,
    order: Order = "media-first",
    positions: Positions = "trained",
    reading: ClipReading,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the tokens that a model sees of a clip: spans, counts, seconds and positions."""
    with exit_with_message():
        from avjax.checkpoint.loading import load_processor
        from avjax.cli.tables import print_layout, span_rows
        from avjax.families.token_runs import TOKENS_PER_SECOND
        from avjax.prompts.processor import FROM_VIDEO

        processor = load_processor(model)
        options = processor.options.override(**vars(reading))
        with isolated_reader() as reader:
            kind = reader.media_kind(clip)
            prompted = processor.with_reader(reader).prompt(
                prompt,
                video=clip if kind == "video" else None,
                audio=clip if kind == "audio" else "auto" if audio is None else audio,
                image=clip if kind == "image" else None,
                system=None,
                options=options,
                order=order,  # pyright: ignore[reportArgumentType] - checked there
                positions=positions,  # pyright: ignore[reportArgumentType]
            )
            own_sound = kind == "video" and "audio" in prompted.counts() and audio in (None, FROM_VIDEO, str(clip))
            offset = reader.sound_offset_seconds(clip) if own_sound else 0.0
        if as_json:
            shown = {"clip": str(clip), "tokens": prompted.counts(), "sound_offset_seconds": offset}
            typer.echo(json.dumps({**shown, "spans": span_rows(prompted)}, indent=2))
            return
        print_layout(prompted, str(clip))
        if abs(offset) > 1 / TOKENS_PER_SECOND:
            side = "after" if offset > 0 else "before"
            advice = f"--media {options.media} ignores this offset" if options.as_published else "see --sync"
            typer.echo(f"{clip}: the sound starts {abs(offset):.2f} s {side} the first picture; {advice}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Hugging Face directory or hub id; with --to-hf, a converted one.")],
    target: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    to_hf: Annotated[bool, typer.Option("--to-hf", help="Write Hugging Face safetensors instead.")] = False,
) -> None:
    """Convert a checkpoint from Hugging Face to Orbax, or back, bit for bit."""
    with exit_with_message():
        if to_hf:
            from converters.export import export

            typer.echo(f"{target}: {export(source, target)} tensors")
        else:
            from converters.convert import convert as write

            plan = write(source, target)
            skipped = f", {plan.skipped} tensors of other parts skipped" if plan.skipped else ""
            typer.echo(f"{target}: {len(plan.parameters)} parameters, {plan.nbytes / 1e9:.2f} GB{skipped}")


@app.command()
def verify(
    source: Annotated[str, typer.Argument(help="Hugging Face directory or hub id.")],
    converted: Annotated[
        Path | None, typer.Argument(help="Its converted checkpoint; by default converted in memory.")
    ] = None,
    *,
    resources: Resources,
) -> None:
    """Compare with Hugging Face in float32, per tower, layer and logits. Needs the test extra."""
    with exit_with_message(), resources.applied():
        import avjax
        from avjax.cli.tables import print_differences
        from converters.verify import verify as compare

        avjax.cache_encodings(None)  # what is compared is computed
        if not print_differences(compare(source, converted)):
            raise typer.Exit(1)
