"""Edits of activations on a Hugging Face model, by hooks: what a torch user would write by hand.

It knows absolute positions, layers, heads and functions of tensors, and nothing of selectors, groups, affine maps,
sources or caches. A continuation is the whole sequence again for each token, without a cache.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

import avjax

SITES = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "z", "value")
HEADED = ("z", "value")


@dataclasses.dataclass(frozen=True)
class Change:
    """At one site, in these layers: x[rows] = function(x[rows], layer, rows), for some heads or all.

    Attributes:
      rows: positions, or None for every position of the sequence, generated ones too.
      after: change every position from here on too.
    """

    site: str
    function: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
    rows: tuple[int, ...] = ()
    after: int | None = None
    layers: tuple[int, ...] = (0,)
    heads: tuple[int, ...] | None = None

    def places(self, size: int) -> torch.Tensor:
        late = range(size) if self.after is None else range(self.after, size)
        return torch.tensor(sorted({r for r in self.rows if r < size} | (set() if self.after is None else set(late))))


@dataclasses.dataclass(frozen=True)
class Factor:
    """Multiplies exp(score) of edges between positions."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    factor: float
    layers: tuple[int, ...]
    heads: tuple[int, ...]


class EditsOracle:
    """A prompt as the decoder sees it, on one torch model."""

    def __init__(self, torch_model: torch.nn.Module, model: avjax.Model, prompt: avjax.Prompt):
        self.model, self.text = torch_model, torch_model.model.language_model
        self.length = len(prompt)
        if prompt.embeddings is None:
            self.embeddings = self.text.embed_tokens(torch.tensor(prompt.token_ids, dtype=torch.long))
        else:
            self.embeddings = torch.tensor(np.asarray(prompt.embeddings, np.float32))
        self.positions = torch.tensor(np.asarray(prompt.positions))
        config = torch_model.config.get_text_config()
        self.heads = {"z": config.num_attention_heads, "value": config.num_key_value_heads}
        self.num_layers = config.num_hidden_layers

    def run(self, changes: Sequence[Change | Factor] = (), tokens: Sequence[int] = ()):
        """Logits [S, V] of the prompt and `tokens`, and what every site held after its changes, [L, S, ...]."""
        x, positions = self._sequence(tokens)
        with self._hooked(changes) as seen:
            out = self.text(
                inputs_embeds=x[None],
                position_ids=positions[:, None],
                attention_mask=torch.ones(1, len(x), dtype=torch.long),
                use_cache=False,
                output_attentions=True,
            )
        logits = self.model.lm_head(out.last_hidden_state[0])
        captures = {site: torch.stack([seen[site, i] for i in range(self.num_layers)]) for site in SITES[1:]}
        captures["embed"] = captures["resid_pre"][0]
        captures["pattern"] = torch.stack([a[0] for a in out.attentions])
        return logits.numpy(), {site: x.numpy() for site, x in captures.items()}

    def generate(self, changes: Sequence[Change | Factor], count: int) -> tuple[list[int], np.ndarray]:
        tokens, rows = [], []
        for _ in range(count):
            logits, _ = self.run(changes, tokens)
            rows.append(logits[-1])
            tokens.append(int(logits[-1].argmax()))
        return tokens, np.stack(rows)

    def _sequence(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(tokens):
            return self.embeddings.clone(), self.positions
        new = self.text.embed_tokens(torch.tensor(list(tokens), dtype=torch.long))
        at = int(self.positions.max()) + 1 + torch.arange(len(tokens))
        return torch.cat([self.embeddings, new]), torch.cat([self.positions, at.expand(3, -1)], dim=1)

    @contextlib.contextmanager
    def _hooked(self, changes: Sequence[Change | Factor]) -> Iterator[dict]:
        seen: dict[tuple[str, int], torch.Tensor] = {}
        edges = [c for c in changes if isinstance(c, Factor)]
        handles = []

        def at(site: str, layer: int, x: torch.Tensor) -> torch.Tensor:
            """Changes `x` [1, S, features] in place: what else holds this tensor must see it too."""
            view = x[0] if site not in HEADED else x[0].view(x.shape[1], self.heads[site], -1)
            for change in changes:
                if not isinstance(change, Change) or change.site != site or layer not in change.layers:
                    continue
                rows = change.places(len(view))
                if not len(rows):
                    continue
                if change.heads is None:
                    view[rows] = change.function(view[rows].clone(), layer, rows)
                else:
                    cells = rows[:, None], torch.tensor(change.heads)[None]
                    view[cells] = change.function(view[rows].clone(), layer, rows)[:, list(change.heads)]
            seen[site, layer] = view.clone()
            return x

        def mask(layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            bias = kwargs["attention_mask"].expand(-1, self.heads["z"], -1, -1).clone()
            assert torch.is_floating_point(bias)
            for edge in edges:
                if layer in edge.layers:
                    cells = np.ix_(edge.heads, edge.query, edge.key)
                    bias[0][cells] += float(np.log(edge.factor))
            return args, {**kwargs, "attention_mask": bias}

        def entering(layer: int, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                at("embed", layer, x)
            at("resid_pre", layer, x)

        def leaving(layer: int, out: torch.Tensor | tuple) -> None:
            at("resid_post", layer, out[0] if isinstance(out, tuple) else out)

        for i, block in enumerate(self.text.layers):
            attention = block.self_attn
            handles += [
                block.register_forward_pre_hook(lambda m, a, k, i=i: entering(i, a, k), with_kwargs=True),
                # q, k and v read this tensor: changed in place, all three see it.
                block.input_layernorm.register_forward_hook(lambda m, a, out, i=i: at("attn_in", i, out)),
                block.mlp.register_forward_pre_hook(lambda m, a, i=i: (at("mlp_in", i, a[0]),)),
                attention.v_proj.register_forward_hook(lambda m, a, out, i=i: at("value", i, out)),
                attention.o_proj.register_forward_pre_hook(lambda m, a, i=i: (at("z", i, a[0]),)),
                attention.o_proj.register_forward_hook(lambda m, a, out, i=i: at("attn_out", i, out)),
                # HF keeps this tensor as the residual: changed in place, both see it.
                block.post_attention_layernorm.register_forward_pre_hook(lambda m, a, i=i: (at("resid_mid", i, a[0]),)),
                block.mlp.register_forward_hook(lambda m, a, out, i=i: at("mlp_out", i, out)),
                block.register_forward_hook(lambda m, a, out, i=i: leaving(i, out)),
            ]
            if edges:
                handles.append(
                    attention.register_forward_pre_hook(lambda m, a, k, i=i: mask(i, a, k), with_kwargs=True)
                )
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
