"""`avjax plan`: what a sweep will cost, on a model and a clip, or on TPU chips, which need not be at hand."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avjax.cli.options import (
    MODEL_HELP,
    Audio,
    ClipReading,
    Image,
    Resources,
    Rules,
    Video,
    exit_with_message,
    prompt_of,
)

if TYPE_CHECKING:
    from avjax.prompts.compat import Compat

YAML = (".yaml", ".yml")


def plan(
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The user's words.")] = None,
    video: Video = None,
    audio: Audio = None,
    image: Image = None,
    order: Annotated[
        str | None, typer.Option(help="media-first or text-first; by default the specification's, else media-first.")
    ] = None,
    rule: Rules = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Instead of rules: a run's specification, or a grid as JSON."),
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help="Score this answer as what comes next; repeatable.")] = None,
    continuation: Annotated[list[str] | None, typer.Option(help="Score this text, teacher-forced; repeatable.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Caption each cell with at most this many tokens.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 or bfloat16; by default the specification's, else float32 (bfloat16 with --topology)."
        ),
    ] = None,
    reading: ClipReading,
    resources: Resources,
    topology: Annotated[
        str | None,
        typer.Option(help="TPU chips to compile for, such as v5e:2x4; needs neither the chips nor a model's weights."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="With --topology: qwen2.5-omni-7b, another published model, or a config.json.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --topology: tokens in a prompt, its clip included.")
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(help="With --topology: sizes of data, variant and model, such as 2,1,4.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --topology: compile sooner; temporaries come out a little larger.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what a sweep will cost: passes, operations, bytes, memory, executables and time.

    A specification supplies the grid, metrics, settings and words; options override them.
    """
    with exit_with_message(), resources.applied():
        asked = _asked(grid, rule, answer, continuation, max_new_tokens, labelled=topology is None)
        if resources.memory_bytes is not None:
            asked = dataclasses.replace(asked, memory_bytes=resources.memory_bytes)
        here = {"--model": model, "--prompt": prompt, "--video": video, "--audio": audio, "--image": image or None}
        here |= {"--order": order}
        here |= {f"--{name.replace('_', '-')}": value for name, value in vars(reading).items()}
        there = {"--config": config, "--prompt-tokens": prompt_tokens, "--mesh": mesh, "--quick": quick or None}
        if topology is not None:
            _refuse(
                here,
                "plan --topology: expected only --config and sizes such as --prompt-tokens",
            )
            if config is None or prompt_tokens is None:
                raise ValueError("plan --topology: expected --config and --prompt-tokens; give both")
            _on_topology(config, topology, asked, prompt_tokens, dtype, mesh, quick, as_json)
            return
        _refuse(there, "plan: expected these options only with --topology")
        text = asked.prompt if prompt is None else prompt
        if model is None or text is None:
            raise ValueError("plan: expected --model and --prompt, or --topology and --config; give one pair")
        import avjax
        from avjax.cli.tables import print_plan

        loaded = avjax.load(model, dtype=dtype or asked.dtype or "float32")
        words = {"system": asked.system, "opening": asked.opening, "order": order or asked.order}
        words |= {"positions": asked.positions}
        clip = prompt_of(loaded, text, reading, video=video, audio=audio, image=image, **words)
        settings = {name: getattr(asked, name) for name in ("compat", "allow_noop", "memory_bytes")}
        planned = avjax.plan(loaded, clip, asked.cells, asked.metrics, **settings)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(planned) | {"speedup": planned.speedup}, indent=2))
        else:
            print_plan(planned)


