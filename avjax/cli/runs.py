"""`avjax run SPEC`, `avjax runs` and `avjax schema`: runs from a file, and what stores hold."""

import contextlib
import json
import signal
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avjax.cli.options import Commands, Resources, exit_with_message, refuse_repeated

# Exit statuses; 74 and 75 are EX_IOERR and EX_TEMPFAIL of sysexits.h.
FAILED, DIFFERENT, UNWRITTEN, RESUME = 3, 4, 74, 75
SPECS = (".yaml", ".yml", ".json")
SHOWN, WIDTH = 20, 60  # values that differ, and how much of each
runs = Commands(
    pretty_exceptions_enable=False, no_args_is_help=True, help="Look at runs on disk, export and merge them."
)
StorePath = Annotated[str, typer.Argument(help="A run's directory, or gs://...")]


class RunGroup(TyperGroup):
    """`run FILE.yaml` is a run from its specification, options before or after it; other words are analyses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = ["spec", *args] if self._of_specification(args) else args
        refuse_repeated(self, ctx, words)
        return super().parse_args(ctx, words)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The group's own help, then that of a specification, which has no subcommand to ask."""
        super().format_help(ctx, formatter)
        spec = self.commands["spec"]
        spec.format_help(spec.context_class(spec, info_name="spec.yaml", parent=ctx), formatter)

    def _of_specification(self, args: list[str]) -> bool:
        """Whether a file is the first word that is neither an option of a specification's run nor its value."""
        options = [option for option in self.commands["spec"].params if option.param_type_name == "option"]
        takes_value = {name: not getattr(option, "is_flag", False) for option in options for name in option.opts}
        words = iter(args)
        for word in words:
            name, equals, _ = word.partition("=")
            if name == "--repeat":
                return True
            if name not in takes_value:
                return not word.startswith("-") and Path(word).suffix in SPECS
            if takes_value[name] and not equals:
                next(words, None)
        return False


