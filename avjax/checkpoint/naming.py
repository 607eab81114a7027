"""How a checkpoint spells the published names: the prefixes of whole checkpoints, and of other writers."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from avjax.families.key_rules import Table


@dataclasses.dataclass(frozen=True)
class Naming:
    """A checkpoint's own spelling.

    Attributes:
      prefix: before every name, "thinker." in a whole Omni checkpoint.
      spellings: published prefix to this checkpoint's, where they differ.
    """

    prefix: str = ""
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def spelled(self, published: str) -> str:
        """The name that a published one has in this checkpoint."""
        for start, own in self.spellings.items():
            if published.startswith(start):
                return self.prefix + own + published.removeprefix(start)
        return self.prefix + published


def read_naming(table: Table, names: Iterable[str]) -> Naming:
    """The spelling of a checkpoint, from its tensors' names.

    Parts are spelled one way throughout: that of most tensors. Others stay unread, and are reported by name.
    """
    names = list(names)
    prefix = table.prefix if table.prefix and any(name.startswith(table.prefix) for name in names) else ""
    published = {own: start for start, others in table.spellings.items() for own in (start, *others)}
    longest_first = sorted(published, key=len, reverse=True)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name in names:
        stripped = name.removeprefix(prefix)
        own = next((start for start in longest_first if stripped.startswith(start)), None)
        if own is not None:
            counts[published[own]][own] += 1
    most = {start: counter.most_common(1)[0][0] for start, counter in counts.items()}
    return Naming(prefix, {start: own for start, own in most.items() if own != start})
