"""A run's specification: one validated object, from Python, YAML or JSON.

model: tiny-av
prompt: Describe what you see and hear.
clips: clips.csv        # or a list
grid: {edit: knockout, query: answer, key: {axis: [audio, video]}, layers: {width: 4}}
metrics: [{metric: log_prob, answer: "{sound}"}]
store: run
"""

import copy
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationError, field_validator, model_validator

from avjax.edits import grids
from avjax.nearest import did_you_mean, nearest
from avjax.runs.captures import SITES
from avjax.runs.run import CELLS_PER_BLOCK
from avjax.runs.spec.edits import EDITS, GridOrEdits, Strict, Text, Tokens, Values, Windows, build_grid
from avjax.runs.spec.metrics import METRICS, AnyMetric

MEDIA = ("video", "audio", "image")


class Clip(Strict):
    """A sample: its files, relative to the specification or the table, and what else is known of it."""

    name: Text | int | None = Field(None, description="By default the file's name without its ending.")
    video: Text | None = None
    audio: Text | None = Field(
        None,
        description="A sound file, 'from_video' or 'none'; by default the video's own, if model and file have it.",
    )
    image: Text | list[Text] | None = None
    labels: dict[str, str | int | float] = Field({}, description="For the {names} in prompt, opening and answers.")

    @field_validator("audio", mode="before")
    @classmethod
    def _null_is_silence(cls, audio: Any) -> Any:
        """As `audio=None` in Python; a clip that does not mention its sound is heard."""
        return "none" if audio is None else audio

    @model_validator(mode="after")
    def _has_media(self) -> Self:
        if not any(getattr(self, kind) not in (None, "none", []) for kind in MEDIA):
            names = f"(labels: {', '.join(self.labels) or 'none'})"
            hint = next((hint for label in self.labels if (hint := did_you_mean(label, MEDIA))), "")
            raise ValueError(f"expected video, audio or image, got none {names}{hint}")
        return self

    @property
    def sample(self) -> str | int:
        if self.name is not None:
            return self.name
        files = [self.image] if isinstance(self.image, str) else self.image or []
        return Path(self.video or self.audio or files[0]).stem


class Media(Strict):
    """How clips are sampled and resized; by default as the checkpoint says."""

    fps: int | float | None = Field(None, gt=0, description="Video frames per second.")
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    media: Literal["avjax", "qwen-omni-utils"] | None = Field(
        None, description="How files are read: as players show them, the default, or as that package reads them."
    )
    sync: Literal["clock", "published"] | None = Field(
        None,
        description="How a video's sound lies under its picture: by the file's clock, or as published code has it.",
    )


class Capture(Strict):
    """Activations that are kept of every cell, a forward pass each; `captures/BLOCK.zarr` beside the cells."""

    sites: Annotated[list[Literal[SITES]], Field(min_length=1)]  # pyright: ignore[reportInvalidTypeForm]
    at: Tokens = Field("last", description="Prompt positions.")


