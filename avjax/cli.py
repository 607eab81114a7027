"""The command line. Commands import what they need when they run, so that `avjax --help` is instant."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from avjax.model import Model

app = typer.Typer(
    help="Interventions on audio-visual language models, in JAX.", no_args_is_help=True, pretty_exceptions_enable=False
)

ModelPath = Annotated[
    str, typer.Option("--model", "-m", help="Converted checkpoint, Hugging Face directory, or hub id.")
]
DType = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Fps = Annotated[float | None, typer.Option(help="Video frames per second that the model looks at.")]
MinPixels = Annotated[int | None, typer.Option(help="Smallest resized frame, in pixels.")]
MaxPixels = Annotated[int | None, typer.Option(help="Largest resized frame, in pixels.")]
FROM_VIDEO = "from_video"

# transformers remarks that torch is missing; avjax never needs it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


@contextlib.contextmanager
def _friendly() -> Iterator[None]:
    """Turns the errors that avjax raises on purpose into one message and exit status 2."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError, ImportError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error


@app.command()
def run(
    model: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The user's words.")],
    video: Annotated[Path | None, typer.Option(help="A video file.")] = None,
    audio: Annotated[
        str | None,
        typer.Option(
            help="A sound file, 'from_video' or 'none'. By default the video's own sound, if the model hears."
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            "-r",
            help="An edited variant, such as 'generated,video,18,36' or 'answer->video@18:36#h0,h3'; rules joined "
            "by ';' apply together. May be repeated.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system turn; by default the chat template's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of a caption.")] = 50,
    compat: Annotated[
        str | None, typer.Option(help="'published': a fully blocked query attends to all keys equally.")
    ] = None,
    allow_noop: Annotated[bool, typer.Option(help="Run rules that touch nothing.")] = False,
    dtype: DType = "float32",
    fps: Fps = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Caption a clip, clean and under each rule, side by side."""
    with _friendly():
        import avjax
        from avjax.interventions import parse_rules
        from avjax.report.terminal import print_captions

        rules = [parse_rules(text) for text in rule or []]  # before anything slow
        loaded = avjax.load(model, dtype=dtype)
        made = loaded.prompt(
            prompt,
            video=video,
            audio=_audio(loaded, audio, video),
            image=image,
            system=system,
            fps=fps,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        found = avjax.generate_variants(
            loaded,
            made,
            [(), *rules],
            max_new_tokens=max_new_tokens,
            compat=compat,  # pyright: ignore[reportArgumentType]
            allow_noop=allow_noop,
            keep_logits=False,
        )
        names = ["clean", *("; ".join(map(str, edits)) for edits in rules)]
        if as_json:
            variants = [
                {"rule": None if i == 0 else name, "text": g.text, "tokens": g.tokens.tolist(), **vars(g.touched)}
                for i, (name, g) in enumerate(zip(names, found, strict=True))
            ]
            shown = {"model": model, "prompt": prompt, "tokens": made.counts(), "variants": variants}
            typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        else:
            print_captions(made, names, found)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of a caption.")] = 24,
) -> None:
    """The paper's knockout on a generated clip, with a tiny random checkpoint."""
    with _friendly():
        import tempfile

        import avjax
        from avjax.assets.clip import write_clip
        from avjax.assets.tiny import tiny_model
        from avjax.report.terminal import print_captions

        typer.echo("A tiny Qwen2.5-Omni, 8 layers, random weights: UNTRAINED, so its captions mean nothing.")
        typer.echo("What the demo shows is the whole path: clip -> tokens -> towers -> decoder -> edits -> captions.\n")
        with tempfile.TemporaryDirectory() as directory:
            clip = Path(directory) / "clip.mp4"
            write_clip(clip)
            model = tiny_model(Path(directory), seed=seed)
            prompt = model.prompt("Describe what you see and hear.", video=clip, audio=FROM_VIDEO)
            rules = ["generated->video@4:8", "generated->audio@4:8"]
            found = avjax.generate_variants(
                model, prompt, [(), *rules], max_new_tokens=max_new_tokens, keep_logits=False
            )
            print_captions(prompt, ["clean", *rules], found)


@app.command()
def inspect(
    clip: Annotated[Path, typer.Argument(help="A video, sound or image file.")],
    model: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The user's words.")] = "Describe this.",
    audio: Annotated[
        str | None, typer.Option(help="For a video: a sound file, 'from_video' or 'none'; by default its own sound.")
    ] = None,
    fps: Fps = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the tokens that a model sees of a clip: spans, counts, seconds and positions."""
    with _friendly():
        from avjax.loading import load_processor
        from avjax.media.decode import media_kind
        from avjax.report.terminal import print_layout, span_rows

        processor = load_processor(model)
        kind = media_kind(clip)
        sound = str(clip) if kind == "audio" else _audio(processor, audio, clip) if kind == "video" else None
        made = processor.prompt(
            prompt,
            video=clip if kind == "video" else None,
            audio=sound,
            image=clip if kind == "image" else None,
            system=None,
            options=processor.options.override(fps=fps, min_pixels=min_pixels, max_pixels=max_pixels),
        )
        if as_json:
            typer.echo(json.dumps({"clip": str(clip), "tokens": made.counts(), "spans": span_rows(made)}, indent=2))
        else:
            print_layout(made, str(clip))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Hugging Face directory or hub id; with --to-hf, a converted one.")],
    target: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    to_hf: Annotated[bool, typer.Option("--to-hf", help="Write Hugging Face safetensors instead.")] = False,
) -> None:
    """Convert a checkpoint from Hugging Face to Orbax, or back, bit for bit."""
    with _friendly():
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
        Path | None, typer.Argument(help="Its converted checkpoint; by default made in memory.")
    ] = None,
) -> None:
    """Compare with Hugging Face in float32, per tower, layer and logits. Needs the test extra."""
    with _friendly():
        from avjax.report.terminal import print_differences
        from converters.verify import verify as compare

        if not print_differences(compare(source, converted)):
            raise typer.Exit(1)


def _audio(model: "Model | Any", audio: str | None, video: Path | None) -> str | None:
    """Where the sound comes from when a command line leaves it open."""
    if audio == "none":
        return None
    if audio is None and video is not None and model.config.audio is not None:
        return FROM_VIDEO
    return audio
