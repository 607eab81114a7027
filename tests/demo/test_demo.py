"""The demo, small: what it leaves, and that its page and its claims say what was found."""

import html.parser
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.demo import experiments
from avjax.demo.claims import claims_of, deep_and_early
from avjax.demo.findings import Captioned, Findings
from avjax.demo.show import OUTPUTS, show
from avjax.organism.behaviour import ProbeScores, Score
from avjax.organism.world import KINDS

pytestmark = pytest.mark.exhaustive


class Sources(html.parser.HTMLParser):
    """What a page would load, and where it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "src"]
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory that a demo of two clips leaves, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CLIPS": 2, "PROBE_TRAIN": 32, "PROBE_TEST": 16}.items():
            patch.setattr(experiments, name, value)
        console = Console(record=True, width=80)
        show(None, out, console)
    return out, console.export_text()


def test_it_leaves_the_run_figures_and_a_page(left: tuple[Path, str]):
    out, _ = left
    table = pq.read_table(out / "captions.parquet").to_pylist()
    variants = {row["variant"] for row in table}
    assert len(table) == 2 + 2 * len(variants) and {"clean", "answer->video@4:8", "answer->audio"} <= variants
    for row in table:
        words = set(row["text"].rstrip(".").split())
        assert row["names_picture"] == (row["seen"] in words) and row["names_sound"] == (row["heard"] in words)
        assert (row["edges"] > 0) == (row["variant"] != "clean")
    found = json.loads((out / "findings.json").read_text())
    total = np.sum([found["attention"][name] for name in ("audio", "video", "text")], 0)
    np.testing.assert_allclose(total, 1, atol=1e-4)
    assert len(found["probe_accuracy"]) == len(total) == 8
    for name in ("knockouts", "probes", "attention"):
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 400 and len(set(picture.convert("L").resize((64, 48)).tobytes())) > 4
    assert len(list((out / "clips").glob("*.mp4"))) == 4


def test_the_page_needs_nothing_else(left: tuple[Path, str]):
    out, _ = left
    page = (out / "index.html").read_text()
    assert len(page) < 1e6
    sources = Sources()
    sources.feed(page)
    figures = [source for source in sources.found if source.startswith("data:image/png;base64,")]
    clips = [source for source in sources.found if source not in figures]
    assert len(figures) == 3 and len(set(clips)) == 4 and all((out / clip).is_file() for clip in clips)
    assert sources.links == ["https://arxiv.org/abs/2604.02605"] and page.count("http") == 1
    assert "prefers-color-scheme: dark" in page
    assert "<td></td>" not in page, "no column stands empty"
    text = " ".join(sources.text)
    for row in pq.read_table(out / "captions.parquet").to_pylist():
        if row["variant"] in ("clean", "answer->video@4:8"):
            assert row["text"] in text


def test_it_tells_the_claims_and_its_progress(left: tuple[Path, str]):
    _, printed = left
    for task in ("loading tiny-av and tiny-vl", "factual captions", "probes of the sound", "figures and page"):
        assert task in printed
    assert printed.count("seen  ") >= 4 and "base's first choice" in " ".join(printed.split())


def test_its_tables_fit_80_columns(left: tuple[Path, str]):
    _, printed = left
    lines = printed.splitlines()
    for words in ("suggested", "per key", "control", "caption", "video cut", "counterfactual"):
        assert any(words in line for line in lines), f"{words} is broken over lines"
    assert max(len(line) for line in lines if line[:1] in "┏┃│└") <= 80


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Directories that the demo would keep its caches in; later tests must not."""
    asked: list[Path | None] = []
    monkeypatch.setattr(avjax, "cache", asked.append)
    return asked


