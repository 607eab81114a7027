"""The demo from start to end: experiments, summary on the terminal, and the directory that it leaves."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from avjax.checkpoint.loading import load
from avjax.demo.claims import Claim, claims_of
from avjax.demo.experiments import on_a_clip, on_the_tiny_world
from avjax.demo.figures import write_figures
from avjax.demo.findings import Findings
from avjax.demo.page import caption_table, variant_name, write_page

OUTPUTS = ("index.html", "captions.parquet", "findings.json", "figures", "clips")
VERDICTS = {True: ("seen      ", "green"), False: ("not seen  ", "red"), None: ("          ", "")}
SHOWN = 6  # captions of each condition in the terminal; the page has all
ABOUT = (
    "tiny-av is an audio-visual language model of Qwen2.5-Omni's architecture, small enough to come with avjax. It was "
    "trained on clips whose picture and sound agree. Here its clips disagree, and every edit is exact."
)
ABOUT_CLIP = (
    "Your clip, as tiny-av sees it. tiny-av knows 16 kinds of things and nothing else: what it says about other clips "
    "means little, but a large model goes through the same steps from clip to edited caption."
)


def show(clip: Path | None, out: Path, console: Console | None = None) -> None:
    """Runs the demo and writes `out`: index.html, figures, clips, captions.parquet and findings.json.

    Args:
      clip: a video with sound; None draws clips of the tiny world.
    """
    console, started = console or Console(), time.monotonic()
    with _Tasks(console) as tasks:
        tasks.say("loading tiny-av and tiny-vl", 0, 2)
        av = load("tiny-av")
        tasks.say("loading tiny-av and tiny-vl", 1, 2)
        vl = load("tiny-vl")
        tasks.say("loading tiny-av and tiny-vl", 2, 2)
        _clear(out)
        if clip is None:
            (out / "clips").mkdir()
            findings = on_the_tiny_world(av, vl, out / "clips", tasks.say)
        else:
            findings = on_a_clip(av, vl, clip, tasks.say)
        claims, intro = claims_of(findings), ABOUT if clip is None else ABOUT_CLIP
        tasks.say("figures and page", 0, 1)
        write_run(findings, out)
        write_page(findings, claims, write_figures(findings, out / "figures"), intro, out / "index.html")
        tasks.say("figures and page", 1, 1)
    _summary(findings, claims, intro, console)
    console.print(
        f"{out / 'index.html'}: everything on one page; beside it are figures, captions.parquet and findings.json "
        f"({time.monotonic() - started:.0f} s)",
        highlight=False,
        soft_wrap=True,
    )


def _clear(out: Path) -> None:
    """An empty directory; what an earlier demo left is removed, and anything else is refused."""
    out.mkdir(parents=True, exist_ok=True)
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in OUTPUTS):
        raise FileExistsError(
            f"{out}: expected a new directory or an earlier demo's, found {foreign[0]}; choose another --out"
        )
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_run(findings: Findings, out: Path) -> None:
    """Everything that was found, as a table of captions and as JSON."""
    pq.write_table(pa.Table.from_pylist([c.row() for c in findings.captions]), out / "captions.parquet")
    (out / "findings.json").write_text(json.dumps(findings.plain(), indent=1) + "\n", encoding="utf-8")


def _summary(findings: Findings, claims: list[Claim], about: str, console: Console) -> None:
    console.print(about, highlight=False)
    for table in (caption_table(findings, condition) for condition in findings.conditions):
        console.print(_table(f"captions, {table.condition}", table.columns, table.rows[:SHOWN]))
    if findings.probes is not None:
        console.print(_shares(findings))
    console.print(_layers(findings))
    for claim in claims:
        console.print(Text.assemble(VERDICTS[claim.holds], claim.statement))
        console.print(Padding(Text(claim.numbers), (0, 0, 0, 10)))


def _shares(findings: Findings) -> Table:
    """What captions name, per variant."""
    rows = []
    for condition, variant in dict.fromkeys((c.condition, c.variant) for c in findings.captions):
        shares = [findings.share(condition, variant, what) for what in ("picture", "sound", "suggested")]
        name = condition if variant == "clean" else f"{condition}, {variant_name(variant)}"
        rows.append([name, *(f"{share.mean():.2f}" for share in shares)])
    title = "share of captions that name the thing seen, the sound heard, and the sound that the picture suggests"
    return _table(title, ["", "seen", "heard", "suggested"], rows)


def _layers(findings: Findings) -> Table:
    """Attention where the sound's word is chosen, and probes, per layer."""
    columns = dict(findings.attention)
    columns |= {f"{name} per key": findings.per_key[name] for name in findings.per_key}
    title = "attention where the sound's word is chosen; per key: over the share of visible keys, 1 is uniform"
    if findings.probes is not None:
        columns |= {"probe": findings.probes.accuracy, "control": findings.probes.control}
        title += "; probe of the sound, and its control task"
    rows = [
        [str(layer), *(f"{value:.2f}" for value in row)]
        for layer, row in enumerate(zip(*columns.values(), strict=True))
    ]
    return _table(title, ["layer", *columns], rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


class _Tasks:
    """Progress that is always visible: bars on a terminal, a line per task elsewhere."""

    def __init__(self, console: Console):
        self.console, self.rows = console, {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=console)

    def __enter__(self) -> "_Tasks":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, task: str, done: int, total: int) -> None:
        if task not in self.rows:
            self.rows[task] = self.bars.add_task(task, total=total)
            if not self.console.is_terminal:
                self.console.print(f"{task} ...", highlight=False)
        self.bars.update(self.rows[task], completed=done)