class MeshSizes(Strict):
    """Devices by axis, of all processes; -1, once, is what the others leave."""

    data: int = Field(1, description="Samples are dealt over it.")
    variant: int = Field(1, description="Variants of one prompt are cut over it.")
    model: int = Field(1, description="Heads, features and the vocabulary are cut over it.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sizes = [self.data, self.variant, self.model]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError("expected sizes of at least 1, or -1 once for what the others leave")
        return self


class Spec(Strict):
    """A run: a grid of edits on clips, and what is read of each cell."""

    model: Text = Field(description="tiny-av, tiny-vl, a checkpoint's directory, or a hub id.")
    prompt: Text = Field(description="The user's words; may hold {labels} of each clip.")
    system: str | None = Field(None, description="The system turn; by default the chat template's.")
    order: Literal["media-first", "text-first"] = Field(
        "media-first", description="text-first: the words before the clip, as the paper's published script has them."
    )
    positions: Literal["trained", "transformers-5.3"] = Field(
        "trained", description="How text after a Qwen2.5-VL video is numbered; as the weights were trained, by default."
    )
    opening: str = Field("", description="What the answer begins with, before what is measured.")
    clips: Annotated[
        Annotated[Annotated[Text, Field(description="A .csv, .json, .jsonl or .parquet table.")], Tag("<table>")]
        | Annotated[list[Clip], Tag("<list>")],
        Discriminator(lambda value: "<table>" if isinstance(value, str) else "<list>"),
    ]
    media: Media = Field(default_factory=lambda: Media.model_validate({}))
    grid: GridOrEdits
    metrics: Annotated[list[AnyMetric], Field(min_length=1)]
    capture: Capture | None = None
    executor: Literal["replay", "reference"] = "replay"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0, description="Of edits that draw and name no seed.")
    compat: Literal["published", "published-script"] | None = None
    allow_noop: bool = False
    memory_bytes: int | None = Field(None, ge=1, description="Beside the parameters; by default half of what is free.")
    decode_seconds: float = Field(300, gt=0, description="The most time that a file may take to decode.")
    block_cells: int = Field(CELLS_PER_BLOCK, ge=1, description="Cells that are computed and kept together.")
    mesh: MeshSizes | None = Field(None, description="By default one device; with --distributed, data: -1.")
    store: Text | None = Field(None, description="Where cells are kept: a directory, or gs://...")
    _directory: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _compat_without_opening(self) -> Self:
        if self.compat is not None and self.opening:
            raise ValueError(
                f"compat: {self.compat} expected no opening, in which a blocked query would read later tokens; remove "
                "one of them"
            )
        return self

    @field_validator("clips")
    @classmethod
    def _named_once(cls, clips: Any) -> Any:
        if isinstance(clips, list):
            names = [clip.sample for clip in clips]
            if not names:
                raise ValueError("expected at least one clip, got none")
            if twice := _twice(names):
                raise ValueError(f"expected each clip once, got {twice[0]!r} twice; give one of them another name")
        return clips

    @property
    def directory(self) -> Path:
        """That files are relative to."""
        return self._directory

    def with_mesh(self, **sizes: int) -> Self:
        """The same on another mesh; see `MeshSizes`."""
        return self.model_copy(update={"mesh": MeshSizes.model_validate(sizes)})

    def plain(self) -> dict[str, Any]:
        """In plain values, with what was left to defaults."""
        return self.model_dump(mode="json", exclude_none=True)

    def build_grid(self) -> grids.Grid:
        """Raises ValueError when an edit cannot be as it is given."""
        given = self.grid if isinstance(self.grid, list) else [self.grid]
        return build_grid(given, self.directory, self.seed)

    def all_clips(self) -> list[Clip]:
        """The clips, from their table where there is one, whose files are relative to it.

        Raises:
          ValueError: the table cannot be read, or a row is no clip.
        """
        if isinstance(self.clips, list):
            return self.clips
        path = self.directory / self.clips
        rows = [_clip_of(row, Path(self.clips).parent) for row in _rows(path)]
        try:
            return Spec.model_validate({**self.model_dump(), "clips": rows}).clips  # pyright: ignore[reportReturnType]
        except ValidationError as error:
            raise ValueError(_explained(error, str(path))) from error

    @classmethod
    def of(
        cls, given: Mapping[str, Any], directory: str | Path = ".", source: str = "spec", overrides: Sequence[str] = ()
    ) -> Self:
        """From plain values.

        Args:
          overrides: such as "grid.layers.width=8"; values are YAML.

        Raises:
          ValueError: a key is unknown or missing, or a value is not as it must be; all of them are named. Or an
            override names nothing.
        """
        import yaml

        values = copy.deepcopy(dict(given))
        for text in overrides:
            key, value = _assignment(text)
            try:
                _override(values, key, yaml.load(value, _loader()))
            except yaml.YAMLError as error:
                raise ValueError(f"override {text!r}: expected a value as in YAML, got {error}") from error
        try:
            made = cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(_explained(error, source)) from error
        made._directory = Path(directory)
        made.build_grid()  # refuses what only the edits themselves know
        return made

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """From a YAML or JSON file.

        Args:
          overrides: see `of`.

        Raises:
          ValueError: the file is no specification, has a key twice, or an override names nothing.
          FileNotFoundError: there is no such file.
        """
        import yaml

        path = Path(path)
        try:
            if path.suffix == ".json":
                given = json.loads(path.read_text(), object_pairs_hook=_pairs)
            else:
                given = yaml.load(path.read_text(), _loader())
        except (yaml.YAMLError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected YAML or JSON, got {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f"{path}: expected keys and values, got {type(given).__name__}")
        return cls.of(given, path.parent, str(path), overrides)


def _loader() -> Any:
    """YAML's safe loader, but a key that occurs twice is a mistake."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := _twice(keys):
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {twice[0]!r} twice, in what begins at line {line}; keep one of them")
            return super().construct_mapping(node, deep)

    numbers = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # of YAML 1.2, such as 1e-3
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", numbers, list("-+.0123456789"))
    return Loader


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which a key that occurs twice is a mistake."""
    if twice := _twice(key for key, _ in pairs):
        raise json.JSONDecodeError(f"the key {twice[0]!r} twice; keep one of them", "", 0)
    return dict(pairs)


def _twice(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise ValueError(f"override {text!r}: expected KEY=VALUE, such as grid.layers.width=8")
    return key, value


def _override(given: Any, key: str, value: Any) -> None:
    """Sets a value by its path; what lies on the way must be there, or be a key that is left out."""
    *parents, last = key.split(".")
    place = given
    for step in parents:
        if isinstance(place, list) and step.isdigit() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict):
            place = place.setdefault(step, {})
        else:
            raise ValueError(f"override {key!r}: expected a key that the specification has, got {step!r}")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"override {key!r}: expected a key that the specification has, got {last!r}")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"clips: expected a table, got no file {path}")
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if twice := _twice(reader.fieldnames or ()):
                raise ValueError(f"{path}: expected columns of different names, got {twice[0]!r} twice; rename one")
            rows: list[Any] = [{k: v for k, v in row.items() if v not in ("", None)} for row in reader]
    elif path.suffix == ".json":
        rows = json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(path).to_pylist()]
    else:
        raise ValueError(f"clips: expected a .csv, .json, .jsonl or .parquet table, got {path}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of rows with names")
    return rows


