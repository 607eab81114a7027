"""A run's specification: one validated object, from Python, YAML or JSON.

model: tiny-av
prompt: Describe what you see and hear.
clips: clips.csv        # or a list
grid: {edit: knockout, query: answer, key: {axis: [audio, video]}, layers: {width: 4}}
metrics: [{metric: log_prob, answer: "{sound}"}]
store: run
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationError, field_validator, model_validator

from avjax.edits import grids
from avjax.runs.captures import SITES
from avjax.runs.run import CELLS_PER_BLOCK
from avjax.runs.spec.clips import WORDS, Clip, read_table
from avjax.runs.spec.edits import GridOrEdits, Strict, Text, Tokens, build_grid
from avjax.runs.spec.metrics import AnyMetric
from avjax.runs.spec.mistakes import explained
from avjax.runs.spec.values import overridden, read_values, repeated


class Media(Strict):
    """How clips are sampled and resized; by default as the checkpoint says."""

    fps: int | float | None = Field(None, gt=0, description="Video frames per second.")
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    media: Literal["avjax", "qwen-omni-utils"] | None = Field(
        None, description="How files are read: as players show them (avjax, the default), or as qwen-omni-utils does."
    )
    sync: Literal["clock", "published"] | None = Field(
        None,
        description="How a video's sound is placed: by the file's timestamps (clock), or without gaps (published).",
    )


class Capture(Strict):
    """Activations that are kept of every cell, a forward pass each; `captures/BLOCK.zarr` beside the cells."""

    sites: Annotated[list[Literal[SITES]], Field(min_length=1)]  # pyright: ignore[reportInvalidTypeForm]
    at: Tokens = Field("last", description="Prompt positions.")


class MeshSizes(Strict):
    """Devices along each axis, over all processes; one may be -1, for all remaining devices."""

    data: int = Field(1, description="Devices that samples are distributed over.")
    variant: int = Field(1, description="Devices that the variants of one prompt are distributed over.")
    model: int = Field(1, description="Devices that heads, features and the vocabulary are sharded over.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sizes = [self.data, self.variant, self.model]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError("expected sizes of at least 1, with at most one -1 for all remaining devices")
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
    opening: str = Field("", description="Text that starts the answer, before the scored words.")
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
    seed: int = Field(0, ge=0, description="Seed of random edits that name none.")
    compat: Literal["published", "published-script"] | None = None
    allow_noop: bool = False
    memory_bytes: int | None = Field(
        None, ge=1, description="Memory on top of the parameters; by default half of what is free."
    )
    decode_seconds: float = Field(300, gt=0, description="Seconds allowed for decoding one file.")
    block_cells: int = Field(CELLS_PER_BLOCK, ge=1, description="Cells that are computed and kept together.")
    mesh: MeshSizes | None = Field(None, description="By default one device; with --distributed, data: -1.")
    store: Text | None = Field(None, description="Where cells are kept: a directory, or gs://...")
    _directory: Path = PrivateAttr(Path())
    _tables: dict[Path, list[Clip]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _compat_without_opening(self) -> Self:
        if self.compat is not None and self.opening:
            raise ValueError(
                f"compat: expected no opening with {self.compat}, since a blocked query would read its later tokens; "
                "remove one of them"
            )
        return self

    @field_validator("clips")
    @classmethod
    def _named_once(cls, clips: Any) -> Any:
        if isinstance(clips, list):
            names = [clip.sample for clip in clips]
            if not names:
                raise ValueError("expected at least one clip, got none")
            if twice := repeated(names):
                raise ValueError(f"expected each clip once, got {twice[0]!r} twice; give one of them another name")
        return clips

    @property
    def directory(self) -> Path:
        """The directory that files are relative to."""
        return self._directory

    def with_mesh(self, **sizes: int) -> Self:
        """The same on another mesh; see `MeshSizes`."""
        return self.model_copy(update={"mesh": MeshSizes.model_validate(sizes)})

    def plain(self) -> dict[str, Any]:
        """The specification as plain values, defaults included."""
        return self.model_dump(mode="json", exclude_none=True)

    def build_grid(self) -> grids.Grid:
        """Raises ValueError when an edit cannot be as it is given."""
        given = self.grid if isinstance(self.grid, list) else [self.grid]
        return build_grid(given, self.directory, self.seed)

    def all_clips(self) -> list[Clip]:
        """The clips, from their table where there is one, which is read once; its files are relative to it.

        Raises:
          ValueError: the table cannot be read, or a row is no clip.
        """
        if isinstance(self.clips, list):
            return self.clips
        path = self.directory / self.clips
        if path not in self._tables:
            clips = read_table(path, Path(self.clips).parent)
            try:
                whole = type(self).model_validate({**self.model_dump(), "clips": clips})
            except ValidationError as error:
                raise ValueError(explained(error, str(path), SECTIONS)) from error
            self._tables[path] = whole.all_clips()
        return self._tables[path]

    def files(self) -> list[Path]:
        """All files that the run is made of beside the checkpoint: the table, the clips, and vectors of edits."""
        edits = self.grid if isinstance(self.grid, list) else [self.grid]
        names = [self.clips] if isinstance(self.clips, str) else []
        names += [vector for edit in edits if isinstance(vector := getattr(edit, "vector", None), str)]
        for clip in self.all_clips():
            names += [clip.video, clip.audio, *([clip.image] if isinstance(clip.image, str) else clip.image or [])]
        return [self.directory / name for name in names if name not in WORDS]

    @classmethod
    def of(
        cls, given: Mapping[str, Any], directory: str | Path = ".", source: str = "spec", overrides: Sequence[str] = ()
    ) -> Self:
        """A specification from plain values.

        Args:
          overrides: such as "grid.layers.width=8"; values are YAML.

        Raises:
          ValueError: a key is unknown or missing, or a value is not as it must be; all of them are named. Or an
            override names nothing.
        """
        try:
            spec = cls.model_validate(overridden(given, overrides))
        except ValidationError as error:
            raise ValueError(explained(error, source, SECTIONS)) from error
        spec._directory = Path(directory)
        spec.build_grid()  # refuses what only the edits themselves know
        return spec

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A specification from a YAML or JSON file.

        Args:
          overrides: see `of`.

        Raises:
          ValueError: the file is no specification, has a key twice, or an override names nothing.
          FileNotFoundError: there is no such file.
        """
        path = Path(path)
        return cls.of(read_values(path), path.parent, str(path), overrides)


# Classes by the key that they stand at, or by the branch of a union; None is the whole.
SECTIONS: Mapping[Any, type[Strict]] = {
    None: Spec,
    "media": Media,
    "capture": Capture,
    "mesh": MeshSizes,
    "<list>": Clip,
}
