"""What is known of Orbax's format on disk, without importing it."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from avjax.families.registry import abstract_network
from avjax.models.config import ModelConfig, read_json
from avjax.models.parameters import parameter_paths

PARAMS = "params"  # the Orbax part of a converted checkpoint


def check_stored(directory: Path, config: ModelConfig) -> None:
    """Compares what is on disk with what the config describes, before anything is read.

    Orbax reads a chunk that is missing as zeros, and stops at the first parameter that is.

    Raises:
      ValueError: parameters are missing, unknown, misshapen or lack chunks; all of them are named.
    """
    wanted = parameter_paths(abstract_network(config))
    stored = {path.parent.name: read_json(path) for path in sorted(directory.glob("*/.zarray"))}
    problems = [f"{name}: absent" for name in sorted(wanted.keys() - stored.keys())]
    problems += [f"{name}: this architecture has no such parameter" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        shape, chunks = tuple(stored[name]["shape"]), stored[name]["chunks"]
        if shape != wanted[name].shape:
            problems.append(f"{name}: expected shape {list(wanted[name].shape)}, got {list(shape)}")
        counts = (range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True))
        keys = [".".join(map(str, index)) for index in itertools.product(*counts)]
        lost = [key for key in keys if not (directory / name / key).is_file()]
        if lost:
            problems.append(f"{name}: {len(lost)} of {len(keys)} chunks are missing, the first is {lost[0]}")
    if problems:
        raise ValueError(
            f"{directory}: the converted checkpoint is damaged or belongs to another config:\n  "
            + "\n  ".join(problems)
            + "\nConvert it again."
        )


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's log out of the user's terminal; what fails is raised all the same.

    It remarks on formats that we chose on purpose, and prints a traceback for every parallel write beside a failed one.
    """
    loggers = {logging.getLogger("absl"): logging.CRITICAL, logging.getLogger("asyncio"): logging.CRITICAL}
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
