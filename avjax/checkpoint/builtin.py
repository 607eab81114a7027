"""The checkpoints that come with avjax, by name."""

from pathlib import Path

BUILT_IN = ("tiny-av", "tiny-vl")
CHECKPOINTS = Path(__file__).parents[1] / "assets" / "checkpoints"


def builtin_directory(name: str | Path) -> Path | None:
    """The Hugging Face directory of a built-in checkpoint; None for other names.

    A built-in name stands for what avjax ships whatever the working directory holds; "./tiny-av" is a directory there.
    """
    return CHECKPOINTS / name if isinstance(name, str) and name in BUILT_IN else None
