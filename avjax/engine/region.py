"""A variant's region of effect: consecutive rows of a prompt, their edits, and how they attend.

Axes: I variant, R row, K kv heads, H head dim, N heads, M token group, C key class, Q query set.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.engine.clean_pass import SharedPrompt, by_class, class_factors, layer_keys
from avjax.models.attention import Compat, OwnKeys, attend_prompt, attend_rows, same_branch
from avjax.models.intervention import VARIANTS, Intervention, edited
from avjax.models.layers import dot
from avjax.models.sites import Site

NARROW = 32  # rows of a variant up to which all variants read the prompt in one product
Result = tuple[Array, Array | None]  # z [I, R, N, H], and masses [I, N, Q, C]


class Rows:
    """Consecutive positions of a prompt, as variants compute them."""

    def __init__(self, prompt: SharedPrompt, first: Array, count: int):
        self.first, self.count = first, count
        self.groups = jax.lax.dynamic_slice_in_dim(prompt.inputs.groups, first, count)
        branches = prompt.inputs.branches
        self.branches = None if branches is None else jax.lax.dynamic_slice_in_dim(branches, first, count)
        self.positions = first + jnp.arange(count)

    def seen_by(self, queries: "Rows") -> Array:
        """bool [query, row]: the rows that each query may attend to."""
        visible = self.positions <= queries.positions[:, None]
        if self.branches is None or queries.branches is None:
            return visible
        return visible & same_branch(queries.branches, self.branches)

    def exist_for(self, queries: "Rows", length: Array) -> Array:
        """bool [query or 1, row]: the rows of the prompt, and of continuations those that the query sees."""
        exists = (self.positions < length)[None]
        return exists if self.branches is None else (exists & (self.branches == 0)) | self.seen_by(queries)

    def edited(self, site: Site, x_IR: Array, edit: Intervention) -> Array:
        """Every variant's rows after its edit of one layer."""
        if site not in edit.sites:
            return x_IR
        one = jax.vmap(lambda x, e: edited(site, x, e, self.groups, self.first), in_axes=(0, VARIANTS))
        return one(x_IR, edit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionAttention:
    """The dirty rows of a batch of variants.

    Attributes:
      query_sets: float32 [Q, R], the weight of each row in each mean of attention masses; None when none is wanted.
    """

    prompt: SharedPrompt
    rows: Rows
    query_sets: Array | None
    compat: Compat | None

    def attend(
        self,
        queries: Rows,
        q: Float[Array, "I _ N H"],
        k: Float[Array, "I R K H"],
        v: Float[Array, "I R K H"],
        factor: Float[Array, "I N M M"] | None,
        layer: Int[Array, ""] | int,
    ) -> Result:
        """Attention of some of the rows to the clean prompt before them, and to the rows themselves.

        Args:
          queries: the rows that `q` is of.
          factor: the layer's edit of edges.
        """
        over = self._narrow if self.rows.count <= NARROW else self._wide
        return over(queries, q, k, v, factor, layer)

    def _narrow(self, queries: Rows, q: Array, k: Array, v: Array, factor: Array | None, layer: Array | int) -> Result:
        prompt, rows, query_sets = self.prompt, self.rows, self.query_sets
        own = OwnKeys(
            keys=k,
            values=v,
            visible=rows.seen_by(queries),
            exists=rows.exist_for(queries, prompt.inputs.length),
            classes=prompt.group_class[rows.groups],
        )
        gates = None if factor is None else class_factors(prompt, factor, queries.groups)
        if gates is None and query_sets is not None:  # masses need classes
            gates = jnp.ones((q.shape[0], q.shape[2], queries.count, prompt.class_group.shape[0]), jnp.float32)
        z, mass = attend_rows(
            q,
            layer_keys(prompt.shared, layer),
            [own],
            num_shared=rows.first,
            factor=gates,
            compat=self.compat,
            want_mass=query_sets is not None,
        )
        return z, None if mass is None or query_sets is None else dot("inrc,qr->inqc", mass, query_sets)

    def _wide(self, queries: Rows, q: Array, k: Array, v: Array, factor: Array | None, layer: Array | int) -> Result:
        if factor is None:
            return self._each(queries, q, k, v, None, layer)
        # Most layers of a window have no edge to edit; there a factor per edge would cost an eighth of the pass.
        return jax.lax.cond(
            jnp.all(factor == 1),
            lambda: self._each(queries, q, k, v, None, layer),
            lambda: self._each(queries, q, k, v, factor, layer),
        )

    def _each(self, queries: Rows, q: Array, k: Array, v: Array, factor: Array | None, layer: Array | int) -> Result:
        """A whole sequence per variant: the clean prompt with the variant's rows in their place."""
        inputs, clean, query_sets = self.prompt.inputs, self.prompt.clean, self.query_sets

        def one(variant: tuple[Array, Array, Array, Array | None]) -> Result:
            q, k, v, factor = variant
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(whole[layer], new, self.rows.first, axis=0)
                for whole, new in ((clean.keys, k), (clean.values, v))
            )
            z, weights = attend_prompt(
                q,
                keys,
                values,
                first_row=queries.first,
                length=inputs.length,
                groups=inputs.groups,
                factor=factor,
                compat=self.compat,
                want=() if query_sets is None else ("mass",),
                num_groups=inputs.num_groups,
                branches=inputs.branches,
            )
            if query_sets is None:
                return z, None
            return z, by_class(self.prompt, dot("nrm,qr->nqm", weights["mass"], query_sets))

        if q.shape[0] == 1:
            return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], (q, k, v, factor))))
        return jax.lax.platform_dependent(
            (q, k, v, factor), cpu=lambda xs: jax.lax.map(one, xs), default=lambda xs: jax.vmap(one)(xs)
        )
