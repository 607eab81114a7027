"""The tuned lens: one affine map per layer, trained so that its lens predicts what the model says in the end.

Source: Belrose et al. 2023. The map is x + x kernel + bias; it starts from zeros, where it is the logit lens exactly.

Axes: L layer, N position of all prompts, B batch, R row of a chunk, D embed, V vocab.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from avjax.analysis.captions import Captions
from avjax.analysis.clip_groups import BySample, described, refuse_shared_clips
from avjax.analysis.lens_positions import LensPositions, checked_site, places_of, refuse_unreadable
from avjax.analysis.lens_projection import CHUNK_BYTES, Translators, chunk_rows, padded_rows, rows_pass
from avjax.engine.overflow import refuse_overflow, row_sizes
from avjax.engine.reference import pad_inputs
from avjax.model import Model
from avjax.models.buckets import bucket
from avjax.models.decoder import Decoder
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import Selector
from avjax.provenance import provenance

WEIGHTS, ABOUT = "tuned_lens.safetensors", "tuned_lens.json"
STEPS_PER_CALL = 50  # between two moves of the progress bar
ROWS_BUCKET = 64  # positions of a prompt are filled to multiples, so that prompts share a program


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedLens:
    """Trained maps, for `logit_lens(lens=...)`.

    Attributes:
      translators: kernel float32 [L, D, D] and bias [L, D].
      site: what they were trained on, and are for.
      report: `kl_before` and `kl_after` (nats) by `layer`, on positions that they were not trained on, and `loss`
        (nats) by `step` and `layer`; the attributes say how they were trained.
    """

    translators: Translators
    site: Site
    report: xr.Dataset

    @property
    def trained_on(self) -> str:
        return f"{self.report.attrs['where']} of {self.report.attrs['num_prompts']} prompts"

    def check(self, model: Model, site: Site) -> None:
        """Raises ValueError when the maps are of another architecture or site."""
        cfg = model.config.decoder
        if (shape := self.translators.bias.shape) != (cfg.num_layers, cfg.embed_dim):
            raise ValueError(
                f"lens: expected maps for {cfg.num_layers} layers of width {cfg.embed_dim}, got {shape[0]} of "
                f"{shape[1]}; train one on this model"
            )
        if site is not self.site:
            raise ValueError(
                f"lens: expected site {self.site}, where it was trained, got {site}; train a lens at {site}"
            )

    def save(self, directory: str | Path) -> None:
        """Writes `tuned_lens.safetensors` and `tuned_lens.json` into a directory, which is made if needed."""
        from safetensors.numpy import save_file

        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        arrays = {"kernel": np.asarray(self.translators.kernel), "bias": np.asarray(self.translators.bias)}
        save_file(arrays, path / WEIGHTS)
        content = {"site": str(self.site), "report": self.report.to_dict()}
        (path / ABOUT).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, directory: str | Path) -> "TunedLens":
        """What `save` wrote.

        Raises:
          FileNotFoundError: a file is missing.
        """
        from safetensors.numpy import load_file

        path = Path(directory)
        if missing := [name for name in (WEIGHTS, ABOUT) if not (path / name).is_file()]:
            raise FileNotFoundError(f"{path}: expected {WEIGHTS} and {ABOUT}, found no {' and no '.join(missing)}")
        arrays, content = load_file(path / WEIGHTS), json.loads((path / ABOUT).read_text())
        translators = Translators(kernel=jnp.asarray(arrays["kernel"]), bias=jnp.asarray(arrays["bias"]))
        report = xr.Dataset.from_dict(content["report"])
        return cls(translators=translators, site=Site(content["site"]), report=report)


def train_tuned_lens(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    held_out: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    where: Selector = "audio",
    site: str = "resid_post",
    *,
    captions: Captions = None,
    held_out_captions: Captions = None,
    groups: BySample | None = None,
    max_new_tokens: int = 50,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
    progress: bool = True,
) -> TunedLens:
    """Trains the maps of all layers together with AdamW, minimising KL(final || lens) at positions of a token group.

    In tiny-av at audio tokens it lowers the divergence of layers 0 to 3 on clips that it was not trained on.

    The learning rate falls linearly to 0 and the gradient of each layer is clipped to a norm of 1. At `resid_post` the
    last layer is the model's own output and keeps its zeros. The site of all layers at these positions is held
    ([L, N, D]), beside the maps and twice as much for the optimiser; logits are computed `chunk_bytes` at a time.

    Args:
      prompts: to train on.
      held_out: prompts of other clips, to report the divergence on; nothing is chosen by it.
      where: the token group, as in `logit_lens`. A lens is for the kind of token that it was trained on.
      captions, held_out_captions: as in `logit_lens`.
      groups: what belongs together and may not be on both sides: a value for each of `prompts` and then of `held_out`,
        or by sample. By default prompts of one clip, which share a sound or a picture.
      batch_size: positions of a step, drawn from those of all prompts.
      weight_decay: pulls the maps to the logit lens.

    Raises:
      ValueError: something does not fit, before anything is compiled; a clip is on both sides; or an activation, or
        what is learned, is not finite.

    Source: Belrose et al. 2023, with AdamW in place of SGD.
    """
    place, layer = checked_site(site)
    if layer is not None:
        raise ValueError(f"site {site!r} names a layer; a tuned lens covers all layers, so pass {str(place)!r}")
    _check(steps, batch_size, learning_rate, weight_decay, chunk_bytes)
    sides = {"prompts": named_prompts(prompts), "held_out": named_prompts(held_out)}
    known = {prompt.fingerprint: name for name, prompt in sides["prompts"].items()}
    for name, prompt in sides["held_out"].items():
        if prompt.fingerprint in known:
            raise ValueError(
                f"held_out: sample {name!r} is in prompts too, as {known[prompt.fingerprint]!r}; remove one"
            )
    clips = refuse_shared_clips(sides["prompts"], sides["held_out"], groups, analysis="tuned lens")
    given = {"prompts": captions, "held_out": held_out_captions}
    looked = {side: places_of(model, named, where, given[side], max_new_tokens) for side, named in sides.items()}
    with Progress("tuned lens: prompts", sum(map(len, looked.values())), "prompts", enabled=progress) as bar:
        data, unseen = (_gathered(model, place, places, bar) for places in looked.values())
    setting = _Setting(
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        chunk=chunk_rows(model.config.decoder.vocab_size, batch_size, chunk_bytes // 4),
        frozen_last=place is Site.RESID_POST,
    )
    translators, losses = _trained(model, data, setting, batch_size, seed, progress)
    how = {"site": str(place), "where": str(where), "steps": steps, "batch_size": batch_size, "seed": seed}
    how |= {"learning_rate": learning_rate, "weight_decay": weight_decay}
    how |= {f"num_{side}": len(places) for side, places in looked.items()}
    how |= {"groups": described(clips, groups)}
    how |= {"num_positions": data.final.shape[0], "num_held_out_positions": unseen.final.shape[0]}
    report = _report(model, unseen, translators, losses, setting.chunk, how)
    return TunedLens(translators=translators, site=place, report=report)


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What a training program is compiled for."""

    steps: int
    learning_rate: float
    weight_decay: float
    chunk: int
    frozen_last: bool

    def optimiser(self) -> optax.GradientTransformation:
        rate = optax.linear_schedule(self.learning_rate, 0.0, self.steps)
        return optax.adamw(rate, weight_decay=self.weight_decay)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Activations of the positions of all prompts, in the compute dtype."""

    seen: jax.Array  # L N D
    final: jax.Array  # N D


def _check(steps: int, batch_size: int, learning_rate: float, weight_decay: float, chunk_bytes: int) -> None:
    for name, value in {"steps": steps, "batch_size": batch_size, "chunk_bytes": chunk_bytes}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}")
    if not 0 <= weight_decay < np.inf:
        raise ValueError(f"weight_decay: expected a number of at least 0, got {weight_decay!r}")


def _gathered(model: Model, site: Site, looked: Mapping[Any, LensPositions], bar: Progress) -> Data:
    layers = range(model.config.decoder.num_layers)
    seen, final = [], []
    for name, places in looked.items():
        inputs = pad_inputs(model.encode(places.prompt), bucket(len(places.prompt)))
        rows = jnp.asarray(padded_rows(places.rows, ROWS_BUCKET))
        last, at_site, fed = rows_pass(model.network.decoder, inputs, rows, site=site)
        sizes = np.asarray(row_sizes(at_site))[:, : len(places.rows)]
        refuse_unreadable(sizes, name, site, layers, places.rows)
        refuse_overflow([*np.ravel(fed), *np.ravel(row_sizes(last))], f"sample {name!r}")
        last, at_site = np.asarray(last)[: len(places.rows)], np.asarray(at_site)[:, : len(places.rows)]
        seen.append(at_site)
        final.append(last)
        bar.advance(1)
    return Data(seen=jnp.asarray(np.concatenate(seen, 1)), final=jnp.asarray(np.concatenate(final)))


def _trained(
    model: Model, data: Data, setting: _Setting, batch_size: int, seed: int, progress: bool
) -> tuple[Translators, np.ndarray]:
    """The maps, and each step's loss [steps, L]."""
    cfg, count = model.config.decoder, data.final.shape[0]
    size = -(-batch_size // setting.chunk) * setting.chunk
    drawn = np.random.default_rng(seed).integers(count, size=(setting.steps, size)).astype(np.int32)
    shape = (cfg.num_layers, cfg.embed_dim)
    first = Translators(kernel=jnp.zeros((*shape, cfg.embed_dim)), bias=jnp.zeros(shape))
    state, losses = (first, setting.optimiser().init(first)), []  # pyright: ignore[reportArgumentType]
    with Progress("tuned lens", setting.steps, "steps", enabled=progress) as bar:
        for start in range(0, setting.steps, STEPS_PER_CALL):
            rows = jnp.asarray(drawn[start : start + STEPS_PER_CALL])
            state, loss = _train(model.network.decoder, data, state, rows, setting=setting)
            losses.append(np.asarray(loss))
            if not np.isfinite([float(leaf.sum()) for leaf in (losses[-1], *jax.tree.leaves(state[0]))]).all():
                raise ValueError(
                    f"tuned lens: the loss or a map is not finite after step {start + len(rows)}; lower "
                    f"learning_rate={setting.learning_rate}"
                )
            bar.advance(len(rows))
    return state[0], np.concatenate(losses)


@functools.partial(jax.jit, static_argnames="setting")
def _train(decoder: Decoder, data: Data, state: Any, rows: Int[Array, "steps B"], *, setting: _Setting) -> Any:
    """Steps over batches of positions; the new state and each step's loss [steps, L]."""
    optimiser = setting.optimiser()
    learns = jnp.arange(decoder.cfg.num_layers) < decoder.cfg.num_layers - setting.frozen_last

    def step(state: Any, batch: Array) -> Any:
        translators, moments = state
        loss, slope = slope_of(decoder, translators, data, batch.reshape(-1, setting.chunk))
        norm = jax.vmap(optax.tree.norm)(slope)
        factor = jnp.where(learns, 1 / jnp.maximum(norm, 1.0), 0.0)  # rounding must not move a map that is right
        slope = jax.tree.map(lambda leaf: leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1)), slope)
        changes, moments = optimiser.update(slope, moments, translators)  # pyright: ignore[reportArgumentType]
        new = optax.apply_updates(translators, changes)  # pyright: ignore[reportArgumentType]
        return (new, moments), loss

    return jax.lax.scan(step, state, rows)


