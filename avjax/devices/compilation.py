"""Compiled programs kept on disk, so that a second process starts without compiling."""

import os
from pathlib import Path

import jax


def default_cache() -> Path:
    """The user's own cache directory; `XDG_CACHE_HOME` moves it, if absolute."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "avjax" / "compiled"


def cache_compilations(directory: str | Path) -> None:
    """Keeps compiled programs in `directory` and takes them from there; call it before anything is compiled.

    Programs are found again by their code, shapes, jax version and device. Tracing is not kept, so that a second
    process still spends a moment on each program.
    """
    path = Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default jax leaves out what compiles fast, which a sweep has many of.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
