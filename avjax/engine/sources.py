"""What patches, ablations and steering put in place of activations: checked and aligned now, computed later.

Axes: L layer, T position of this prompt, D embed, N heads, K kv heads, H head dim.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from avjax.devices.mesh import mesh_of
from avjax.edits.edits import Ablate, Patch, Steer
from avjax.engine.clean_runs import CleanRuns
from avjax.models.config import DecoderConfig
from avjax.models.sites import Site, site_shape
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import select


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Activations to mix in.

    Attributes:
      key: sources of one key hold the same values, so that variants share them.
      values: what gives [L, n, ...], n positions that `rows` points at; or [L, ...] when `rows` is None, the same
        everywhere. It may run a clean pass, so nothing calls it before a whole sweep has been checked.
      rows: int [T]; which of the n positions stands in for each position of this prompt, -1 for none.
      needs: the clean pass, and its site, that the values are made of.
    """

    key: tuple[Any, ...]
    values: Callable[[], Any]
    rows: np.ndarray | None
    needs: tuple[Prompt, Site] | None = None


def steer_source(edit: Steer, site: Site, config: DecoderConfig) -> Source:
    vector = _finite(np.asarray(edit.vector), "vector")
    shape = site_shape(site, config)
    if vector.ndim == 1 and vector.size == np.prod(shape):  # heads one after the other, as probes have them
        vector = vector.reshape(shape)
    if vector.shape == shape:
        vector = np.broadcast_to(vector, (config.num_layers, *shape))
    if vector.shape != (config.num_layers, *shape):
        raise ValueError(
            f"expected a vector {list(shape)} or one per layer {[config.num_layers, *shape]} at {site}, got "
            f"{list(vector.shape)}"
        )
    return Source(key=("vector", _digest(vector)), values=lambda: vector, rows=None)


def patch_source(
    edit: Patch,
    site: Site,
    where: np.ndarray,
    prompt: Prompt,
    config: DecoderConfig,
    clean: CleanRuns,
    num_decoded: int,
) -> Source:
    if isinstance(edit.source, str):
        if edit.source != "mean":
            raise ValueError(f"expected a source run, prompt, array or 'mean', got {edit.source!r}")
        return _mean(prompt, site, where, clean)
    refuse_generated(where, num_decoded)
    positions = np.flatnonzero(where[:-1])
    shape = site_shape(site, config)
    captures, origin = getattr(edit.source, "captures", None), getattr(edit.source, "prompt", None)
    needs = None
    if isinstance(edit.source, Prompt):
        source = edit.source
        if source.made_for != prompt.made_for:
            raise ValueError("the source prompt was made for another architecture; make it with this model's methods")
        needs = (source, site)
        aligned = positions if source is prompt else align(edit, where, prompt, source)
        values = functools.partial(_clean, clean, source, site)
    elif captures is None:
        array, aligned = _array(edit.source, site, shape, positions, len(prompt), config)
        values = functools.partial(_from_any_mesh, array)
    else:
        captured = _layered(_captured(captures, site), site)
        _check_width(captured, shape, site, config)
        aligned = positions if origin is None or origin is prompt else align(edit, where, prompt, origin)
        if len(aligned) and aligned.max() >= captured.shape[1]:
            raise ValueError(f"expected a source of at least {aligned.max() + 1} positions, got {captured.shape[1]}")
        values = functools.partial(_from_any_mesh, captured)
    rows = np.full(len(prompt), -1)
    rows[positions] = aligned
    return Source(key=("dense", id(edit.source), site), values=values, rows=rows, needs=needs)


def align(edit: Patch, where: np.ndarray, prompt: Prompt, origin: Prompt) -> np.ndarray:
    """For each selected position of `prompt`, its counterpart in `origin`: the n-th of the same modality and selector.

    Raises:
      ValueError: the two prompts have different numbers of such tokens.
    """
    there = select(origin, edit.where)[:-1]
    here = where[:-1]
    rows = np.full(len(prompt), -1)
    for kind in np.unique(np.concatenate([prompt.kinds[here], origin.kinds[there]])):
        mine, theirs = (np.flatnonzero(m & (p.kinds == kind)) for m, p in ((here, prompt), (there, origin)))
        if len(mine) != len(theirs):
            raise ValueError(
                f"the prompts cannot be aligned: {edit.where} has {len(mine)} tokens of one modality here and "
                f"{len(theirs)} in the source; make both prompts from clips of the same length and size, with the same "
                "opening, or patch a selector that has equally many tokens in both"
            )
        rows[mine] = theirs
    return rows[here]