def slope_of(
    decoder: Decoder, translators: Translators, data: Data, rows: Int[Array, "C R"]
) -> tuple[Float[Array, "L"], Translators]:
    """Mean divergence of each layer over a batch and its gradient, chunk by chunk and layer by layer."""
    num_chunks = rows.shape[0]

    def chunk(total: Any, rows_R: Array) -> Any:
        target = jax.nn.log_softmax(decoder.logits(data.final[rows_R]))

        def layer(own: tuple[Translators, Array]) -> tuple[Array, Translators]:
            lens, seen = own
            return jax.value_and_grad(lambda lens: jnp.mean(_divergence(decoder, lens, seen[rows_R], target)))(lens)

        by_layer = jax.lax.map(layer, (translators, data.seen))
        return jax.tree.map(lambda a, b: a + b / num_chunks, total, by_layer), None

    nothing = (jnp.zeros(decoder.cfg.num_layers), jax.tree.map(jnp.zeros_like, translators))
    return jax.lax.scan(chunk, nothing, rows)[0]


@jax.custom_vjp
def _unembedded(y: Float[Array, "R D"], table: Float[Array, "V D"]) -> Float[Array, "R V"]:
    """`Embedding.logits`, whose gradient does not make a float32 copy of a bfloat16 table. The table has none."""
    return dot("rd,vd->rv", y, table)


