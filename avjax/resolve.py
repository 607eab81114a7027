"""Patches from another prompt: that prompt is run once, and its activations take its place."""

from collections.abc import Hashable, Mapping, Sequence

from avjax.interventions import Edit, Patch
from avjax.model import Model
from avjax.prompt import Prompt


def resolved(model: Model, edits: Sequence[Edit], sample: Hashable = None) -> tuple[Edit, ...]:
    """The edits, with each source prompt replaced by its clean run.

    Args:
      sample: which entry of a source that differs by sample is meant.

    Raises:
      ValueError: a source differs by sample and has no such one.
    """
    return tuple(_resolved(model, edit, sample) for edit in edits)


def _resolved(model: Model, edit: Edit, sample: Hashable) -> Edit:
    if not isinstance(edit, Patch):
        return edit
    if isinstance(edit.source, Mapping):
        if sample not in edit.source:
            raise ValueError(
                f"rule {edit}: its source is by sample and has none for {sample!r}; it has "
                f"{', '.join(map(repr, edit.source)) or 'nothing'}"
            )
        edit = edit.replaced(source=edit.source[sample])
    if not isinstance(edit.source, Prompt):
        return edit
    from avjax.api import run  # which resolves its own edits here

    cache, key = model.host.runs, (id(edit.source), edit.site)
    found = cache.get(key)
    if found is None:
        found = run(model, edit.source, capture=[edit.site])
        cache[key] = found
    return edit.replaced(source=found)
