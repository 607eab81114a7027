"""Compiled programs and encoder outputs of earlier processes, in one directory of the user's.

It is `AVJAX_CACHE`, or `avjax` in the user's cache directory. A directory that cannot be used costs time, not results:
one line says so, and everything goes on without it.
"""

import errno
import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avjax.devices.disk import ENCODING_BYTES, PROGRAM_BYTES, RECEIPT_BYTES, prepare, trim

log = logging.getLogger(__name__)
VARIABLE, OFF = "AVJAX_CACHE", "off"
ENCODED = "encoded"
# What is cached: its name, a pattern of its files, and the most bytes of it. Nothing else is ever removed.
CACHED = (
    ("compiled programs", "compiled-*/**/*", PROGRAM_BYTES),
    ("encoder outputs", f"{ENCODED}/*.encoded", ENCODING_BYTES),
    ("receipts of finished runs", "finished/*.json", RECEIPT_BYTES),
)


def cache(directory: str | Path | None = None) -> Path | None:
    """Keeps compiled programs and encoder outputs on disk, and takes them from there, from now on in this process.

    Call it before anything is compiled. The directory is bounded in bytes: what was not used for longest goes first.

    Args:
      directory: made when it is not there, for its user alone. By default the environment's `AVJAX_CACHE`, or else
        `avjax` in the user's cache directory; "off" there keeps nothing.

    Returns:
      The directory; None when nothing is kept, which is logged unless it was asked for.
    """
    import jax

    from avjax.devices.compilation import cache_compilations
    from avjax.models.encoder_cache import cache_encodings

    try:
        chosen = usable_directory(directory)
        if chosen is None:
            return None
        programs, encoded = (_subdirectory(chosen, name) for name in (programs_name(), ENCODED))
    except OSError as error:
        place = getattr(error, "filename", None) or directory or "caches"
        log.warning("%s: nothing is cached there (%s)", place, getattr(error, "strerror", None) or error)
        return None
    for _, pattern, most in CACHED:
        trim(chosen, pattern, most)
    if directory is not None or jax.config.values["jax_compilation_cache_dir"] is None:  # the user's own choice stays
        cache_compilations(programs)
    cache_encodings(encoded)
    _say_once(chosen)
    return chosen


def usable_directory(directory: str | Path | None = None) -> Path | None:
    """The directory of the caches, made where it is not there; None where the environment turns them off.

    Raises:
      OSError: it cannot be used; or a user's home is not known.
    """
    chosen = default_directory() if directory is None else expanded(directory)
    if chosen is not None:
        prepare(chosen)
    return chosen


def _subdirectory(directory: Path, name: str) -> Path:
    prepare(directory / name)
    return directory / name


def default_directory() -> Path | None:
    """Where caches lie unless a directory is given; None when the environment turns them off.

    Raises:
      OSError: the user has no home.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return None if given.lower() == OFF else expanded(given)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else expanded("~/.cache")) / "avjax"


def expanded(directory: str | Path) -> Path:
    """With the home that "~" stands for.

    Raises:
      OSError: it is not known.
    """
    try:
        return Path(directory).expanduser()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "whose home it is is not known", str(directory)) from error


def programs_name() -> str:
    """Programs for a CPU use all that it can do, and crash on an older one that shares the directory."""
    return f"compiled-{hashlib.blake2b(_processor().encode(), digest_size=4).hexdigest()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"


def _say_once(directory: Path) -> None:
    """jax warns of every program that it cannot read or keep; the first such warning says what there is to know."""
    show: Callable[..., Any] = warnings.showwarning
    if getattr(show, "says_once", False):
        return
    warned = []

    def shown(message: Any, *rest: Any, **more: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, *rest, **more)
        elif not warned:
            warned.append(message)
            log.warning("%s: some programs there cannot be used and are compiled again (%s)", directory, message)

    shown.says_once = True  # pyright: ignore[reportFunctionMemberAccess]
    warnings.showwarning = shown
