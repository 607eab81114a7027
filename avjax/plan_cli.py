"""`avjax plan`: what a sweep will cost, on a model and its clip, or on TPU chips that are not here."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from avjax.options import (
    MODEL_HELP,
    Audio,
    Fps,
    Image,
    MaxPixels,
    Memory,
    MinPixels,
    Rules,
    Video,
    friendly,
    prompt_of,
)

SPECS = (".yaml", ".yml")


def plan(
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The user's words.")] = None,
    video: Video = None,
    audio: Audio = None,
    image: Image = None,
    rule: Rules = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Instead of rules: a run's specification (.yaml), whose grid and metrics are taken, or a grid as JSON."
        ),
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help="Score the next token against this; repeatable.")] = None,
    continuation: Annotated[list[str] | None, typer.Option(help="Score this text, teacher-forced; repeatable.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Caption each cell with so many tokens.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; by default float32, and bfloat16 on a topology.")
    ] = None,
    fps: Fps = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    memory_bytes: Memory = None,
    topology: Annotated[
        str | None,
        typer.Option(help="TPU chips, such as v5e:2x4; compiles for them, needs none, nor a model's weights."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="With --topology: qwen2.5-omni-7b, another published model, or a config.json.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --topology: of a prompt with its clip.")
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(help="With --topology: sizes of data, variant and model, such as 2,1,4.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --topology: compile sooner; temporaries come out a little larger.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a sweep will cost: passes, operations, bytes, memory, executables and time."""
    with friendly():
        cells, metrics = _sweep(grid, rule, answer, continuation, max_new_tokens)
        if topology is not None:
            given = {"--model": model, "--prompt": prompt, "--video": video, "--audio": audio, "--image": image}
            if strange := [name for name, value in given.items() if value is not None]:
                raise ValueError(f"plan --topology: expected --config and --prompt-tokens, got {', '.join(strange)}")
            if config is None or prompt_tokens is None:
                raise ValueError("plan --topology: expected --config and --prompt-tokens; give both")
            _on_topology(config, topology, cells, metrics, prompt_tokens, dtype or "bfloat16", mesh, quick, as_json)
            return
        if model is None or prompt is None:
            raise ValueError("plan: expected --model and --prompt, or --topology and --config; give one pair")
        import avjax
        from avjax.report.terminal import print_plan

        loaded = avjax.load(model, dtype=dtype or "float32")
        made = prompt_of(loaded, prompt, video, audio, image, None, fps, min_pixels, max_pixels)
        planned = avjax.plan(loaded, made, cells, metrics, memory_bytes=memory_bytes)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(planned) | {"speedup": planned.speedup}, indent=2))
        else:
            print_plan(planned)


class _AnyLabel(dict):
    """Labels of no clip: each stands for itself."""

    def __missing__(self, name: str) -> str:
        return name


def _sweep(
    grid: Path | None,
    rule: list[str] | None,
    answer: list[str] | None,
    continuation: list[str] | None,
    max_new_tokens: int | None,
) -> tuple[Any, list[Any]]:
    """Cells and metrics, from a specification or from options."""
    import avjax
    from avjax.interventions import parse_rules

    if (grid is None) == (not rule):
        raise ValueError("plan: expected either --grid or --rule; give one of them")
    metrics: list[Any] = [avjax.metrics.LogProb(a, name=f"log_prob_{i}") for i, a in enumerate(answer or [])]
    metrics += [avjax.metrics.LogLikelihood(c, name=f"log_likelihood_{i}") for i, c in enumerate(continuation or [])]
    if max_new_tokens is not None:
        metrics.append(avjax.metrics.Caption(max_new_tokens))
    if grid is not None and grid.suffix in SPECS:
        from avjax.runs.spec import Spec

        spec = Spec.read(grid)
        return spec.build_grid(), metrics or [metric.build(_AnyLabel()) for metric in spec.metrics]
    cells = (
        [parse_rules(text) for text in rule or []] if grid is None else avjax.from_json(json.loads(grid.read_text()))
    )
    return cells, metrics or [avjax.metrics.Caption(50)]


def _on_topology(
    config: str,
    topology: str,
    cells: Any,
    metrics: list[Any],
    prompt_tokens: int,
    dtype: str,
    mesh: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    from avjax.report.topology import print_topology_plan
    from avjax.tpu.planning import plan_topology

    sizes = None if mesh is None else _sizes(mesh)
    found = plan_topology(
        config, topology, cells, metrics, prompt_tokens=prompt_tokens, dtype=dtype, mesh=sizes, quick=quick
    )
    if as_json:
        more = {name: getattr(found, name) for name in ("peak_bytes", "temporary_bytes", "flops", "seconds")}
        typer.echo(json.dumps(dataclasses.asdict(found) | more, indent=2))
    else:
        print_topology_plan(found)


def _sizes(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ValueError(f"--mesh: expected three sizes, of data, variant and model, such as 2,1,4, got {text!r}")
    data, variant, model = map(int, parts)
    return data, variant, model
