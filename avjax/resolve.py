"""Patches from another prompt: that prompt is run once and its activations take its place."""

from collections.abc import Sequence

from avjax.interventions import Edit, Patch
from avjax.model import Model
from avjax.prompt import Prompt


def resolved(model: Model, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits, with each source prompt replaced by its clean run."""
    return tuple(_resolved(model, edit) for edit in edits)


def _resolved(model: Model, edit: Edit) -> Edit:
    if not isinstance(edit, Patch) or not isinstance(edit.source, Prompt):
        return edit
    from avjax.api import run  # which resolves its own edits here

    cache = model.host.runs
    key = (id(edit.source), edit.site)
    found = cache.get(key)  # the cache alone would not keep a run that was just made
    if found is None:
        found = cache[key] = run(model, edit.source, capture=[edit.site])
    return edit.replaced(source=found)
