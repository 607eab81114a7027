"""What is public of the hub's own files: quoted in hub.json, each with where it was seen."""

import collections
import json
import math
from pathlib import Path
from typing import Any

import pytest

from avjax.checkpoint.loading import assemble_model
from avjax.families.registry import abstract_network, family_of, read_config
from avjax.media.options import read_options
from avjax.models.parameters import parameter_paths
from tests.hub_configs import HUB_OMNI
from tests.versions.published import PUBLISHED

HUB: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "hub.json").read_text())
CONFIGS = [name for name, facts in HUB.items() if "config" in facts]
FINE_TUNES = [name for name, facts in HUB.items() if "weights" in facts]


def write_files(directory: Path, facts: dict[str, Any]) -> Path:
    for name in ("config", "preprocessor_config", "video_preprocessor_config", "generation_config"):
        if name in facts:
            (directory / f"{name}.json").write_text(json.dumps(facts[name]))
    return directory


@pytest.mark.parametrize("name", CONFIGS)
def test_a_public_config_is_of_its_published_size(name: str):
    facts = HUB[name]
    assert facts["source"]
    assert read_config(facts["config"]) == read_config(PUBLISHED[facts["size"]])


def test_a_fine_tune_has_a_size_in_its_outermost_section():
    assert HUB["TimeChat-Captioner-GRPO-7B"]["config"]["hidden_size"] == 3584


@pytest.mark.parametrize("name", FINE_TUNES)
def test_the_key_table_counts_the_tensors_and_bytes_of_the_public_index(name: str):
    facts = HUB[name]
    config = read_config(facts["config"])
    shapes = {path: leaf.shape for path, leaf in parameter_paths(abstract_network(config)).items()}
    table, counts, size = family_of(config).key_table(config), collections.Counter[str](), 0
    for rule in table.rules:
        entries = [published for _, published in rule.entries(shapes[rule.target][0])]
        counts.update((table.prefix + published).rsplit(".", published.count("."))[0] for published in entries)
        size += 2 * math.prod(shapes[rule.target])
    assert dict(counts) == facts["weights"]["prefixes"]
    assert size == facts["weights"]["total_size"]


def test_the_published_audio_section_is_the_one_that_tests_use():
    """As far as it was seen."""
    seen = HUB["Qwen2.5-Omni-7B"]["audio_config"]
    ours = HUB_OMNI["thinker_config"]["audio_config"]
    assert {key: ours[key] for key in seen.keys() & ours.keys()} == {
        key: seen[key] for key in seen.keys() & ours.keys()
    }
    raw = PUBLISHED["omni-7b"]
    thinker = raw["thinker_config"]
    merged = {**raw, "thinker_config": {**thinker, "audio_config": {**thinker["audio_config"], **seen}}}
    assert read_config(merged) == read_config(raw)


@pytest.mark.parametrize("name", FINE_TUNES)
def test_media_and_generation_settings_are_read(name: str, tmp_path: Path):
    facts = HUB[name]
    directory = write_files(tmp_path, facts)
    config = read_config(facts["config"])
    options = read_options(directory, config)
    assert (options.image_min_pixels, options.image_max_pixels) == (3136, 12845056)
    assert dict(options.audio)["chunk_length"] == 300
    generation = assemble_model(abstract_network(config), config, directory).generation
    assert generation.stop_tokens == ((151645, 151643) if "TimeChat" in name else (151645,))
    assert generation.unsupported == ()
    assert generation.repetition_penalty == 1.0
