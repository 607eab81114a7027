"""The demo's page: one HTML file that holds its figures."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from avjax.demo.claims import Claim, deep_and_early
from avjax.demo.findings import Findings

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(
    findings: Findings, claims: Sequence[Claim], figures: Mapping[str, Path], about: str, path: Path
) -> None:
    """Writes the page; it opens anywhere, without a network."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=about,
        claims=claims,
        tables=[caption_table(findings, condition) for condition in findings.conditions],
        clips=sorted(clip.stem for clip in (path.parent / "clips").glob("*.mp4")),
        settings=findings.settings,
        figures={title: base64.b64encode(png.read_bytes()).decode() for title, png in figures.items()},
    )
    path.write_text(text + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class CaptionTable:
    """The captions of one condition.

    Attributes:
      columns: their names; a variant that was not run in this condition has none.
      rows: a clip each, whose name is not among the columns: its truth, its caption, and captions under edits.
      clips: the rows' clips.
    """

    condition: str
    columns: list[str]
    rows: list[list[str]]
    clips: list[str]


def caption_table(findings: Findings, condition: str) -> CaptionTable:
    """Captions under the chief edits."""
    captions = [c for c in findings.captions if c.condition == condition]
    deep, early = deep_and_early(findings)
    texts = {(c.clip, c.variant): c.text for c in captions}
    ran = {c.variant for c in captions}
    variants = [variant for variant in ("clean", early, deep, "answer->audio") if variant in ran]
    known = findings.probes is not None
    clean = [c for c in captions if c.variant == "clean"]
    truths = [[c.seen or "", c.heard or ""] if known else [c.clip] for c in clean]
    return CaptionTable(
        condition=condition,
        columns=[*(("seen", "heard") if known else ("clip",)), *map(variant_name, variants)],
        rows=[[*truth, *(texts[c.clip, v] for v in variants)] for truth, c in zip(truths, clean, strict=True)],
        clips=[c.clip for c in clean],
    )


def variant_name(variant: str) -> str:
    """`video cut in 4:8` for `answer->video@4:8`."""
    if variant == "clean":
        return "caption"
    key, _, layers = variant.removeprefix("answer->").partition("@")
    return f"{key} cut" + (f" in {layers}" if layers else "")
