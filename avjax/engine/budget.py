"""What a batch of variants may take of a device's memory."""

import dataclasses

import jax
import numpy as np

from avjax.models.attention import BLOCK_BOUNDS
from avjax.models.buckets import ROW_BUCKETS, count_bucket, largest_batch
from avjax.models.config import DecoderConfig

CPU_ROWS = 128  # rows of a batch beyond which a CPU gains nothing
ACCELERATOR_ROWS = 4096
REFERENCE_BATCH = 8  # whole passes


class NoRoom(ValueError):
    """The memory does not suffice for the clean pass and one variant, which take `need` bytes."""

    def __init__(self, message: str, need: int):
        super().__init__(message)
        self.need = need


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a batch may take.

    Attributes:
      memory_bytes: for everything that a sweep adds to the model's parameters.
      num_keys: padded prompt length.
      num_reads: positions that are read out.
      num_groups: M.
      num_slots: generated tokens that a variant may hold; 0 when nothing is generated.
      kept_logits: generated tokens whose logits are kept.
      key_slots: keys of the shared prompt with the empty slots of its blocks.
      masses: query sets times key classes of attention masses.
      site_weights: floats of one variant's edits of activations.
      num_sources: arrays of a site in every layer and position: sources, and the clean runs they are made of.
      on_cpu: whether the devices are CPUs.
      variant_devices: devices that the variants of a batch are cut over; the memory is that of each.
      model_devices: devices that heads and features are cut over, as far as they can be.
    """

    cfg: DecoderConfig
    memory_bytes: int
    itemsize: int
    num_keys: int
    num_reads: int
    num_groups: int
    num_slots: int = 0
    kept_logits: int = 0
    edges: bool = True
    clean_rows: int = 1
    num_sources: int = 0
    key_slots: int = 0
    masses: int = 0
    site_weights: int = 0
    variant_devices: int = 1
    model_devices: int = 1
    on_cpu: bool = dataclasses.field(default_factory=lambda: jax.default_backend() == "cpu")

    def _cut(self, count: int) -> int:
        """What a device has of so many heads, features or tokens."""
        return count // self.model_devices if count % self.model_devices == 0 else count

    def shared_bytes(self) -> int:
        """The clean pass and what is kept of it."""
        cfg, size = self.cfg, self.num_keys
        per_key = 2 * cfg.num_layers * self._cut(cfg.num_kv_heads) * cfg.head_dim * self.itemsize
        residual = (cfg.num_layers + 1) * self.clean_rows * cfg.embed_dim * self.itemsize
        cache_bytes = (size + max(size, self.key_slots)) * per_key + residual
        sources = self.num_sources * cfg.num_layers * size * cfg.embed_dim * self.itemsize
        block = min(size, BLOCK_BOUNDS[1])
        heads = 1 if self.on_cpu else self._cut(cfg.num_heads)
        work = size * (6 * cfg.embed_dim + 3 * self._cut(cfg.mlp_dim)) * 4 + 4 * heads * block * size * 4
        return cache_bytes + sources + work

    def variant_bytes(self, num_rows: int) -> int:
        """What one more variant of a batch takes."""
        cfg = self.cfg
        edit = cfg.num_layers * cfg.num_heads * self.num_groups**2 * 4 if self.edges else 0
        edit += 4 * self.site_weights + 2 * 4 * cfg.num_layers * cfg.num_heads * self.masses
        keys = min(self.num_keys, BLOCK_BOUNDS[1]) if num_rows > ROW_BUCKETS[-1] else num_rows
        heads = self._cut(cfg.num_heads) if num_rows <= ROW_BUCKETS[-1] or not self.on_cpu else 1
        scores = 4 * 4 * heads * keys * (max(self.num_keys, self.key_slots) + num_rows)
        own = 3 * self._cut(cfg.mlp_dim) + 4 * self._cut(cfg.num_heads) * cfg.head_dim
        activations = num_rows * (8 * cfg.embed_dim + own) * 4
        logits = (2 * self.num_reads + self.kept_logits + (3 if self.num_slots else 0)) * cfg.vocab_size * 4
        per_key = 2 * cfg.num_layers * self._cut(cfg.num_kv_heads) * cfg.head_dim * self.itemsize
        cache = 2 * per_key * (num_rows + self.num_slots) if self.num_slots else 0
        return edit + scores + activations + logits + cache

    def variants(self, num_rows: int, count: int) -> int:
        """How many variants of so many rows a batch holds.

        Raises:
          NoRoom: not even one fits the budget.
        """
        left = self.memory_bytes - self.shared_bytes()
        fit = left // self.variant_bytes(num_rows)
        if fit < 1:
            need = self.shared_bytes() + self.variant_bytes(num_rows)
            raise NoRoom(
                f"memory_bytes: expected at least {need:,} for the clean pass and one variant of {num_rows} rows, got "
                f"{self.memory_bytes:,} ({self.num_groups} token groups); raise it, shorten the prompt, or sweep over "
                "fewer different selectors at a time",
                need,
            )
        if self.num_slots:
            return self._on_each(fit, count_bucket(count))
        rows = CPU_ROWS if self.on_cpu else ACCELERATOR_ROWS
        # Two batches rather than one: the second starts at its own first layer. More read the parameters too often.
        return self._on_each(max(1, min(fit, rows // num_rows)), count_bucket(max(8, -(-count // 2))))

    def _on_each(self, most: int, wanted: int) -> int:
        """A batch for all devices of which each computes as many variants, at most `most`."""
        return largest_batch(min(most, -(-wanted // self.variant_devices))) * self.variant_devices

    def references(self) -> int:
        """How many whole passes run together: on a CPU one after the other, else as many as fit."""
        if self.on_cpu:
            return REFERENCE_BATCH
        return int(np.clip(self.memory_bytes // self.variant_bytes(self.num_keys), 1, REFERENCE_BATCH))