def _clip_of(row: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A row's other columns are labels."""
    own = {key: row[key] for key in ("name", *MEDIA, "labels") if row.get(key) is not None}
    if "audio" in row:  # a table of JSON says null where a clip is silent
        own["audio"] = row["audio"]
    if not isinstance(own.get("labels", {}), Mapping) or None in row:
        raise ValueError(f"clips: expected as many columns as names, and labels with names, got the row {dict(row)}")
    labels = {key: value for key, value in row.items() if key not in own and value is not None}
    files = {kind: _beside(directory, own[kind]) for kind in MEDIA if kind in own}
    return own | files | {"labels": {**labels, **own.get("labels", {})}}


def _beside(directory: Path, given: Any) -> Any:
    if isinstance(given, list):
        return [_beside(directory, one) for one in given]
    return str(directory / given) if isinstance(given, str) and given not in ("auto", "from_video", "none") else given


def _explained(error: ValidationError, source: str) -> str:
    """Every mistake in a line: the key, what was expected, what came, and the nearest right spelling."""
    lines = [_line(one) for one in error.errors(include_url=False)]
    return "\n".join([f"{source}: not a specification of a run:", *dict.fromkeys(lines)])


def _line(mistake: Any) -> str:
    loc, given, context = mistake["loc"], mistake["input"], mistake.get("ctx", {})
    key = ".".join(str(step) for step in loc if not _is_tag(step))
    message = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    got, hint = _short(given), ""
    match mistake["type"]:
        case "extra_forbidden":
            message, hint = "expected no such key", did_you_mean(loc[-1], _keys_at(loc))
        case "missing":
            message, got = "expected a value", "none"
        case "union_tag_invalid":
            message = f"expected {context['discriminator']} among {context['expected_tags']}"
            got, hint = repr(context["tag"]), did_you_mean(context["tag"], _quoted(context["expected_tags"]))
        case "union_tag_not_found":
            name = context["discriminator"].strip("'")
            like = nearest(name, given) if isinstance(given, dict) else None
            message = f"expected a key {name!r}" + ("" if isinstance(given, dict) else _as_in(loc))
            hint = "" if like is None else f"; did you mean {name!r} by {like!r}?"
        case "literal_error":
            known = [str(site) for site in SITES] if loc[:2] == ("capture", "sites") else _quoted(context["expected"])
            message, hint = f"expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}", did_you_mean(given, known)
        case "model_attributes_type" | "model_type" | "dict_type":
            message = f"expected keys and values{_as_in(loc)}"
        case "list_type":
            message = f"expected a list{_as_in(loc, of=True)}"
    return f"  {key or 'spec'}: {message}, got {got}{hint}"


_EXAMPLES = {
    "metrics": "{metric: log_prob, answer: siren}",
    "clips": "{video: clip.mp4}",
    "grid": "{edit: knockout, query: answer, key: video}",
    "media": "{fps: 2}",
    "capture": "{sites: [resid_post], at: last}",
    "mesh": "{data: -1}",
    "sites": "resid_post",
    "axis": "audio, video",
}


def _as_in(loc: Sequence[Any], of: bool = False) -> str:
    """An example of what stands at a place; `of`: in a list."""
    name = next((step for step in reversed(loc) if isinstance(step, str) and not _is_tag(step)), "")
    if name not in _EXAMPLES:
        return ""
    return f", such as [{_EXAMPLES[name]}]" if of else f", such as {_EXAMPLES[name]}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _keys_at(loc: Sequence[Any]) -> list[str]:
    """The keys that may stand beside a place's last one."""
    classes = _classes()
    owner = next((classes[step] for step in reversed(loc[:-1]) if step in classes), Spec)
    return [*owner.model_fields]


def _classes() -> dict[Any, type[Strict]]:
    """By the step of a place that stands for it: a key, or the tag of a branch of a union."""
    sections: dict[Any, type[Strict]] = {"media": Media, "capture": Capture, "mesh": MeshSizes, "<list>": Clip}
    return sections | {"<axis>": Values, "<windows>": Windows} | {_tag(kind): kind for kind in (*EDITS, *METRICS)}


def _tag(kind: type[Strict]) -> str:
    """The value by which a union tells the class."""
    field = kind.model_fields["edit" if "edit" in kind.model_fields else "metric"]
    return get_args(field.annotation)[0]


def _is_tag(step: Any) -> bool:
    """Steps that pydantic adds for the branch of a union."""
    return isinstance(step, str) and (step[:1] == "<" or step in _TYPES)


# Branches that are told apart by a field's value.
_TYPES = {_tag(kind) for kind in (*EDITS, *METRICS)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
