"""A run from its specification: clips become samples, and everything is checked before anything is computed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avjax.checkpoint.builtin import builtin_directory
from avjax.checkpoint.loading import load
from avjax.devices.mesh import mesh_of_sizes
from avjax.devices.processes import everyone
from avjax.edits.edits import Edit
from avjax.edits.grids import as_cells
from avjax.edits.identities import refuse_identities
from avjax.media.errors import MediaError
from avjax.media.isolated import IsolatedReader
from avjax.metrics import Metric
from avjax.model import Model
from avjax.prompts.layout import check_rule
from avjax.prompts.prompt import Prompt
from avjax.prompts.wording import as_keys
from avjax.runs.begin import begin
from avjax.runs.captures import Captured
from avjax.runs.events import Tell, silent
from avjax.runs.execute import Outcome, execute
from avjax.runs.identity import digest, file_digest, metric_json, model_identity
from avjax.runs.run import Sample, StoredRun
from avjax.runs.spec.clips import WORDS, Clip
from avjax.runs.spec.metrics import filled
from avjax.runs.spec.spec import Spec
from avjax.runs.store import Store
from avjax.sweeping.cost import Plan, add_passes, combine_plans, cost
from avjax.sweeping.prepare import prepare

NEXT = "add them, or correct their names in the specification or its table"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A specification whose files are there and whose edits fit the model.

    Attributes:
      fixed: what decides the values of all samples, as plain values.
      reader: decodes the clips in processes of their own.
    """

    spec: Spec
    model: Model
    run: StoredRun
    fixed: dict[str, Any]
    reader: IsolatedReader

    def execute(
        self,
        store: Store,
        *,
        shard: tuple[int, int] = (0, 1),
        stop: Callable[[], bool] = lambda: False,
        progress: bool = True,
        tell: Tell = silent,
    ) -> Outcome:
        """Computes what the store does not hold yet; clips that cannot be used are reported, and the others go on.

        Args:
          tell: is called with each event and its values, see `avjax.runs.events`.

        Raises:
          ValueError: the store holds another run.
        """
        values = self._kept_spec()
        everyone().run_together(lambda: begin(store, self.model, self.run, self.fixed, values, self.spec.directory))
        with self.reader:
            return execute(
                self.model, self.run, store, shard=shard, keep_going=True, stop=stop, progress=progress, tell=tell
            )

    def _kept_spec(self) -> dict[str, Any]:
        """Plain values; a checkpoint's directory by its whole path, so that the run can be repeated from elsewhere."""
        values = self.spec.plain()
        if builtin_directory(self.spec.model) is None and Path(self.spec.model).is_dir():
            values["model"] = str(Path(self.spec.model).absolute())
        return values

    def plan(self, shard: tuple[int, int] = (0, 1)) -> Plan:
        """What the run or a share of it costs. Decodes every clip of it.

        Raises:
          ValueError: a clip or an edit does not fit.
        """
        settings = {k: v for k, v in self.run.settings.items() if k != "executor"}
        variants: dict[int, list[list[Edit]]] = {}
        for block in self.run.blocks(shard):
            variants.setdefault(block.sample, []).extend([*edits] for edits in self.run.edits(block))
        if not variants:
            raise ValueError(f"shard {shard[0]}/{shard[1]}: it has no cells; use fewer shards, or smaller blocks")

        def one(number: int, calibrate: bool) -> Plan:
            sample, cells = self.run.samples[number], variants[number]
            prompts, metrics = {sample.name: sample.prompt()}, list(sample.metrics)
            return cost(prepare(self.model, prompts, cells, metrics, **settings), calibrate=calibrate)

        with self.reader:
            combined = combine_plans(one(number, not i) for i, number in enumerate(variants))
        captures = 0 if self.run.captured is None else sum(block.num_rows for block in self.run.blocks(shard))
        return add_passes(combined, captures, replayed=self.spec.executor == "replay")


def prepare_run(spec: Spec, model: Model | None = None) -> Prepared:
    """Loads the model, and checks that all that the specification names is there.

    Args:
      model: when it is loaded already.

    Raises:
      ValueError: a file is missing, a label is unknown, or an edit does not fit the model; all missing files are named.
    """
    everyone().run_together(
        lambda: _check_files(spec, spec.all_clips())
    )  # a process that failed alone would leave the others waiting
    mesh = None if spec.mesh is None else mesh_of_sizes(**spec.mesh.model_dump())
    loaded = model or load(spec.model, dtype=spec.dtype, mesh=mesh)
    return everyone().run_together(lambda: _prepared(spec, loaded))


