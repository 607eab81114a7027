"""Tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from avjax.engine.generate import Generation
from avjax.prompts.prompt import Prompt

if TYPE_CHECKING:
    from avjax.sweeping.cost import Plan
    from converters.verify import Difference

COLUMN = 36  # characters that a caption's column wants


def print_captions(
    prompt: Prompt, names: Sequence[str], generations: Sequence[Generation], console: Console | None = None
) -> None:
    """The clean caption beside each edited one; tables repeat the clean column when the window is narrow."""
    console = console or Console()
    console.print(f"prompt: {_counts(prompt)}", highlight=False)
    clean, *edited = zip(names, generations, strict=True)
    per_table = max(1, console.width // COLUMN - 1)
    for start in range(0, max(1, len(edited)), per_table):
        table = Table(show_lines=True, expand=True)
        columns = [clean, *edited[start : start + per_table]]
        for name, _ in columns:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*(Text(_caption(g)) for _, g in columns))
        table.add_row(*(Text(_reach(name, g)) for name, g in columns))
        console.print(table)


def caption_rows(names: Sequence[str], generations: Sequence[Generation]) -> list[dict[str, Any]]:
    """Captions as plain data; the first is the clean one, whose rule is null."""
    return [
        {"rule": None if i == 0 else name, "text": g.text, "tokens": g.tokens.tolist(), **vars(g.touched)}
        for i, (name, g) in enumerate(zip(names, generations, strict=True))
    ]


def print_plan(plan: "Plan", console: Console | None = None) -> None:
    """What a sweep costs, beside one forward pass per cell."""
    console = console or Console()
    table = Table(title=Text(f"{plan.cells:,} cells x {plan.samples:,} samples"), title_justify="left")
    for name in ("", "one pass per cell", "avjax", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    ratio = plan.naive_forwards / plan.forwards
    table.add_row("full passes", f"{plan.naive_forwards:,}", f"{plan.forwards:,}", f"{ratio:,.0f}x")
    table.add_row("operations", f"{plan.naive_flops:.2e}", f"{plan.flops:.2e}", f"{plan.speedup:,.1f}x")
    table.add_row(
        "bytes read", f"{plan.naive_bytes:.2e}", f"{plan.bytes:.2e}", f"{plan.naive_bytes / plan.bytes:,.1f}x"
    )
    console.print(table)
    console.print(str(plan), highlight=False)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], console: Console | None = None) -> None:
    """Plain values as a table; numbers to the right."""
    table = Table()
    for column in columns:
        number = all(isinstance(row[column], int) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        values = (row[column] for column in columns)
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in values))
    (console or Console()).print(table)


def print_layout(prompt: Prompt, source: str, console: Console | None = None) -> None:
    """One row per run of tokens of one modality."""
    console = console or Console()
    table = Table(title=Text(f"{source}: {_counts(prompt)}"), title_justify="left")
    for name in ("tokens", "count", "modality", "turn", "seconds", "t", "h", "w"):
        table.add_column(name, justify="left" if name in ("modality", "turn") else "right")
    for row in span_rows(prompt):
        seconds = "" if row["seconds"] is None else "{:.2f} - {:.2f}".format(*row["seconds"])
        ranges = [f"{low} - {high}" for low, high in row["positions"]]
        table.add_row(
            f"{row['start']}:{row['stop']}", str(row["count"]), row["modality"], row["turn"], seconds, *ranges
        )
    console.print(table)
    for clip in (*prompt.images, *prompt.videos):
        t, h, w = clip.grid
        step = "" if clip.seconds_per_grid is None else f", {clip.seconds_per_grid:g} s each"
        console.print(f"{clip.source}: {t} grid steps{step}, {h} x {w} patches", highlight=False)
    for clip in prompt.audio:
        console.print(f"{clip.source}: {len(clip.mel)} mel frames, {len(clip.mel) / 100:.2f} s", highlight=False)
    console.print(f"first generated token at position {prompt.next_position()}", highlight=False)


def span_rows(prompt: Prompt) -> list[dict[str, Any]]:
    """The layout as plain data; `stop` is exclusive, position ranges are inclusive and in the order t, h, w."""
    return [
        {
            "start": span.start,
            "stop": span.stop,
            "count": span.stop - span.start,
            "modality": span.modality,
            "turn": span.role,
            "seconds": span.seconds,
            "positions": span.position_ranges,
        }
        for span in prompt.spans()
    ]


def print_differences(rows: Iterable["Difference"], console: Console | None = None) -> bool:
    """The table of `avjax verify`; True when every row passes."""
    console = console or Console()
    table = Table()
    table.add_column("part")
    for name in ("max |difference|", "max |value|", "tolerance", ""):
        table.add_column(name, justify="right")
    passed = True
    for row in rows:
        table.add_row(
            row.part,
            f"{row.difference:.1e}",
            f"{row.scale:.3g}",
            f"{row.tolerance:.1e}",
            "ok" if row.passes else Text("FAILS", style="bold red"),
        )
        passed = passed and row.passes
    console.print(table)
    return passed


def _counts(prompt: Prompt) -> str:
    counts = prompt.counts()
    shown = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    ratio = f"; {counts['video'] / counts['audio']:.1f} video tokens per audio token" if _both(counts) else ""
    return f"{len(prompt):,} tokens ({shown}{ratio})"


def _both(counts: dict[str, int]) -> bool:
    return "audio" in counts and "video" in counts


def _caption(generation: Generation) -> str:
    if generation.text is None:
        return " ".join(map(str, generation.tokens))
    # An untrained model writes control characters, which would move the cursor.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in generation.text)


def _reach(name: str, generation: Generation) -> str:
    count = f"{len(generation.tokens)} tokens"
    if name == "clean":
        return count
    touched = generation.touched
    blocked = f", {touched.blocked_queries:,} queries fully blocked" if touched.blocked_queries else ""
    return f"{count}, {touched.edges:,} edges edited{blocked}"
