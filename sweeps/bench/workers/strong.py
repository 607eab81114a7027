"""What an expert would write in torch in an afternoon: by hand on HF's weights, no library of hooks.

The prompt runs once with fused attention, and its keys, values and residual stream are kept. Then:
  a, i     every variant is one row: the last position, from its first edited layer on, against the shared cache;
  b        the same rows decode together, each with keys and values of its own from the last prompt position on;
  c d f g h  variants whose edits begin at the same position run as a batch of suffixes, each from its first edited
           layer on; the last layer computes queries and its MLP at the last position only;
  e        one product with the unembedding for many positions and layers at a time.
"""

import argparse
import collections
from typing import Any

import torch
import transformers
from protocol import Task, Worker, serve
from strong_layers import Decoder, Prefill
from torch_model import DEVICE, PEAK, answers, device_name, index, load_model, tensor_ids

LENS_ROWS = 256
# Tokens in one batch of suffixes. Not settled on a CPU: two passes on busy cores ranked 512 to 4096 differently.
SUFFIX_TOKENS = {"cpu": 512, "cuda": 65_536}[DEVICE]


class Strong:
    """Workloads on the prefill's leftovers."""

    def __init__(self, options: argparse.Namespace):
        self.decoder = Decoder(load_model(options, "sdpa"))

    def __call__(self, task: Task) -> dict[int, list[Any]]:
        clean = self.decoder.prefill(tensor_ids(task.document["ids"]))
        match task.name:
            case "a" | "i":
                return self.last_rows(task, clean)
            case "b":
                return self.decode(task, clean)
            case "e":
                return self.lens(task, clean)
        return self.suffixes(task, clean)

    def last_rows(self, task: Task, clean: Prefill) -> dict[int, list[Any]]:
        """Rows enter at their first edited layer, so that clean layers are never computed again."""
        decoder, last = self.decoder, task.num_tokens - 1
        order = sorted(task.variants, key=lambda i: task.variants[i]["layers"][0])
        firsts = [task.variants[i]["layers"][0] for i in order]
        keys = index(task, "video")
        rows = torch.empty(0, decoder.width, device=DEVICE)
        for layer in range(decoder.num_layers):
            entering = firsts.count(layer)
            rows = torch.cat([rows, clean.residuals[layer][last].expand(entering, -1)])
            if not len(rows):
                continue
            # A row's only edit is in its first layer; rows that entered before are not edited here.
            bias = torch.zeros(len(rows), decoder.num_heads, last, device=DEVICE)
            for row in range(len(rows) - entering, len(rows)):
                for head in task.variants[order[row]]["heads"]:
                    bias[row, head, keys] = -torch.inf
            rows = decoder.row_layer(layer, rows, last, clean.cache[layer], last, bias if entering else None, None)
        logits = decoder.logits(rows)
        return {i: answers(task, logits[row]) for row, i in enumerate(order)}

    def decode(self, task: Task, clean: Prefill) -> dict[int, list[Any]]:
        """Greedy continuations of all variants, a row each; row r's own keys begin at the last prompt position."""
        decoder, last, count = self.decoder, task.num_tokens - 1, task.document["max_new_tokens"]
        variants = list(task.variants.values())
        bias = torch.zeros(2, decoder.num_layers, len(variants), 1, last, device=DEVICE)  # at the prompt's end; after
        for row, variant in enumerate(variants):
            keys = index(task, variant["key"])
            for layer in variant["layers"]:
                bias[int(variant["query"] == "generated") :, layer, row, :, keys] = -torch.inf
        cache = decoder.empty_cache(len(variants), count)
        x = clean.residuals[0][last].expand(len(variants), -1)
        tokens = torch.empty(len(variants), count, dtype=torch.long, device=DEVICE)
        for step in range(count):
            edits = bias[min(step, 1)]
            for layer in range(decoder.num_layers):
                x = decoder.row_layer(
                    layer, x, last + step, clean.cache[layer], last, edits[layer], (cache[layer], step)
                )
            tokens[:, step] = decoder.logits(x).argmax(-1)
            x = decoder.embed(tokens[:, step])
        return dict(zip(task.variants, tokens.tolist(), strict=True))

    def lens(self, task: Task, clean: Prefill) -> dict[int, list[Any]]:
        decoder, top = self.decoder, task.document["top"]
        places = torch.tensor([v["position"] for v in task.variants.values()], device=DEVICE)
        rows = torch.stack(clean.residuals[1:])[:, places].transpose(0, 1).reshape(-1, decoder.width)
        likeliest = torch.cat([decoder.logits(part).topk(top).indices for part in rows.split(LENS_ROWS)])
        return dict(zip(task.variants, likeliest.view(len(places), -1, top).tolist(), strict=True))

    def suffixes(self, task: Task, clean: Prefill) -> dict[int, list[Any]]:
        """Variants by where their edits begin, then by the layer, in batches of a limited number of tokens."""
        corrupt = None
        if task.name == "c":
            corrupt = self.decoder.prefill(tensor_ids(task.document["corrupt_ids"])).residuals
        by_start: dict[int, list[int]] = collections.defaultdict(list)
        for i, variant in task.variants.items():
            by_start[start_of(task, variant)].append(i)
        results = {}
        for start, members in by_start.items():
            members.sort(key=lambda i: first_layer(task.variants[i]))
            size = max(1, SUFFIX_TOKENS // (task.num_tokens - start))
            for at in range(0, len(members), size):
                part = members[at : at + size]
                edits = [task.variants[i] for i in part]
                logits = self.suffix(task, clean, start, edits, corrupt)
                results |= {i: answers(task, logits[row]) for row, i in enumerate(part)}
        return results

    def suffix(self, task: Task, clean: Prefill, start: int, edits: list[Any], corrupt: Any) -> torch.Tensor:
        """Logits [A, V] at the last position; row r enters at its first layer, with `edits` sorted by it."""
        decoder = self.decoder
        x = torch.empty(0, task.num_tokens - start, decoder.width, device=DEVICE)
        for layer in range(decoder.num_layers):
            entering = [e for e in edits if first_layer(e) == layer]
            rows = [entered(task, e, clean.residuals[layer][start:], corrupt, start) for e in entering]
            x = torch.cat([x, *(row[None] for row in rows)])
            if len(x):
                active = edits[: len(x)]
                mask = blocked_edges(task, active, layer, start)
                heads = {r: e["head"] for r, e in enumerate(active) if e["op"] == "ablate" and e["layer"] == layer}
                x = decoder.suffix_layer(layer, x, start, clean.cache[layer], mask, heads)
        last = x[:, -1]
        left = [entered(task, e, clean.residuals[-1][start:], corrupt, start)[-1:] for e in edits[len(last) :]]
        return decoder.logits(torch.cat([last, *left]))


def first_layer(variant: Any) -> int:
    """The layer before which a variant's residual stream is clean, or set by the edit."""
    match variant["op"]:
        case "knockout":
            return variant["layers"][0]
        case "patch":
            return variant["layer"] + 1
    return variant["layer"] or 0


def start_of(task: Task, variant: Any) -> int:
    match variant["op"]:
        case "knockout":
            return int(task.positions(variant["query"])[0])
        case "patch":
            return variant["start"]
        case "scale":
            return int(task.positions(variant["where"])[0])
    return 0


def entered(task: Task, variant: Any, residual: torch.Tensor, corrupt: Any, start: int) -> torch.Tensor:
    """The residual stream [R, D] before a variant's first layer."""
    x = residual.clone()
    if variant["op"] == "patch":
        size = variant["stop"] - variant["start"]
        x[:size] = corrupt[variant["layer"] + 1][variant["start"] : variant["stop"]]
    elif variant["op"] == "scale":
        x[index(task, variant["where"]) - start] *= variant["factor"]
    return x


def blocked_edges(task: Task, active: list[Any], layer: int, start: int) -> torch.Tensor | None:
    """Bool [A, R, T] of forbidden edges in a layer, or None."""
    knockouts = [(r, e) for r, e in enumerate(active) if e["op"] == "knockout" and layer in e["layers"]]
    if not knockouts:
        return None
    mask = torch.zeros(len(active), task.num_tokens - start, task.num_tokens, dtype=torch.bool, device=DEVICE)
    for row, edit in knockouts:
        queries = index(task, edit["query"]) - start
        mask[row, queries[:, None], index(task, edit["key"])[None]] = True
    return mask


def load(options: argparse.Namespace) -> Worker:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "attention": "sdpa, by hand"}
    return Worker(run=Strong(options), versions=versions, device=device_name(), loops=False, peak_bytes=PEAK)


if __name__ == "__main__":
    serve(load)
