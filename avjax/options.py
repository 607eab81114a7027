"""Options that commands share, and what they make of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from avjax.media.isolated import IsolatedReader
    from avjax.model import Model
    from avjax.prompt import Prompt

MODEL_HELP = "tiny-av, tiny-vl, a converted or Hugging Face directory, or a hub id."
ModelPath = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
DType = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Fps = Annotated[float | None, typer.Option(help="Video frames per second that the model looks at.")]
MinPixels = Annotated[int | None, typer.Option(help="Smallest resized frame, in pixels.")]
MaxPixels = Annotated[int | None, typer.Option(help="Largest resized frame, in pixels.")]
Sync = Annotated[
    str | None,
    typer.Option(help="Where a video's sound lies: 'clock', under its picture, or 'published', without gaps."),
]
Fidelity = Annotated[
    str | None,
    typer.Option(
        "--media",
        help="How files are read: 'avjax', as players show them, or 'qwen-omni-utils', as that package does.",
    ),
]
Video = Annotated[Path | None, typer.Option(help="A video file.")]
Audio = Annotated[
    str | None,
    typer.Option(help="A sound file, 'from_video' or 'none'. By default the video's own sound, if the model hears."),
]
Image = Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        "-r",
        help="An edited variant, such as 'generated,video,18,36', 'answer->video@18:36#h0,h3' or 'answer->audio*2'; "
        "rules joined by ';' apply together. May be repeated.",
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="The most tokens of a caption.")]
Memory = Annotated[int | None, typer.Option(help="Bytes beside the parameters; by default half of what is free.")]
Cache = Annotated[Path | None, typer.Option(help="A directory where compiled programs and encoder outputs are kept.")]
FROM_VIDEO = "from_video"


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Turns the errors that avjax raises on purpose into one message and exit status 2."""
    try:
        yield
    except (ValueError, OverflowError, ImportError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error


def prompt_of(
    model: "Model",
    text: str,
    video: Path | None,
    audio: str | None,
    image: list[Path] | None,
    system: str | None,
    fps: float | None,
    min_pixels: int | None,
    max_pixels: int | None,
    corrupt: Any = (),
    opening: str = "",
    sync: str | None = None,
    media: str | None = None,
) -> "Prompt":
    """A prompt from what the command line gives."""
    sound = audio_of(model, audio, video)
    options = {"fps": fps, "min_pixels": min_pixels, "max_pixels": max_pixels, "corrupt": corrupt, "opening": opening}
    options |= {} if sync is None else {"sync": sync}
    options |= {} if media is None else {"media": media}
    with isolated_reader() as reader:
        files = {"video": video, "audio": sound, "image": image}
        return model.with_reader(reader).prompt(text, **files, system=system, **options)


def isolated_reader() -> "IsolatedReader":
    """Decodes in a process of its own: a decoder that crashes or never ends leaves a message, not a dead command."""
    from avjax.media.isolated import IsolatedReader

    return IsolatedReader(remedy="re-encode or cut the file")


def audio_of(model: "Model | Any", audio: str | None, video: Path | None) -> str | None:
    """Where the sound comes from when a command line leaves it open."""
    if audio == "none":
        return None
    if audio is None and video is not None and model.config.audio is not None:
        return FROM_VIDEO
    return audio