def test_a_clip_of_the_users_own(clip: Path, tmp_path: Path, caches: list[Path | None]):
    out = tmp_path / "mine"
    (out / "clips").mkdir(parents=True)
    (out / "clips" / "old.mp4").touch()
    arguments = ["demo", "--clip", str(clip), "--out", str(out), "--cache-dir", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert caches == [tmp_path / "cache"]
    table = pq.read_table(out / "captions.parquet").to_pylist()
    assert {row["condition"] for row in table} == {"yours"} and "names_sound" not in table[0]
    assert "little" in result.output, "that it knows no other clips is said"
    assert sorted(path.name for path in out.iterdir()) == sorted(set(OUTPUTS) - {"clips"}), (
        "what was left before is gone"
    )
    page = (out / "index.html").read_text()
    assert "een here" not in page, "one clip bears nothing out"


def test_a_clip_that_cannot_be_used_is_named(tmp_path: Path, caches: list[Path | None]):
    result = CliRunner().invoke(app, ["demo", "--clip", str(tmp_path / "no.mp4"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "no.mp4: no such file" in result.stderr
    assert caches == [None], "the user's own"


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, caches: list[Path | None]):
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "thesis.txt").touch()
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--cache-dir", str(tmp_path)])
    assert result.exit_code == 2 and "found thesis.txt; choose another --out" in result.stderr
    assert (tmp_path / "index.html").read_text() == "mine"


VARIANTS = ("clean", "answer->video@0:4", "answer->video@4:8", "answer->video", "answer->audio")


def findings(sound: dict[str, float], factual: float, probe: float, ranks: list[int | None]) -> Findings:
    """20 clips; the true sound is named in these shares of them."""
    count = 20
    shares = {("factual", "clean"): factual, **{("counterfactual", v): sound[v] for v in VARIANTS}}
    captions = [
        Captioned(
            clip=str(i),
            condition=condition,
            seen="dog",
            heard="barking",
            variant=variant,
            text="",
            score=Score(True, i < round(count * share), not i < round(count * share)),
            edges=0,
        )
        for (condition, variant), share in shares.items()
        for i in range(count)
    ]
    hits = np.arange(count)[:, None] < count * np.full(8, probe)
    probes = ProbeScores(hits=hits, control_hits=np.zeros_like(hits))
    return Findings(captions=captions, attention={}, per_key={}, ranks=ranks, probes=probes, settings={})


BIASED = {"clean": 0.1, "answer->video@0:4": 0.1, "answer->video@4:8": 0.8, "answer->video": 0.9, "answer->audio": 0}


def test_claims_hold_where_they_are_borne_out():
    found = claims_of(findings(BIASED, 1.0, 0.9, [1] * 16 + [2] * 3 + [None]))
    assert [claim.holds for claim in found] == [True] * 4
    assert "1.00 of factual clips, 0.10 under conflict" in found[0].numbers
    assert "layer 4: 0.90 [0.7" in found[1].numbers and f"chance {1 / len(KINDS):.2f}" in found[1].numbers
    assert "layers 4:8: 0.80" in found[2].numbers and "layers 0:4: 0.10 (less by 0.70 [" in found[2].numbers
    assert "of 20 sound words 0.80 [0.5" in found[3].numbers and "; 0.95 are among its first three" in found[3].numbers


@pytest.mark.parametrize(
    ("broken", "which"),
    [
        (findings({**BIASED, "clean": 0.95}, 1.0, 0.9, [1] * 20), {0, 1, 2}),
        (findings(BIASED, 1.0, 0.15, [1] * 20), {1}),
        (findings({**BIASED, "answer->video@0:4": 0.8}, 1.0, 0.9, [1] * 20), {2}),
        (findings({**BIASED, "answer->video@4:8": 0.2}, 1.0, 0.9, [1] * 20), {2}),
        (findings(BIASED, 1.0, 0.9, [5] * 20), {3}),
        (findings(BIASED, 1.0, 0.9, [None] * 20), {3}),
        (findings(BIASED, 1.0, 0.9, [1] * 11 + [4] * 9), {3}),
    ],
)
def test_claims_that_are_not_borne_out_are_not_said_to_hold(broken: Findings, which: set[int]):
    assert {i for i, claim in enumerate(claims_of(broken)) if not claim.holds} == which


def test_the_windows_that_are_compared_are_first_and_last():
    assert deep_and_early(findings(BIASED, 1.0, 0.9, [])) == ("answer->video@4:8", "answer->video@0:4")
