"""Compiled programs on disk: a second process finds every program of the same sweep."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_hf import TinyCheckpoint

SCRIPT = """
import collections, json, sys
import jax.monitoring, numpy as np
import avjax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rsplit("/", 1)[-1]]))
avjax.cache_compilations(sys.argv[2])
model = avjax.load(sys.argv[1])
embeddings = np.random.default_rng(0).normal(size=(40, model.config.decoder.embed_dim))
types = ["text"] * 8 + ["video"] * 24 + ["text"] * 8
prompt = model.prompt_from_embeddings(embeddings, np.broadcast_to(np.arange(40), (3, 40)), types)
data = avjax.sweep(model, prompt, ["last->video@2", "text->video@3"], avjax.metrics.Logits((1, 2)), progress=False)
found = {"hits": events["cache_hits"], "misses": events["cache_misses"], "logits": data.logits.values.tolist()}
print(json.dumps(found))
"""


@pytest.mark.exhaustive
def test_a_second_process_compiles_nothing(omni: TinyCheckpoint, tmp_path: Path):
    def run() -> dict:
        command = [sys.executable, "-c", SCRIPT, str(omni.directory), str(tmp_path / "programs")]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    first, second = run(), run()
    assert first["misses"] > 0
    assert second["misses"] == 0
    assert second["hits"] > 0
    assert second["logits"] == first["logits"]