_unembedded.defvjp(
    lambda y, table: (_unembedded(y, table), table),
    lambda table, slope: (dot("rv,vd->rd", slope.astype(table.dtype), table).astype(table.dtype), None),
)


def _divergence(
    decoder: Decoder, lens: Translators, seen: Float[Array, "R D"], target: Float[Array, "R V"]
) -> Float[Array, "R"]:
    """KL(final || lens) in nats."""
    table = decoder.embed if decoder.unembed is None else decoder.unembed
    read = jax.nn.log_softmax(_unembedded(decoder.final_norm(lens(seen)), table.embedding[...]))
    return jnp.sum(jnp.exp(target) * (target - read), axis=-1)


@functools.partial(jax.jit, static_argnames="chunk")
def mean_divergence(decoder: Decoder, translators: Translators, data: Data, *, chunk: int) -> Float[Array, "L"]:
    """KL(final || lens) of each layer in nats, mean over all positions."""
    count = data.final.shape[0]
    rows = jnp.arange(-(-count // chunk) * chunk).reshape(-1, chunk)

    def one(total: Array, rows_R: Array) -> tuple[Array, None]:
        places = jnp.minimum(rows_R, count - 1)
        target = jax.nn.log_softmax(decoder.logits(data.final[places]))

        def layer(own: tuple[Translators, Array]) -> Array:
            divergence = _divergence(decoder, own[0], own[1][places], target)
            return jnp.sum(jnp.where(rows_R < count, divergence, 0.0))

        return total + jax.lax.map(layer, (translators, data.seen)) / count, None

    return jax.lax.scan(one, jnp.zeros(decoder.cfg.num_layers), rows)[0]


def _report(
    model: Model, unseen: Data, translators: Translators, losses: np.ndarray, chunk: int, how: dict[str, Any]
) -> xr.Dataset:
    decoder, nothing = model.network.decoder, jax.tree.map(jnp.zeros_like, translators)
    before, after = (np.asarray(mean_divergence(decoder, t, unseen, chunk=chunk)) for t in (nothing, translators))

    def about(long_name: str) -> dict[str, str]:
        return {"units": "nats", "long_name": f"KL(final || lens), {long_name}"}

    variables = {
        "kl_before": ("layer", before, about("logit lens, held-out positions")),
        "kl_after": ("layer", after, about("tuned lens, held-out positions")),
        "loss": (("step", "layer"), losses, about("tuned lens, the step's batch before the step")),
    }
    coordinates = {"layer": np.arange(len(before)), "step": np.arange(len(losses))}
    return xr.Dataset(variables, coordinates, provenance(model, **how))
