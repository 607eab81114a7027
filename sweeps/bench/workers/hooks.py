"""The published way: one full forward pass per variant with hooks on HF's modules, batch 1; generation by `generate`.

A port of the published knockout and lens scripts to transformers 5, decoder layers of which return a tensor. Eager
attention as published; `--attention sdpa` passes the edited masks to the fused kernel instead.
Kinder than published: logits only at the last position, and no cache where nothing is generated.
"""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from protocol import Task, Unsupported, Worker, serve
from torch_model import Loop, answers, blocked, causal_mask, index, load_model, loop_worker


class Hooks(Loop):
    """The model, and the edits as hooks on it."""

    def __init__(self, options: argparse.Namespace):
        self.model = load_model(options, options.attention)
        self.layers = self.model.model.layers
        self.heads = self.model.config.num_attention_heads

    def variant(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[Any]:
        with self.edited(task, variant, corrupt):
            if task.name == "b":
                return self.generate(task, ids)
            return answers(task, self.model(ids, use_cache=False, logits_to_keep=1).logits[0, -1])

    def generate(self, task: Task, ids: torch.Tensor) -> list[int]:
        count = task.document["max_new_tokens"]
        mask = torch.ones_like(ids)
        return self.model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()

    @contextlib.contextmanager
    def edited(self, task: Task, variant: Any, corrupt: list[torch.Tensor] | None) -> Iterator[None]:
        match variant["op"]:
            case "knockout":
                hook = self.knockout(task, variant)
                modules = [self.layers[i].self_attn for i in variant["layers"]]
                handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in modules]
            case "patch":
                assert corrupt is not None
                source = corrupt[variant["layer"]]
                handles = [self.layers[variant["layer"]].register_forward_hook(self.patch(variant, source))]
            case "scale" if variant["layer"] is None:
                hook = self.scale(task, variant)
                handles = [self.model.model.embed_tokens.register_forward_hook(lambda m, a, out: hook(out))]
            case "scale":
                hook = self.scale(task, variant)
                layer = self.layers[variant["layer"]]
                handles = [layer.register_forward_pre_hook(lambda m, a: (hook(a[0]), *a[1:]))]
            case "ablate":
                module = self.layers[variant["layer"]].self_attn.o_proj
                handles = [module.register_forward_pre_hook(self.ablate(variant))]
            case other:
                raise Unsupported(f"no hook for {other}")
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def knockout(self, task: Task, variant: Any) -> Any:
        lowest = torch.finfo(torch.float32).min

        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            queries = kwargs["hidden_states"].shape[1]
            cache = kwargs.get("past_key_values")
            keys = queries + (cache.get_seq_length(module.layer_idx) if cache is not None else 0)
            edges = blocked(task, variant, queries, keys)
            if edges is None:
                return None
            mask = kwargs["attention_mask"]
            if mask is None:  # sdpa leaves it to the kernel
                mask = causal_mask(keys)[..., -queries:, :]
            elif mask.dtype == torch.bool:
                mask = torch.where(mask, 0.0, lowest)
            if variant["heads"] is None:
                mask = mask.masked_fill(edges, lowest)
            else:
                mask = mask.expand(1, self.heads, -1, -1).clone()
                mask[:, variant["heads"]] = mask[:, variant["heads"]].masked_fill(edges, lowest)
            return args, {**kwargs, "attention_mask": mask}

        return hook

    def patch(self, variant: Any, source: torch.Tensor) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, variant["start"] : variant["stop"]] = source[:, variant["start"] : variant["stop"]]
            return output

        return hook

    def scale(self, task: Task, variant: Any) -> Any:
        places = index(task, variant["where"])

        def change(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, places] *= variant["factor"]
            return x

        return change

    def ablate(self, variant: Any) -> Any:
        size = self.model.config.hidden_size // self.heads

        def hook(module: Any, args: Any) -> Any:
            z = args[0].clone()
            z[..., variant["head"] * size : (variant["head"] + 1) * size] = 0
            return (z,)

        return hook

    def residuals(self, ids: torch.Tensor) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in self.layers]
        try:
            self.model(ids, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def unembedded(self, row: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(self.model.model.norm(row))


def load(options: argparse.Namespace) -> Worker:
    return loop_worker(Hooks(options), attention=options.attention)


if __name__ == "__main__":
    serve(load)
