"""The files of a checkpoint's directory; nothing here imports jax."""

from pathlib import Path

READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # of a Hugging Face directory


def checkpoint_files(directory: Path) -> list[Path]:
    """All that a model reads of its directory."""
    files = [p for pattern in READ for p in directory.glob(pattern)]
    return files + [p for p in (directory / "params").rglob("*") if p.is_file()]  # of a converted one
