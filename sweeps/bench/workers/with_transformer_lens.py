"""TransformerLens's bridge over HF's weights: its named hooks, one full forward pass per variant.

Knockouts set attention scores before the softmax; a generated rule finds its queries by the shape of the scores.
"""

import argparse
from typing import Any

import torch
from protocol import Task, Unsupported, Worker, serve
from torch_model import Loop, answers, blocked, index, load_model, loop_worker
from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]


class Lens(Loop):
    def __init__(self, options: argparse.Namespace):
        model = load_model(options, "eager")
        self.bridge = TransformerBridge.boot_transformers(
            str(options.checkpoint / "plain"), hf_model=model, dtype=torch.float32, load_weights=True
        )

    def variant(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[Any]:
        hooks = self.hooks(task, variant, corrupt)
        if task.name == "b":
            return self.generate(task, ids, hooks)
        return answers(task, self.bridge.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=1)[0, -1])

    def generate(self, task: Task, ids: torch.Tensor, hooks: Any) -> list[int]:
        count = task.document["max_new_tokens"]
        with self.bridge.hooks(fwd_hooks=hooks):
            out = self.bridge.generate(
                ids, max_new_tokens=count, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
            )
        return out[0, -count:].tolist()

    def hooks(self, task: Task, variant: Any, corrupt: Any) -> list[Any]:
        match variant["op"]:
            case "knockout":
                heads = slice(None) if variant["heads"] is None else variant["heads"]

                def block(scores: torch.Tensor, hook: Any) -> torch.Tensor:
                    edges = blocked(task, variant, *scores.shape[2:])
                    if edges is not None:
                        lowest = torch.finfo(scores.dtype).min
                        scores[:, heads] = scores[:, heads].masked_fill(edges, lowest)
                    return scores

                return [(f"blocks.{layer}.attn.hook_attn_scores", block) for layer in variant["layers"]]
            case "patch":
                part = slice(variant["start"], variant["stop"])
                source = corrupt[variant["layer"]]

                def patch(x: torch.Tensor, hook: Any) -> torch.Tensor:
                    x[:, part] = source[:, part]
                    return x

                return [(f"blocks.{variant['layer']}.hook_resid_post", patch)]
            case "scale":
                places = index(task, variant["where"])

                def scale(x: torch.Tensor, hook: Any) -> torch.Tensor:
                    x[:, places] *= variant["factor"]
                    return x

                name = "hook_embed" if variant["layer"] is None else f"blocks.{variant['layer']}.hook_resid_pre"
                return [(name, scale)]
            case "ablate":

                def ablate(z: torch.Tensor, hook: Any) -> torch.Tensor:
                    z[:, :, variant["head"]] = 0
                    return z

                return [(f"blocks.{variant['layer']}.attn.hook_z", ablate)]
        raise Unsupported(f"no hook for {variant['op']}")

    def residuals(self, ids: torch.Tensor) -> list[torch.Tensor]:
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(self.bridge.cfg.n_layers)]
        _, cache = self.bridge.run_with_cache(ids, names_filter=lambda name: name in names)
        return [cache[name] for name in names]

    def unembedded(self, row: torch.Tensor) -> torch.Tensor:
        return self.bridge.unembed(self.bridge.ln_final(row[None]))[0]


def load(options: argparse.Namespace) -> Worker:
    return loop_worker(Lens(options), "transformer-lens")


if __name__ == "__main__":
    serve(load)
