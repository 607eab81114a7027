"""What the torch workers share: the model, the loop over variants, masks as tensors, where time and memory are read."""

import abc
import argparse
import importlib.metadata
import time
from typing import Any

import numpy as np
import torch
from protocol import Task, Worker

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load_model(options: argparse.Namespace, attention: str) -> Any:
    """HF's model in float32, without a stop token, so that every continuation has its full length."""
    import transformers

    configure(options.threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        options.checkpoint / "plain", dtype=torch.float32, attn_implementation=attention
    )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(DEVICE).eval()  # pyright: ignore[reportArgumentType]


def configure(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False


class Loop(abc.ABC):
    """Variants one after the other, a full forward pass each: what every library of hooks does with a workload."""

    def __call__(self, task: Task) -> dict[int, list[Any]]:
        ids = tensor_ids(task.document["ids"])
        if task.name == "e":
            return self.lens(task, ids)
        corrupt = None
        if task.name == "c":
            corrupt = self.timed_residuals(task, tensor_ids(task.document["corrupt_ids"]))
        return {i: self.variant(task, variant, ids, corrupt) for i, variant in task.variants.items()}

    @abc.abstractmethod
    def variant(self, task: Task, variant: Any, ids: torch.Tensor, corrupt: Any) -> list[Any]:
        """What one variant is asked for: answers, or generated ids in b.

        Args:
          corrupt: the residuals that patches come from.
        """

    @abc.abstractmethod
    def residuals(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Every layer's output [1, T, D]."""

    @abc.abstractmethod
    def unembedded(self, row: torch.Tensor) -> torch.Tensor:
        """Logits [1, V] of a residual [1, D], with the final norm before."""

    def timed_residuals(self, task: Task, ids: torch.Tensor) -> list[torch.Tensor]:
        """The same, as seconds that do not grow with the number of variants."""
        start = time.perf_counter()
        seen = self.residuals(ids)
        task.fixed_seconds = time.perf_counter() - start
        return seen

    def lens(self, task: Task, ids: torch.Tensor) -> dict[int, list[Any]]:
        """One product with the unembedding per position and layer, as published."""
        seen, top = self.timed_residuals(task, ids), task.document["top"]
        return {
            i: [self.unembedded(x[0, v["position"]][None]).topk(top).indices[0].tolist() for x in seen]
            for i, v in task.variants.items()
        }


def loop_worker(run: Loop, *packages: str, **about: str) -> Worker:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", *packages)}
    return Worker(run=run, versions=versions | about, device=device_name(), loops=True, peak_bytes=PEAK)


def tensor_ids(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], device=DEVICE)


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def peak_bytes() -> int:
    """The allocator's peak since the last call, above what it holds now: the parameters."""
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return max(0, peak)


PEAK = peak_bytes if DEVICE == "cuda" else None


def index(task: Task, name: str) -> torch.Tensor:
    """Positions of a token group."""
    return torch.from_numpy(task.positions(name)).to(DEVICE)


def answers(task: Task, logits: torch.Tensor) -> list[float]:
    """The logits [V] of the two answer tokens."""
    return logits[task.document["answers"]].float().cpu().tolist()


def causal_mask(size: int) -> torch.Tensor:
    """Additive [1, 1, T, T], as HF's eager attention takes it."""
    lowest = torch.finfo(torch.float32).min
    return torch.full((size, size), lowest, device=DEVICE).triu(1)[None, None]


def blocked(task: Task, variant: Any, num_queries: int, num_keys: int) -> torch.Tensor | None:
    """Which edges a knockout forbids, bool [T, S]; queries are the last positions. None when it forbids none here.

    Keys beyond the prompt are generated tokens, and so is a single query at or beyond its end.
    """
    keys = np.zeros(num_keys, bool)
    keys[task.positions(variant["key"])] = True
    places = np.arange(num_keys - num_queries, num_keys)
    queries = np.isin(places, task.positions(variant["query"]))
    if variant["query"] in ("answer", "generated"):
        queries |= places >= task.num_tokens
    edges = queries[:, None] & keys[None]
    return torch.from_numpy(edges).to(DEVICE) if edges.any() else None