def ablation_source(
    edit: Ablate, site: Site, where: np.ndarray, prompt: Prompt, clean: CleanRuns, num_decoded: int
) -> Source:
    if edit.mode == "mean":
        return _mean(prompt, site, where, clean)
    refuse_generated(where, num_decoded)
    positions = np.flatnonzero(where[:-1])
    rows = np.full(len(where) - 1, -1)
    if edit.mode == "resample":
        if len(positions) < 2:
            raise ValueError(f"expected at least 2 tokens to resample from, got {len(positions)}")
        # A random cycle: no token keeps its own activation.
        order = _drawn(edit, prompt, where).permutation(positions)
        rows[order] = np.roll(order, 1)
        values, needs = functools.partial(_clean, clean, prompt, site), (prompt, site)
        return Source(key=("resample", site, edit.seed, where.tobytes()), values=values, rows=rows, needs=needs)

    def noise() -> np.ndarray:
        host = np.asarray(_clean(clean, prompt, site), np.float32)
        spread = host[:, positions].std(axis=tuple(range(1, host.ndim)), keepdims=True)
        unit = _drawn(edit, prompt, where, site).normal(size=(host.shape[0], len(positions), *host.shape[2:]))
        return edit.noise * spread * unit.astype(np.float32)

    rows[positions] = np.arange(len(positions))
    key = ("noise", site, edit.seed, edit.noise, where.tobytes())
    return Source(key=key, values=noise, rows=rows, needs=(prompt, site))


def _drawn(edit: Ablate, prompt: Prompt, where: np.ndarray, site: str = "") -> np.random.Generator:
    """Of the seed, the prompt and the place: samples and places must not share their draws."""
    digest = hashlib.blake2b(prompt.fingerprint + where[:-1].tobytes() + site.encode(), digest_size=16).digest()
    return np.random.default_rng([edit.seed, *np.frombuffer(digest, np.uint32).tolist()])


def _clean(clean: CleanRuns, prompt: Prompt, site: Site) -> Any:
    return _layered(clean(prompt, site), site)


def _layered(values: Any, site: Site) -> Any:
    """The embedding as one layer's."""
    return values[None] if site is Site.EMBED else values


def _mean(prompt: Prompt, site: Site, where: np.ndarray, clean: CleanRuns) -> Source:
    positions = np.flatnonzero(where[:-1])
    if not len(positions):
        raise ValueError("expected prompt tokens to take the mean of, got none; select prompt tokens")

    def values() -> np.ndarray:
        return np.asarray(_clean(clean, prompt, site), np.float32)[:, positions].mean(axis=1)

    return Source(key=("mean", site, where[:-1].tobytes()), values=values, rows=None, needs=(prompt, site))


def refuse_generated(where: np.ndarray, num_decoded: int) -> None:
    if where[-1] and num_decoded:
        raise ValueError(
            "the source has no activations for generated tokens; select prompt tokens, as 'last' or 'all - generated'"
        )


def _from_any_mesh(values: Any) -> Any:
    """Arrays of a mesh by way of the host: the sample may be computed on a part of that mesh, or on another one."""
    return values if mesh_of(values) is None else np.asarray(values)


def _captured(captures: dict[Any, Any], site: Site) -> Any:
    if site not in captures:
        raise ValueError(
            f"the source run has not captured {site} (it has {', '.join(map(str, captures)) or 'nothing'}); pass "
            f"capture=['{site}'] to avjax.run"
        )
    return captures[site]


def _array(
    source: Any, site: Site, shape: tuple[int, ...], positions: np.ndarray, size: int, config: DecoderConfig
) -> tuple[Any, np.ndarray]:
    values = source if hasattr(source, "shape") else np.asarray(source)
    _finite(np.asarray(values), "source")
    if values.ndim == len(shape) + 1:
        layered = values[None]
        values = layered if site is Site.EMBED else np.broadcast_to(layered, (config.num_layers, *layered.shape[1:]))
    if values.ndim != len(shape) + 2:
        raise ValueError(
            f"expected a source [L, T, ...] or [T, ...] with {list(shape)} at each position, got {list(values.shape)}"
        )
    _check_width(values, shape, site, config)
    if values.shape[1] == size:
        return values, positions
    if values.shape[1] == len(positions):
        return values, np.arange(len(positions))
    raise ValueError(
        f"expected a source of {size} positions (the prompt) or {len(positions)} (the selected ones), got "
        f"{values.shape[1]}"
    )


def _check_width(values: Any, shape: tuple[int, ...], site: Site, config: DecoderConfig) -> None:
    if tuple(values.shape[2:]) != shape:
        raise ValueError(
            f"expected a source with {list(shape)} at each position of {site}, got {list(values.shape[2:])}"
        )
    layers = 1 if site is Site.EMBED else config.num_layers
    if values.shape[0] != layers:
        raise ValueError(f"expected a source of {layers} layers, got {values.shape[0]}")


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise ValueError(f"expected a {what} of numbers, got {array.dtype}")
    if not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"expected a finite {what}, got NaN or infinite values")
    return array.astype(np.float32)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
