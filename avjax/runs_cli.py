"""`avjax run SPEC`, `avjax runs` and `avjax schema`: runs from a file, and what stores hold."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avjax.options import Cache, friendly

FAILED, RESUME = 3, 75  # exit statuses; 75 is EX_TEMPFAIL of sysexits.h
SPECS = (".yaml", ".yml", ".json")
runs = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, help="What runs on disk hold.")
StorePath = Annotated[str, typer.Argument(help="A run's directory, or gs://...")]


class RunGroup(TyperGroup):
    """`run FILE.yaml` is a run from its specification; other words are analyses."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and Path(args[0]).suffix in SPECS:
            args = ["spec", *args]
        return super().resolve_command(ctx, args)


def run_spec(
    spec: Annotated[Path, typer.Argument(help="A YAML or JSON file; `avjax schema` describes it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, such as grid.layers.width=8.")] = None,
    store: Annotated[str | None, typer.Option(help="In place of the specification's store.")] = None,
    shard: Annotated[str, typer.Option(help="I/N: the I-th of N shares, counted from 0.")] = "0/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will cost, and stop.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Put damaged parts aside and compute them again.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Join the processes that Slurm, GKE, MPI or a TPU VM has started.")
    ] = False,
    cache_dir: Cache = None,
) -> None:
    """Run a specification; cells that its store holds are not computed again.

    Exit status: 0, all cells are there; 2, nothing was run, for the reason that is said; 3, some clips failed, the
    others are there; 75, it was asked to stop (SIGTERM, Ctrl-C): run it again to go on.
    """
    with friendly():
        import avjax
        from avjax.report.terminal import print_plan
        from avjax.runs.spec import Spec
        from avjax.runs.specified import prepare_run
        from avjax.runs.store import Store

        read = Spec.read(spec, overrides or [])
        share = _share(shard)
        if distributed:
            read = _joined(read)
        # A store on the command line is relative to here, one in a specification to the specification.
        place = store or (read.store if read.store is None or "://" in read.store else read.directory / read.store)
        if place is None and not dry_run:
            raise ValueError(f"{spec}: expected a store, got none; add 'store: DIRECTORY' or pass --store")
        if cache_dir is not None:
            avjax.cache_compilations(cache_dir)
        prepared = prepare_run(read)
        if dry_run:
            print_plan(prepared.plan())
            return
        assert place is not None
        kept = Store(place)
        if repair:
            for part in kept.repair():
                typer.echo(f"put aside: {part}", err=True)
        with _stopping() as stop:
            outcome = prepared.execute(kept, shard=share, stop=stop)
        for sample, reason in outcome.failed.items():
            typer.secho(f"failed: {sample}: {reason}", fg=typer.colors.RED, err=True)
        typer.echo(f"{place}: {outcome.computed:,} cells computed, {len(outcome.failed)} clips failed", err=True)
        if outcome.stopped:
            typer.echo("stopped before the end; run it again to go on", err=True)
            raise typer.Exit(RESUME)
        if outcome.failed:
            raise typer.Exit(FAILED)


def schema() -> None:
    """Print the JSON schema of a run's specification, for editors."""
    from avjax.runs.spec import Spec

    typer.echo(json.dumps(Spec.model_json_schema(), indent=2))


@runs.command("ls")
def list_runs(
    directory: Annotated[Path, typer.Argument(help="Where runs lie.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the runs under a directory."""
    with friendly():
        from avjax.report.terminal import print_rows
        from avjax.runs.stored import summary

        found = []
        for file in sorted(directory.rglob("run.json")):
            try:
                found.append(summary(file.parent))
            except ValueError as error:  # another program's, or a damaged one; the others are listed
                typer.secho(f"not listed: {error}", fg=typer.colors.RED, err=True)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            print_rows(found, ("store", "checkpoint", "samples", "cells", "done", "failed"))


@runs.command()
def show(
    store: StorePath, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Say what a run holds, what is missing and what failed."""
    with friendly():
        from avjax.report.terminal import print_rows
        from avjax.runs.store import Store
        from avjax.runs.stored import summary

        found = summary(store) | {"failures": list(Store(store).failures().values())}
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        print_rows([found], ("store", "checkpoint", "samples", "cells", "done", "failed"))
        for failure in found["failures"]:
            typer.echo(f"failed: {failure['sample']}: {failure['reason']}")


@runs.command()
def export(
    store: StorePath,
    out: Annotated[Path, typer.Argument(help="A .csv, .parquet or .nc (xarray) to write; must not exist.")],
) -> None:
    """Write all cells as one table (.csv, .parquet), or as a labelled dataset (.nc)."""
    with friendly():
        from avjax.runs.export import export as write
        from avjax.runs.store import Store

        typer.echo(f"{out}: {write(Store(store), out)}")


@runs.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores of one run.")],
    into: Annotated[str, typer.Option(help="The store that is written, or goes on.")],
) -> None:
    """Put the cells of several stores of one run, such as shares of several machines, into one."""
    with friendly():
        from avjax.runs.export import merge as write
        from avjax.runs.store import Store

        typer.echo(f"{into}: {write([Store(store) for store in stores], Store(into))} parts added")


def _joined(spec: Any) -> Any:
    """Joins the launcher's processes; without a mesh of its own, a specification takes a model on every device.

    Raises:
      ValueError: there is no launcher that jax knows.
    """
    import jax

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: expected processes that a launcher has started, got none to join ({error}); start them "
            "with srun, mpirun or on the hosts of a TPU slice"
        ) from error
    return spec if spec.mesh is not None else spec.with_mesh(data=-1)


def _share(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise ValueError(f"--shard: expected I/N with I within 0 to N - 1, such as 0/8, got {text!r}")
    return int(i), int(n)


@contextmanager
def _stopping() -> Iterator[Any]:
    """Whether SIGTERM or Ctrl-C came; a second Ctrl-C interrupts."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        typer.echo("stopping after this block of cells", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
