"""Options that commands share, and what is made of them."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from avjax.cli.option_groups import with_option_groups
from avjax.prompts.wording import as_options

if TYPE_CHECKING:
    from avjax.media.isolated import IsolatedReader
    from avjax.model import Model
    from avjax.prompts.prompt import Prompt

READING, RESOURCES = "How clips are read", "Resources"  # panels of `--help`
MODEL_HELP = "tiny-av, tiny-vl, a converted or Hugging Face directory, or a hub id."
ModelPath = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
DType = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Fps = Annotated[
    float | None, typer.Option(rich_help_panel=READING, help="Video frames per second that the model looks at.")
]
MinPixels = Annotated[int | None, typer.Option(rich_help_panel=READING, help="Smallest resized frame, in pixels.")]
MaxPixels = Annotated[int | None, typer.Option(rich_help_panel=READING, help="Largest resized frame, in pixels.")]
Sync = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=READING,
        help="How a video's sound is placed: 'clock', by the file's timestamps, or 'published', without gaps.",
    ),
]
Fidelity = Annotated[
    str | None,
    typer.Option(
        "--media",
        rich_help_panel=READING,
        help="How files are read: 'avjax', as players show them, or 'qwen-omni-utils', as that package does.",
    ),
]
Video = Annotated[Path | None, typer.Option("--video", "-v", help="A video file.")]
Audio = Annotated[
    str | None,
    typer.Option(help="A sound file, 'from_video' or 'none'. By default the video's own, if model and file have it."),
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
Order = Annotated[
    str, typer.Option(help="media-first, or text-first: the words before the clip, as the published script has them.")
]
Positions = Annotated[
    str, typer.Option(help="trained, or transformers-5.3: numbered as transformers 5.22 to 5.24 do for Qwen2.5-VL.")
]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens in a caption.")]
Memory = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=RESOURCES,
        help="Memory for sweeps, captions, attention and gates, in bytes, on top of the parameters; by default half of "
        "what is free.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=RESOURCES,
        help="Directory to cache compiled programs and encoder outputs in; by default $AVJAX_CACHE, or avjax in the "
        "user's cache directory. Programs are code: use only a directory that you trust.",
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", rich_help_panel=RESOURCES, help="Neither read nor write caches on disk.")
]


def refuse_repeated(command: Any, ctx: Any, args: list[str]) -> None:
    """Refuses an option that takes one value and is given twice; click would keep the last value alone."""
    _, _, given = command.make_parser(ctx).parse_args(args=list(args))
    for option, count in Counter(given).items():
        several = getattr(option, "multiple", True) or getattr(option, "is_flag", False)  # arguments have neither
        if count > 1 and not several:
            name = max(option.opts, key=len)
            raise typer.BadParameter(
                f"{name}: expected once, got {count} times; give one value, or run the command once for each", ctx
            )


class OnceCommand(TyperCommand):
    """A command whose options that take one value are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of such commands, which may take options in groups."""

    def command(self, *args: Any, **settings: Any) -> Callable[..., Any]:
        register = super().command(*args, **{"cls": OnceCommand, **settings})
        return lambda command: register(with_option_groups(command))

    def callback(self, *args: Any, **settings: Any) -> Callable[..., Any]:
        register = super().callback(*args, **settings)
        return lambda command: register(with_option_groups(command))


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Turns the errors that avjax raises on purpose into one message and exit status 2."""
    try:
        yield
    except (ValueError, OverflowError, ImportError, OSError) as error:
        typer.secho(f"error: {as_options(str(error))}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipReading:
    """How clips are sampled, resized and read."""

    fps: Fps = None
    min_pixels: MinPixels = None
    max_pixels: MaxPixels = None
    sync: Sync = None
    media: Fidelity = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What a command may use of the machine."""

    memory_bytes: Memory = None
    cache_dir: Cache = None
    no_cache: NoCache = False

    def cache_directory(self) -> Path | None:
        """Where caches lie, if they are on and the directory can be used."""
        from avjax.caching import usable_directory

        if self.no_cache:
            return None
        with contextlib.suppress(OSError):  # `avjax.cache` says why
            return usable_directory(self.cache_dir)
        return None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Bounds the memory inside the block, and turns the caches on."""
        import avjax
        from avjax.devices.memory import memory_limit

        if not self.no_cache:
            avjax.cache(self.cache_dir)
        elif self.cache_dir is not None:
            raise ValueError("--no-cache: expected no --cache-dir beside it, got both; give one of them")
        with memory_limit(self.memory_bytes):
            yield


def prompt_of(
    model: "Model",
    text: str,
    reading: ClipReading,
    *,
    video: Path | None,
    audio: str | None,
    image: list[Path] | None = None,
    **words: Any,
) -> "Prompt":
    """A prompt from what the command line gives; `words` are more of `Model.prompt`."""
    files = {"video": video, "audio": "auto" if audio is None else audio, "image": image}
    with isolated_reader() as reader:
        return model.with_reader(reader).prompt(text, **files, **words, **vars(reading))


def isolated_reader() -> "IsolatedReader":
    """Decodes in a process of its own: a decoder that crashes or never ends leaves a message, not a dead command."""
    from avjax.media.isolated import IsolatedReader

    return IsolatedReader(remedy="re-encode or cut the file")
