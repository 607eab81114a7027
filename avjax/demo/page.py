"""The demo's page: one HTML file that holds its figures."""

import base64
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

    columns, rows = caption_table(findings)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=about,
        claims=claims,
        columns=columns,
        rows=rows,
        settings=findings.settings,
        figures={title: base64.b64encode(png.read_bytes()).decode() for title, png in figures.items()},
    )
    path.write_text(text + "\n", encoding="utf-8")


def caption_table(findings: Findings) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Column names, and by condition a row per clip: its truth, its caption, and the captions under the chief edits."""
    deep, early = deep_and_early(findings)
    shown = {"clean": "caption", early: f"{early} cut", deep: f"{deep} cut", "answer->audio": "answer->audio cut"}
    known = findings.probes is not None
    texts = {(c.clip, c.variant): c.text for c in findings.captions}
    rows: dict[str, list[list[str]]] = {}
    for c in findings.captions:
        if c.variant == "clean":
            truth = [c.seen or "", c.heard or ""] if known else [c.clip]
            rows.setdefault(c.condition, []).append([*truth, *(texts.get((c.clip, v), "") for v in shown)])
    return [*(("seen", "heard") if known else ("clip",)), *shown.values()], rows