def _prepared(spec: Spec, model: Model) -> Prepared:
    grid = spec.build_grid()
    refuse_identities(grid, spec.allow_noop)
    cells = as_cells(grid, model.config.decoder)
    for edit in (edit for cell in cells.cells for edit in cell.edits):
        edit.layer_indices(model.config.decoder)
        edit.head_indices(model.config.decoder)
    reader = IsolatedReader(spec.decode_seconds)
    check_rule(spec.positions, model.config)
    samples = tuple(_sample(spec, clip, model, reader) for clip in spec.all_clips())
    settings = {name: getattr(spec, name) for name in ("executor", "compat", "allow_noop", "memory_bytes")}
    fixed = model_identity(model) | {"executor": spec.executor, "compat": spec.compat, "allow_noop": spec.allow_noop}
    fixed["metrics"] = [metric.model_dump(exclude_none=True) for metric in spec.metrics]
    captured = None
    if spec.capture is not None:
        at = spec.capture.at if isinstance(spec.capture.at, str) else tuple(spec.capture.at)
        captured = Captured(sites=tuple(spec.capture.sites), at=at)
        fixed["capture"] = spec.capture.model_dump()
    run = StoredRun(
        digest=digest(fixed),
        cells=cells,
        samples=samples,
        settings=settings,
        block_cells=spec.block_cells,
        captured=captured,
    )
    return Prepared(spec=spec, model=model, run=run, fixed=fixed, reader=reader)


def _sample(spec: Spec, clip: Clip, model: Model, reader: IsolatedReader) -> Sample:
    try:
        metrics = [metric.build(clip.labels) for metric in spec.metrics]
        _check_metrics(metrics, model)
        words = {name: filled(getattr(spec, name), clip.labels, name) for name in ("prompt", "opening")}
    except (ValueError, TypeError) as error:
        raise ValueError(f"clip {clip.sample!r}: {error}") from error
    files = {
        "video": clip.video,
        "audio": "auto" if clip.audio is None else clip.audio,
        "image": [clip.image] if isinstance(clip.image, str) else clip.image,
    }
    paths = {kind: _found(spec.directory, given) for kind, given in files.items()}
    media = spec.media.model_dump(exclude_none=True)
    texts = {"text": words["prompt"], "opening": words["opening"], "system": spec.system}
    texts |= {"order": spec.order, "positions": spec.positions}
    contents = {kind: _contents(given) for kind, given in paths.items()}
    settings = [media, repr(model.processor.options)]
    deciding = [texts, contents, settings, [metric_json(metric) for metric in metrics]]

    def prompt() -> Prompt:
        try:
            return model.with_reader(reader).prompt(**texts, **paths, **media)
        except MediaError as error:
            raise MediaError(as_keys(str(error))) from error
        except ValueError as error:
            raise ValueError(as_keys(str(error))) from error

    return Sample(name=clip.sample, digest=digest(deciding), prompt=prompt, metrics=metrics)


def _check_metrics(metrics: Sequence[Metric], model: Model) -> None:
    names = [metric.name for metric in metrics]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"metrics: {twice[0]!r} occurs twice; give one of them another name")
    for metric in metrics:
        metric.read_tokens(model)
        metric.continuations(model)
        metric.attributes(model)


def _found(directory: Path, given: Any) -> Any:
    """Files by their paths from here; words such as "from_video" and nothing as they are."""
    if isinstance(given, list):
        return [_found(directory, one) for one in given]
    return given if given in WORDS else str(directory / given)


def _contents(given: Any) -> Any:
    if isinstance(given, list):
        return [_contents(one) for one in given]
    return given if given in WORDS else file_digest(Path(given))


def _check_files(spec: Spec, clips: list[Clip]) -> None:
    missing = []
    for clip in clips:
        files = [clip.video, clip.audio, *([clip.image] if isinstance(clip.image, str) else clip.image or [])]
        named = [file for file in files if file not in WORDS]
        missing += [f"  {clip.sample}: {file}" for file in named if not (spec.directory / str(file)).is_file()]
    if missing:
        shown = missing[:20] + ([f"  and {len(missing) - 20} more"] if len(missing) > 20 else [])
        raise ValueError(
            "\n".join([f"clips: expected files in {spec.directory.absolute()}, but these are missing:", *shown, NEXT])
        )
