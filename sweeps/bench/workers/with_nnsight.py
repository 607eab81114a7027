"""nnsight: one trace per variant on HF's model, sdpa attention; edits assign to modules' inputs and outputs.

A knockout assigns the attention mask of a layer. Generation is a trace per token over HF's cache, since the greedy loop
of nnsight's language model wants a tokenizer.
"""

import argparse
from typing import Any

import torch
import transformers
from nnsight import NNsight  # pyright: ignore[reportMissingImports]
from protocol import Task, Unsupported, Worker, serve
from torch_model import Loop, answers, blocked, causal_mask, index, load_model, loop_worker


class Traces(Loop):
    def __init__(self, options: argparse.Namespace):
        self.hf = load_model(options, "sdpa")
        self.model = NNsight(self.hf)
        self.heads = self.hf.config.num_attention_heads

    def variant(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[Any]:
        return self.generate(task, variant, ids) if task.name == "b" else self.read(task, variant, ids, corrupt)

    def read(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[float]:
        model, layers, op = self.model, self.model.model.layers, variant["op"]
        if op == "knockout":
            mask = self.mask(task, variant, ids.shape[1], ids.shape[1])
            with model.trace(ids, use_cache=False, logits_to_keep=1):
                for layer in variant["layers"]:
                    args, kwargs = layers[layer].self_attn.inputs
                    layers[layer].self_attn.inputs = (args, {**kwargs, "attention_mask": mask})
                logits = model.lm_head.output[0, -1].save()
        elif op == "patch":
            part, source = slice(variant["start"], variant["stop"]), corrupt[variant["layer"]]
            with model.trace(ids, use_cache=False, logits_to_keep=1):
                layers[variant["layer"]].output[:, part] = source[:, part]
                logits = model.lm_head.output[0, -1].save()
        elif op == "scale":
            places, layer = index(task, variant["where"]), variant["layer"]
            with model.trace(ids, use_cache=False, logits_to_keep=1):
                x = model.model.embed_tokens.output if layer is None else layers[layer].input
                x[:, places] *= variant["factor"]
                logits = model.lm_head.output[0, -1].save()
        elif op == "ablate":
            size = self.hf.config.hidden_size // self.heads
            part = slice(variant["head"] * size, (variant["head"] + 1) * size)
            with model.trace(ids, use_cache=False, logits_to_keep=1):
                layers[variant["layer"]].self_attn.o_proj.input[..., part] = 0
                logits = model.lm_head.output[0, -1].save()
        else:
            raise Unsupported(f"no trace for {op}")
        return answers(task, logits)

    def mask(self, task: Task, variant: Any, queries: int, keys: int) -> torch.Tensor | None:
        edges = blocked(task, variant, queries, keys)
        if edges is None:
            return None
        lowest = torch.finfo(torch.float32).min
        mask = causal_mask(keys)[..., -queries:, :] if queries > 1 else torch.zeros(1, 1, 1, keys, device=edges.device)
        if variant["heads"] is None:
            return mask.masked_fill(edges, lowest)
        mask = mask.expand(1, self.heads, -1, -1).clone()
        mask[:, variant["heads"]] = mask[:, variant["heads"]].masked_fill(edges, lowest)
        return mask

    def generate(self, task: Task, variant: Any, ids: torch.Tensor) -> list[int]:
        model, layers = self.model, self.model.model.layers
        cache = transformers.DynamicCache(config=self.hf.config)
        tokens: list[int] = []
        fed, length = ids, ids.shape[1]
        for _ in range(task.document["max_new_tokens"]):
            mask = self.mask(task, variant, fed.shape[1], length)
            with model.trace(fed, past_key_values=cache, use_cache=True, logits_to_keep=1):
                if mask is not None:
                    for layer in variant["layers"]:
                        args, kwargs = layers[layer].self_attn.inputs
                        layers[layer].self_attn.inputs = (args, {**kwargs, "attention_mask": mask})
                logits = model.lm_head.output[0, -1].save()
            tokens.append(int(logits.argmax()))
            fed, length = torch.tensor([[tokens[-1]]], device=ids.device), length + 1
        return tokens

    def residuals(self, ids: torch.Tensor) -> list[torch.Tensor]:
        with self.model.trace(ids, use_cache=False, logits_to_keep=1):
            outputs: Any = [layer.output for layer in self.model.model.layers]
            seen = outputs.save()  # nnsight gives every object this method inside a trace
        return seen

    def unembedded(self, row: torch.Tensor) -> torch.Tensor:
        return self.hf.lm_head(self.hf.model.norm(row))


def load(options: argparse.Namespace) -> Worker:
    return loop_worker(Traces(options), "nnsight")


if __name__ == "__main__":
    serve(load)
