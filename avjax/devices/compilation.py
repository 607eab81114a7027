"""Compiled programs kept on disk, so that a second process starts without compiling."""

from pathlib import Path

import jax

from avjax.devices.disk import PROGRAM_BYTES, trim

PROGRAMS = "*-cache"  # as jax names their files; nothing else in the directory is ever removed


def cache_compilations(directory: str | Path, max_bytes: int = PROGRAM_BYTES) -> None:
    """Keeps compiled programs in `directory` and takes them from there; call it before anything is compiled.

    Programs are recognised by their code, shapes, jax version and device. Tracing is not kept, so that a second
    process still spends a moment on each program. They are code that is run: share the directory only with those whom
    you trust.

    Args:
      max_bytes: of programs when the process starts; beyond, those that were not used for longest are removed.
    """
    path = Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    trim(path, PROGRAMS, max_bytes)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default jax leaves out what compiles fast, which a sweep has many of.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
