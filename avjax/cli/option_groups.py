"""Groups of options: a command takes a dataclass, and its fields become the command's options."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints


def with_option_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with each parameter that is a dataclass spelled out, field by field, in its place.

    Fields are annotated as parameters of commands are; a field may be a group too.
    """
    groups = {name: kind for name, kind in _hints(command).items() if dataclasses.is_dataclass(kind)}
    if not groups:
        return command

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        built = {name: _built(group, values) for name, group in groups.items()}
        names = inspect.signature(command).parameters
        return command(**{name: built[name] if name in built else values[name] for name in names})

    parameters = [option for parameter in _parameters(command) for option in _options(parameter)]
    expanded.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    expanded.__annotations__ = {option.name: option.annotation for option in parameters}
    return expanded


def _hints(owner: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(owner, include_extras=True).items() if name != "return"}


def _parameters(owner: Any) -> list[inspect.Parameter]:
    """Of a command, or the fields of a group; keywords all, so that their order is free."""
    hints = _hints(owner)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in inspect.signature(owner).parameters.values()
    ]


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    if not dataclasses.is_dataclass(parameter.annotation):
        return [parameter]
    return [option for field in _parameters(parameter.annotation) for option in _options(field)]


def _built(group: Any, values: Mapping[str, Any]) -> Any:
    """A group from the values of all options, by name."""
    hints = _hints(group)
    fields = [field.name for field in dataclasses.fields(group)]
    return group(
        **{
            name: _built(hints[name], values) if dataclasses.is_dataclass(hints[name]) else values[name]
            for name in fields
        }
    )
