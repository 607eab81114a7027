"""Advice in the words of the interface that was used: messages are written for Python, as `pass audio=None`."""

import re

# Arguments of `model.prompt` and `avjax.generate` that are options of the command line and keys of a specification.
_ARGUMENTS = "audio video image system order positions opening compat media sync fps min_pixels max_pixels".split()
_IN_MEDIA = ("media", "sync", "fps", "min_pixels", "max_pixels")
# A word of the message, no part of a file's name: nothing but space or punctuation before and after it.
_VALUE = r"""None|'[^']*'|"[^"]*"|[\w+-]+(?:\.\d+)?"""
_MENTION = re.compile(rf"(?<![\w/.=-])({'|'.join(_ARGUMENTS)})=({_VALUE})?(?![\w/=]|\.\w)")


def as_options(message: str) -> str:
    """For the command line: `audio=None` is `--audio none`, `max_pixels=` is `--max-pixels`."""

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), _value(match[2])
        return f"--{name} {value}" if value else f"--{name}"

    return _MENTION.sub(option, message)


def as_keys(message: str) -> str:
    """For a specification: `audio=None` is `audio: none`, `max_pixels=` is `media.max_pixels`."""

    def key(match: re.Match[str]) -> str:
        name, value = match[1], _value(match[2])
        name = f"media.{name}" if name in _IN_MEDIA else name
        return f"{name}: {value}" if value else name

    return _MENTION.sub(key, message)


def _value(text: str | None) -> str:
    return "none" if text == "None" else (text or "").strip("'\"")
