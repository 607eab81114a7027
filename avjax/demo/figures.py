"""PNG figures of the demo's findings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avjax.demo.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"audio": "#c2410c", "video": "#1d4ed8", "text": "#78716c"}
WORDS = {"sound": "#c2410c", "suggested": "#1d4ed8", "picture": "#15803d"}
NAMES = {
    "sound": "sound that is heard",
    "suggested": "sound that the picture suggests",
    "picture": "thing that is seen",
}
SIZE = (6.4, 3.6)  # inches


def write_figures(findings: Findings, directory: Path) -> dict[str, Path]:
    """PNG files by title."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {"Attention where the sound's word is chosen": ("attention.png", _attention)}
    if findings.probes is not None:
        drawn = {
            "Captions, and attention edges cut": ("knockouts.png", _knockouts),
            "Probes of the sound at audio tokens": ("probes.png", _probes),
            **drawn,
        }
    return {title: _figure(directory / name, draw, findings) for title, (name, draw) in drawn.items()}


def _figure(path: Path, draw: Any, findings: Findings) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, findings)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    return path


def _knockouts(figure: "Figure", findings: Findings) -> None:
    axes = figure.add_subplot()
    windows = [v for v in findings.variants if v.startswith("answer->video@")]
    bars = [
        ("factual", "factual", "clean"),
        ("conflict", "counterfactual", "clean"),
        *((f"video cut\n{rule.split('@')[1]}", "counterfactual", rule) for rule in windows),
        ("video\ncut", "counterfactual", "answer->video"),
        ("audio\ncut", "counterfactual", "answer->audio"),
    ]
    places = np.arange(len(bars))
    for i, (what, colour) in enumerate(WORDS.items()):
        heights = [findings.share(condition, variant, what).mean() for _, condition, variant in bars]
        axes.bar(places + 0.27 * (i - 1), heights, 0.25, color=colour, label=NAMES[what])
    axes.set_xticks(places, [label for label, _, _ in bars], fontsize=7)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of captions that name it")
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _probes(figure: "Figure", findings: Findings) -> None:
    axes = figure.add_subplot()
    probes = findings.probes
    assert probes is not None
    layers = np.arange(len(probes.accuracy))
    axes.plot(layers, probes.accuracy, "o-", color=WORDS["sound"], label="sound that is heard, under conflict")
    axes.plot(layers, probes.control, "o--", color=COLOURS["text"], label="control task")
    named = findings.share("counterfactual", "clean", "sound").mean()
    axes.axhline(named, color=WORDS["suggested"], lw=1, ls=":", label="named in captions")
    _layers(axes, len(layers))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy on unseen clips")
    axes.legend(fontsize=8, frameon=False, loc="center right")


def _attention(figure: "Figure", findings: Findings) -> None:
    """Mass, and beside it mass over the share of keys: there are more tokens of one modality than of another."""
    mass, per_key = figure.subplots(1, 2)
    for axes, by_modality, label in (
        (mass, findings.attention, "share of attention, mean over heads"),
        (per_key, findings.per_key, "the same per visible key; 1 is uniform"),
    ):
        for name, shares in by_modality.items():
            axes.plot(np.arange(len(shares)), shares, "o-", ms=4, color=COLOURS[name], label=name)
        _layers(axes, len(next(iter(by_modality.values()))))
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label, fontsize=8)
    mass.legend(fontsize=8, frameon=False)


def _layers(axes: "Axes", count: int) -> None:
    axes.set_xticks(np.arange(count))
    axes.set_xlabel("layer")
