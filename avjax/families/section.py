"""One JSON object of an HF config while it is read: which keys were read, and which are unknown."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

_REQUIRED = object()
QUANTIZATION = ("quantization_config", "compression_config", "quantization")


class Section:
    """A section of an HF config.

    Args:
      raw: the JSON object.
      defaults: what HF's own class has where the object has nothing.
      path: of the section, with a trailing dot, for messages.
      problems: to which everything refused is added.
      inert: keys that no version reads in this section.
    """

    def __init__(
        self, raw: Mapping[str, Any], defaults: Mapping[str, Any], path: str, problems: list[str], inert: Set[str]
    ):
        self.raw, self.defaults, self.path, self.problems = dict(raw), dict(defaults), path, problems
        self.inert, self.seen = inert, set[str]()

    def take(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value under any of several spellings, else HF's default, else `default`."""
        self.seen.update(names)
        present = {name: self.raw[name] for name in names if self.raw.get(name) is not None}
        values = [*present.values()]
        if any(value != values[0] for value in values):
            given = " and ".join(f"{name}={value!r}" for name, value in present.items())
            self.problems.append(f"{self.path}{names[0]}: expected one value, got {given}; remove the wrong one")
        if values:
            return values[0]
        for name in names:
            if self.defaults.get(name) is not None:
                return self.defaults[name]
        if default is _REQUIRED:
            self.problems.append(f"{self.path}{names[0]}: expected a value, got none")
            return None
        return default

    def expect(self, name: str, *supported: Any) -> None:
        """Records a problem unless the key holds a value that the models implement."""
        value = self.take(name, default=supported[0])
        if value not in supported:
            wanted = " or ".join(map(repr, supported))
            self.problems.append(f"{self.path}{name}: expected {wanted}, got {value!r}")

    def section(self, name: str, defaults: Mapping[str, Any], inert: Set[str]) -> "Section":
        """The section under a key; empty where there is none."""
        self.seen.add(name)
        raw = self.raw.get(name) or {}
        if not isinstance(raw, Mapping):
            self.problems.append(f"{self.path}{name}: expected a JSON object, got {raw!r}")
            raw = {}
        return Section(raw, defaults, f"{self.path}{name}.", self.problems, inert)

    def ignore(self, names: Iterable[str]) -> None:
        """Leaves keys unread that another section decides."""
        self.seen.update(names)

    def finish(self) -> None:
        """Refuses every key that was not read, is not inert, and does not hold HF's default."""
        for key, value in self.raw.items():
            if key in QUANTIZATION and value:
                self.problems.append(f"{self.path}{key}: {quantization_text(value)}")
            if key in self.seen or key in self.inert or key in QUANTIZATION or value is None:
                continue
            if key in self.defaults and self.defaults[key] == value:
                continue
            self.problems.append(f"{self.path}{key}: unknown key with the non-default value {value!r}")


def quantization_text(settings: Any) -> str:
    """How a config's own quantisation settings are named in a refusal."""
    settings = settings if isinstance(settings, Mapping) else {}
    method = settings.get("quant_method") or settings.get("quantization_type") or settings.get("format") or "unnamed"
    bits = next((settings[key] for key in ("bits", "w_bit", "num_bits") if settings.get(key)), None)
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        bits = 4
    elif settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        bits = 8
    return f"expected weights in full precision, got quantised ones ({method}{f', {bits} bits' if bits else ''})"
