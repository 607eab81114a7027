"""The known word that is nearest to one that is not known, for "did you mean"."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6  # of difflib's ratio: "logitdiff" and "answr" have a neighbour, "banana" has none


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word that is most like this one, whatever its case and separators; None where none is alike."""
    if not isinstance(word, str):
        return None
    by_plain = {_plain(name): str(name) for name in known}
    plain = _plain(word)
    matches = difflib.get_close_matches(plain, by_plain, n=3, cutoff=CUTOFF)
    swapped = [match for match in matches if sorted(match) == sorted(plain)]  # letters in another order come first
    return by_plain[(swapped or matches)[0]] if matches else None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'KNOWN'?` for the end of a message, or nothing."""
    name = nearest(word, known)
    return "" if name is None else f"; did you mean {name!r}?"


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "").replace(" ", "")
