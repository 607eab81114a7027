"""Rotary positions of a decoder, in every spelling of an HF config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from avjax.families.inert_keys import Version
from avjax.families.section import Section

KEYS = ("rope_parameters", "rope_scaling", "rope_theta")
DEFAULT_THETA = 1_000_000.0  # of every version's classes
DEFAULT_SECTION = (16, 24, 24)
PLAIN = {None, "default", "mrope"}  # "mrope" is Qwen2-VL's name for plain angles on three axes


@dataclasses.dataclass(frozen=True)
class Rope:
    """The base of the angles, and how many frequencies follow t, h and w."""

    theta: float
    section: tuple[int, ...]


def read_rope(section: Section, version: Version | None) -> Rope:
    """The rotary positions that a section declares; what is not implemented becomes a problem.

    transformers 5 writes `rope_parameters` with the base inside; before, `rope_scaling` stood beside `rope_theta`.
    """
    section.ignore(KEYS)
    raw = section.raw
    copies = {name: raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name)}
    readings = [_rope(name, value, section, version) for name, value in copies.items()]
    if len(set(readings)) > 1:
        section.problems.append(
            f"{section.path}rope_parameters: expected the value of rope_scaling, {copies['rope_scaling']!r}, got "
            f"{copies['rope_parameters']!r}; remove the wrong one"
        )
    return readings[0] if readings else Rope(float(raw.get("rope_theta") or DEFAULT_THETA), DEFAULT_SECTION)


def _rope(name: str, rope: Any, section: Section, version: Version | None) -> Rope:
    path, problems = section.path, section.problems
    if not isinstance(rope, Mapping):
        problems.append(f"{path}{name}: expected a JSON object, got {rope!r}")
        rope = {}
    rope = {key: value for key, value in rope.items() if value is not None}
    unknown = rope.keys() - {"rope_type", "type", "rope_theta", "mrope_section"}
    if not {rope.get("rope_type"), rope.get("type")} <= PLAIN or unknown:
        problems.append(f"{path}rope_parameters: expected multimodal rotary positions, got {name}={rope!r}")
    inside, beside = rope.get("rope_theta"), section.raw.get("rope_theta")
    theta = inside or beside or DEFAULT_THETA
    if inside and beside and inside != beside:
        # transformers 4 reads the base beside the angles, transformers 5 the one inside.
        if version is None:
            problems.append(
                f"{path}rope_theta: expected the value in {name}, {inside!r}, got {beside!r}; remove the wrong one"
            )
        elif version < (5, 0):
            theta = beside
    return Rope(float(theta), tuple(rope.get("mrope_section") or DEFAULT_SECTION))
