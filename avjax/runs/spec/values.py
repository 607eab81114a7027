"""Plain values of a specification: read from YAML or JSON, and overridden by KEY=VALUE."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_values(path: Path) -> dict[str, Any]:
    """The values of a YAML or JSON file.

    Raises:
      ValueError: it holds something else, or a key twice.
    """
    import yaml

    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text(), object_pairs_hook=_pairs)
        else:
            values = yaml.load(path.read_text(), _loader())
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected YAML or JSON, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the values with overrides such as "grid.layers.width=8"; what stands after = is YAML.

    Raises:
      ValueError: an override is no assignment, or names nothing.
    """
    import yaml

    values = copy.deepcopy(dict(values))
    for text in overrides:
        key, value = _assignment(text)
        try:
            _override(values, key, yaml.load(value, _loader()))
        except yaml.YAMLError as error:
            raise ValueError(f"override {text!r}: expected a value as in YAML, got {error}") from error
    return values


def repeated(names: Iterable[Any]) -> list[Any]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _loader() -> Any:
    """YAML's safe loader, but a key that occurs twice is a mistake."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := repeated(keys):
                line = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f"the key {twice[0]!r} twice, in the mapping that starts at line {line}; keep one of them"
                )
            return super().construct_mapping(node, deep)

    numbers = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # of YAML 1.2, such as 1e-3
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", numbers, list("-+.0123456789"))
    return Loader


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which a key that occurs twice is a mistake."""
    if twice := repeated(key for key, _ in pairs):
        raise json.JSONDecodeError(f"the key {twice[0]!r} twice; keep one of them", "", 0)
    return dict(pairs)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise ValueError(f"override {text!r}: expected KEY=VALUE, such as grid.layers.width=8")
    return key, value


def _override(given: Any, key: str, value: Any) -> None:
    """Sets a value by its path; what lies on the way must be there, or be a key that is left out."""
    *parents, last = key.split(".")
    place = given
    for step in parents:
        if isinstance(place, list) and step.isdigit() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict):
            place = place.setdefault(step, {})
        else:
            raise ValueError(f"override {key!r}: expected a key that the specification has, got {step!r}")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"override {key!r}: expected a key that the specification has, got {last!r}")