def run_spec(
    *,
    spec: Annotated[Path | None, typer.Argument(help="A YAML or JSON file; `avjax schema` describes it.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, such as grid.layers.width=8.")] = None,
    store: Annotated[str | None, typer.Option(help="In place of the specification's store.")] = None,
    shard: Annotated[str, typer.Option(help="I/N: compute only the I-th of N shards, counted from 0.")] = "0/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run will cost, and stop.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Put damaged parts aside and compute them again.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Join the processes that Slurm, GKE, MPI or a TPU VM has started.")
    ] = False,
    resources: Resources,
    log_json: Annotated[
        str | None, typer.Option(help="A file that gets a line of JSON for each event; '-' is standard error.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="A directory for a trace of jax's profiler.")] = None,
    repeat: Annotated[
        str | None, typer.Option(help="A run, or its run.json, to run again into --store; reports which cells differ.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="With --repeat: largest difference allowed, relative to the larger of 1 and the old value."),
    ] = 1e-5,
) -> None:
    """Run a specification; cells that its store holds are not computed again.

    Exit status: 0, all cells are there; 2, nothing was run, for the reason given; 3, some clips failed, the
    others are there; 4, with --repeat, cells differ; 74, the store or the log cannot be written (a full disk); 75, it
    was asked to stop (SIGTERM, Ctrl-C). After 74 and 75, run it again to continue.
    """
    asked_for_more = dry_run or repair or distributed or log_json or profile or repeat is not None
    with exit_with_message(), _preempted():
        receipt = None if asked_for_more else _receipt(resources, [spec, overrides, store, shard])
        if receipt is not None and (finished := receipt.store()) is not None:
            _report_end(finished, computed=0, failed=0)
            return
    with exit_with_message(), _preempted(), resources.applied():
        from avjax.cli.tables import print_plan
        from avjax.devices.processes import everyone
        from avjax.runs.prepare import prepare_run
        from avjax.runs.store import Store

        words = [] if resources.memory_bytes is None else [f"memory_bytes={resources.memory_bytes}"]
        began = None if receipt is None or spec is None else _state([spec])
        if repeat is not None:
            import avjax

            avjax.cache_encodings(None)  # done again, not read again
        read, place, before = _specification(spec, repeat, [*(overrides or []), *words], store)
        share = _share(shard)
        if distributed:
            if repeat is not None and store is None:
                raise ValueError("--repeat --distributed: expected --store, which all processes share; add it")
            read = _joined(read)
        files = None if began is None else _files(began, read)
        prepared = prepare_run(read)
        if dry_run:
            print_plan(prepared.plan(share))
            return
        with contextlib.ExitStack() as stack:
            if repeat is not None:
                place = store or stack.enter_context(tempfile.TemporaryDirectory())
            if place is None:
                raise ValueError(f"{spec}: expected a store, got none; add 'store: DIRECTORY' or pass --store")
            run = Store(place)
            with _writable():
                everyone().run_together(lambda: _check_parts(run, repair))
            outcome = _executed(prepared, run, share, log_json, profile)
            if before is not None and not outcome.stopped and run.parts():
                _report_differences(before, run, prepared.run.places(share), tolerance)
        if receipt is not None and files is not None and not (outcome.stopped or outcome.failed):
            names = ([block.name for block in prepared.run.blocks(of)] for of in (share, (0, 1)))
            receipt.write(run, *files, *names)
        named = place if repeat is None else store or repeat  # not a temporary directory, which is gone
        _report_end(named, outcome.computed, len(outcome.failed))
        if outcome.stopped:
            typer.echo("stopped before the end; run it again to continue", err=True)
            raise typer.Exit(RESUME)
        if outcome.failed:
            raise typer.Exit(FAILED)


def _report_end(place: str | None, computed: int, failed: int) -> None:
    typer.echo(f"{place}: {computed:,} cells computed, {failed} clips failed", err=True)


def _receipt(resources: Resources, words: Any) -> Any:
    """The receipt of this command; None where nothing is cached."""
    from avjax.runs.receipts import Receipt

    directory = resources.cache_directory()
    return None if directory is None else Receipt(directory, words)


def _state(files: list[Path]) -> Any:
    from avjax.runs.receipts import state

    return state(files)


def _files(spec: Any, read: Any) -> Any:
    """The checkpoint's directory, and the state of all that a run is made of; None when the checkpoint is the hub's.

    Args:
      spec: the state of the specification before it was read.
    """
    from avjax.checkpoint.builtin import builtin_directory
    from avjax.checkpoint.files import checkpoint_files

    checkpoint = builtin_directory(read.model) or Path(read.model)
    if not checkpoint.is_dir():
        return None
    table = _state([read.directory / read.clips] if isinstance(read.clips, str) else [])  # before it is read
    return checkpoint, {**_state([*read.files(), *checkpoint_files(checkpoint)]), **table, **spec}


def _specification(
    spec: Path | None, repeat: str | None, overrides: list[str], store: str | None
) -> tuple[Any, str | None, Any]:
    """What is run, the store of a specification, and the run that is repeated.

    Raises:
      ValueError: there is no specification and no run to repeat, or both; or one cannot be used.
    """
    from avjax.runs.repeat import check_comparable, run_to_repeat, spec_of_run

    if repeat is not None and spec is not None and "=" in str(spec):
        spec, overrides = None, [str(spec), *overrides]
    if (spec is None) == (repeat is None):
        got = "neither" if spec is None else "both"
        raise ValueError(f"run: expected a specification or --repeat, got {got}; give one of them")
    if spec is not None:
        return *_read(spec, overrides, store), None
    before = run_to_repeat(str(repeat), other_than=store)
    read = spec_of_run(before, overrides)
    check_comparable(before)
    return read, None, before


def _read(file: Path, overrides: list[str], store: str | None) -> tuple[Any, str | None]:
    """A specification and its store; one on the command line is relative to here, one in a file to the file."""
    from avjax.runs.spec.spec import Spec

    read = Spec.read(file, overrides)
    beside = read.store
    if beside is not None and "://" not in beside:
        beside = str(read.directory / Path(beside).expanduser())
    return read, store or beside


def _check_parts(store: Any, repair: bool) -> None:
    """Refuses parts that cannot be used, or puts them aside."""
    from avjax.runs.reading import unusable

    damaged = unusable(store)
    if repair:
        for part in store.put_aside(damaged):
            typer.echo(f"put aside: {part}", err=True)
    elif damaged:
        raise ValueError(
            "\n".join(
                [
                    f"{store.path}: expected undamaged parts of this run, got those below; --repair puts them "
                    "aside and computes their cells again:",
                    *map(str, damaged),
                ]
            )
        )


def _executed(prepared: Any, store: Any, share: tuple[int, int], log_json: str | None, profile: Path | None) -> Any:
    from avjax.devices.processes import everyone
    from avjax.runs.events import silent, to_lines

    with contextlib.ExitStack() as stack:
        with _writable():  # in all processes, or in none
            tell = everyone().run_together(
                lambda: silent if log_json is None else stack.enter_context(to_lines(log_json))
            )
        if profile is not None:
            import jax

            stack.enter_context(jax.profiler.trace(str(profile)))
        stop = stack.enter_context(_stopping())
        with _writable():
            outcome = prepared.execute(store, shard=share, stop=stop, tell=tell)
    for sample, reason in outcome.failed.items():
        typer.secho(f"failed: {sample}: {reason}", fg=typer.colors.RED, err=True)
    return outcome


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    """One message and an exit status of its own where a store or a log cannot be written."""
    from avjax.runs.store import StoreError

    try:
        yield
    except StoreError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(UNWRITTEN) from error


def _report_differences(before: Any, after: Any, among: Any, tolerance: float) -> None:
    from avjax.cli.tables import print_rows
    from avjax.runs.compare import compare

    differences = compare(before, after, among=among)
    for line in differences.about:
        typer.echo(f"differs: {line}")
    typer.echo(f"{differences.cells:,} cells in both runs, {differences.equal:,} bit-identical")
    for count, which in ((differences.missing, "earlier"), (differences.added, "new")):
        if count:
            typer.echo(f"{count:,} cells only in the {which} run")
    if differences.differing:
        rows = [
            {k: textwrap.shorten(str(v), WIDTH) for k, v in vars(one).items()} for one in differences.differing[:SHOWN]
        ]
        print_rows(rows, ("sample", "cell", "metric", "before", "after", "absolute", "relative"))
        typer.echo(f"{len(differences.differing):,} values differ, the {len(rows)} largest are shown")
    if not differences.within(tolerance):
        raise typer.Exit(DIFFERENT)


def schema() -> None:
    """Print the JSON schema of a run's specification, for editors."""
    from avjax.runs.spec.spec import Spec

    typer.echo(json.dumps(Spec.model_json_schema(), indent=2))


@runs.command("ls")
def list_runs(
    directory: Annotated[Path, typer.Argument(help="Directory to search for runs.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the runs under a directory."""
    with exit_with_message():
        from avjax.cli.tables import print_rows
        from avjax.runs.reading import summary

        summaries = []
        for file in sorted(directory.rglob("run.json")):
            try:
                summaries.append(summary(file.parent))
            except ValueError as error:  # another program's, or a damaged one; the others are listed
                typer.secho(f"not listed: {error}", fg=typer.colors.RED, err=True)
        if as_json:
            typer.echo(json.dumps(summaries, indent=2))
        else:
            print_rows(summaries, ("store", "checkpoint", "samples", "cells", "done", "failed"))


@runs.command()
def show(
    store: StorePath, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Show what a run holds, what is missing and what failed."""
    with exit_with_message():
        from avjax.cli.tables import print_rows
        from avjax.runs.reading import summary
        from avjax.runs.store import Store

        held, failures = summary(store), list(Store(store).failures().values())
        if as_json:
            typer.echo(json.dumps(held | {"failures": failures}, indent=2))
            return
        print_rows([held], ("store", "checkpoint", "samples", "cells", "done", "failed"))
        ranges = [f"{name} {' - '.join(map(str, dict.fromkeys(ends)))}" for name, ends in held["tokens"].items()]
        if ranges:
            typer.echo(f"tokens of each clip: {', '.join(ranges)}")
        for failure in failures:
            typer.echo(f"failed: {failure['sample']}: {failure['reason']}")


@runs.command()
def export(
    store: StorePath,
    out: Annotated[Path, typer.Argument(help="A .csv, .parquet, or .nc or .zarr (xarray) to write; must not exist.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Write an unfinished run too, with the cells that it has.")
    ] = False,
) -> None:
    """Write all cells as one table (.csv, .parquet), or as a labelled dataset (.nc, .zarr)."""
    with exit_with_message():
        from avjax.runs.export import export as write
        from avjax.runs.store import Store

        typer.echo(f"{out}: {write(Store(store), out, partial=partial)}")


@runs.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores of one run.")],
    into: Annotated[str, typer.Option(help="Store to merge into, new or begun.")],
) -> None:
    """Put the cells of several stores of one run, such as shares of several machines, into one.

    Exit status: 0; 2, the stores are not of one run; 74, the one store cannot be written (a full disk). After 74, merge
    again to continue.
    """
    with exit_with_message(), _writable():
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


@contextlib.contextmanager
def _preempted() -> Iterator[None]:
    """SIGTERM while a model is loaded says "resume me" too."""

    def leave(number: int, frame: Any) -> None:
        typer.echo("stopped before anything was computed; run it again to continue", err=True)
        raise SystemExit(RESUME)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
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
