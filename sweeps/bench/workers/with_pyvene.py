"""pyvene: an intervenable model per variant on HF's model, sdpa attention; edits are functions of a component.

Its Qwen2 map has module inputs and outputs, but neither attention weights nor masks, so that knockouts cannot be said.
"""

import argparse
from typing import Any

import pyvene  # pyright: ignore[reportMissingImports]
import torch
from protocol import Task, Unsupported, Worker, serve
from torch_model import Loop, answers, load_model, loop_worker

NO_EDGES = "its Qwen2 map has no component for attention weights, scores or masks"


class Intervenable(Loop):
    def __init__(self, options: argparse.Namespace):
        self.model = load_model(options, "sdpa")
        self.num_layers = self.model.config.num_hidden_layers

    def __call__(self, task: Task) -> dict[int, list[Any]]:
        if any(v["op"] == "knockout" for v in task.variants.values()):
            raise Unsupported(NO_EDGES)
        return super().__call__(task)

    def variant(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[Any]:
        component, layer, places, change = self.edit(task, variant, corrupt)
        config = {"layer": layer, "component": component, "unit": "pos", "intervention": change}
        edited = pyvene.IntervenableModel(config, model=self.model)
        _, out = edited({"input_ids": ids, "logits_to_keep": 1}, unit_locations={"base": places})
        return answers(task, out.logits[0, -1])

    def edit(self, task: Task, variant: Any, corrupt: Any) -> Any:
        """The component, its layer, positions, and what becomes of them."""
        layer = variant["layer"] or 0
        match variant["op"]:
            case "patch":
                places = list(range(variant["start"], variant["stop"]))
                source = corrupt[layer][:, variant["start"] : variant["stop"]]
                return "block_output", layer, places, lambda base, _: source.reshape(base.shape)
            case "scale":
                places = task.positions(variant["where"]).tolist()
                return "block_input", layer, places, lambda base, _: base * variant["factor"]
            case "ablate":
                size = self.model.config.hidden_size // self.model.config.num_attention_heads
                part = slice(variant["head"] * size, (variant["head"] + 1) * size)

                def ablate(base: torch.Tensor, _: Any) -> torch.Tensor:
                    base = base.clone()
                    base.view(-1, self.model.config.hidden_size)[:, part] = 0
                    return base

                return "attention_value_output", layer, list(range(task.num_tokens)), ablate
        raise Unsupported(f"no component for {variant['op']}")

    def residuals(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Every layer's output, collected at all positions."""
        config = [
            {"layer": layer, "component": "block_output", "unit": "pos", "intervention": pyvene.CollectIntervention()}
            for layer in range(self.num_layers)
        ]
        reader = pyvene.IntervenableModel(config, model=self.model)
        places = list(range(ids.shape[1]))
        (_, seen), _ = reader({"input_ids": ids, "logits_to_keep": 1}, unit_locations={"base": places})
        return [x.reshape(1, ids.shape[1], -1) for x in seen]

    def unembedded(self, row: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(self.model.model.norm(row))


def load(options: argparse.Namespace) -> Worker:
    return loop_worker(Intervenable(options), "pyvene")


if __name__ == "__main__":
    serve(load)