def _refuse(options: dict[str, Any], expected: str) -> None:
    if strange := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{expected}, got {', '.join(strange)}; leave them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is planned, from a specification or from options.

    Attributes:
      prompt, opening, system: of the specification's first clip.
      dtype: None where nothing names one.
    """

    cells: Any
    metrics: list[Any]
    prompt: str | None = None
    opening: str = ""
    system: str | None = None
    order: str = "media-first"
    positions: str = "trained"
    dtype: str | None = None
    compat: "Compat | None" = None
    allow_noop: bool = False
    memory_bytes: int | None = None
    block_cells: int | None = None
    mesh: dict[str, int] | None = None
    specification: Path | None = None
    captures: bool = False


class _AnyLabel(dict):
    """Labels of no clip: each stands for itself."""

    def __missing__(self, name: str) -> str:
        return name


def _asked(
    grid: Path | None,
    rule: list[str] | None,
    answer: list[str] | None,
    continuation: list[str] | None,
    max_new_tokens: int | None,
    *,
    labelled: bool,
) -> _Asked:
    """What is planned.

    Args:
      labelled: a specification's clips are there, and their labels are words of the model's.
    """
    import avjax
    from avjax.edits.rules import parse_rules

    if (grid is None) == (not rule):
        raise ValueError("plan: expected either --grid or --rule; give one of them")
    metrics: list[Any] = [avjax.metrics.LogProb(a, name=f"log_prob_{i}") for i, a in enumerate(answer or [])]
    metrics += [avjax.metrics.LogLikelihood(c, name=f"log_likelihood_{i}") for i, c in enumerate(continuation or [])]
    if max_new_tokens is not None:
        metrics.append(avjax.metrics.Caption(max_new_tokens))
    if grid is None:
        return _Asked(cells=[parse_rules(text) for text in rule or []], metrics=metrics or [avjax.metrics.Caption(50)])
    if grid.suffix not in YAML and "metrics" not in (given := json.loads(grid.read_text())):
        return _Asked(cells=avjax.from_json(given), metrics=metrics or [avjax.metrics.Caption(50)])
    return _specified(grid, metrics, labelled)


def _specified(file: Path, metrics: list[Any], labelled: bool) -> _Asked:
    from avjax.runs.spec.metrics import filled
    from avjax.runs.spec.spec import Spec

    spec = Spec.read(file)
    if spec.executor != "replay":
        raise ValueError(f"{file}: expected executor replay, the only one that can be planned, got {spec.executor}")
    labels = spec.all_clips()[0].labels if labelled else _AnyLabel()
    return _Asked(
        cells=spec.build_grid(),
        metrics=metrics or [metric.build(labels) for metric in spec.metrics],
        prompt=str(filled(spec.prompt, labels, "prompt")),
        opening=str(filled(spec.opening, labels, "opening")),
        system=spec.system,
        order=spec.order,
        positions=spec.positions,
        dtype=spec.dtype if "dtype" in spec.model_fields_set else None,
        compat=spec.compat,
        allow_noop=spec.allow_noop,
        memory_bytes=spec.memory_bytes,
        block_cells=spec.block_cells,
        mesh=None if spec.mesh is None else spec.mesh.model_dump(),
        specification=file,
        captures=spec.capture is not None,
    )


def _on_topology(
    config: str,
    topology: str,
    asked: _Asked,
    prompt_tokens: int,
    dtype: str | None,
    mesh: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    from avjax.cli.topology_table import print_topology_plan
    from avjax.devices.mesh import sizes_of
    from avjax.tpu.chips import Topology
    from avjax.tpu.topology_plan import plan_topology

    sizes = None if mesh is None else _sizes(mesh)
    if sizes is None and asked.mesh is not None:
        sizes = sizes_of(Topology.of(topology).size, **asked.mesh)
    if asked.specification is not None and dtype is None and asked.dtype is None:
        _note(f"{asked.specification} names no dtype, so it runs in float32; this plan is in bfloat16")
    if asked.captures:
        _note(f"{asked.specification} keeps activations: one more forward pass per cell, which this plan leaves out")
    topology_plan = plan_topology(
        config,
        topology,
        asked.cells,
        asked.metrics,
        prompt_tokens=prompt_tokens,
        dtype=dtype or asked.dtype or "bfloat16",
        mesh=sizes,
        compat=asked.compat,
        allow_noop=asked.allow_noop,
        memory_bytes=asked.memory_bytes,
        opening=asked.opening,
        block_cells=asked.block_cells,
        quick=quick,
    )
    if as_json:
        more = {name: getattr(topology_plan, name) for name in ("peak_bytes", "temporary_bytes", "flops", "seconds")}
        typer.echo(json.dumps(dataclasses.asdict(topology_plan) | more, indent=2))
    else:
        print_topology_plan(topology_plan)


def _note(text: str) -> None:
    typer.secho(f"note: {text}", fg=typer.colors.YELLOW, err=True)


def _sizes(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"--mesh: expected three sizes, of data, variant and model, such as 2,1,4, got {text!r}")
    data, variant, model = map(int, parts)
    return data, variant, model
