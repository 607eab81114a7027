"""Run under one version of transformers: what that version's modelling code makes of keys in each section.

Two questions are put to a version itself. Does a checkpoint compute the same when the keys that avjax takes to be inert
in a section hold something odd? And which declarations of `tie_word_embeddings` tie the embeddings?
"""

import copy
import itertools
import json
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.versions.checkpoints import CHECKPOINTS
from tests.versions.save import CLASSES, class_of, compute, has_omni, is_tied, load

Config = dict[str, Any]

KEYS = runpy.run_path(str(Path(__file__).parents[2] / "avjax" / "families" / "inert_keys.py"))
ABOVE_VL = KEYS["VL"] | KEYS["DECODER_SIZES"] | KEYS["DECODER_LENGTHS"]
SECTIONS: dict[str, dict[tuple[str, ...], frozenset[str]]] = {
    "omni": {
        (): KEYS["OMNI"] - {"talker_config", "token2wav_config", "enable_audio_output"},
        ("thinker_config",): KEYS["THINKER"],
        ("thinker_config", "text_config"): KEYS["DECODER"],
        ("thinker_config", "vision_config"): KEYS["VISION"] | {"tokens_per_second"},
        ("thinker_config", "audio_config"): KEYS["AUDIO"],
    },
    "thinker": {(): KEYS["THINKER"], ("text_config",): KEYS["DECODER"]},
    "vl": {(): ABOVE_VL, ("text_config",): KEYS["DECODER"], ("vision_config",): KEYS["VISION"]},
}
# Never odd: what a section is; a pruning that no version has for these models; the precision, which whoever loads a
# checkpoint chooses; and settings that a version refuses when they are odd.
LEFT_ALONE = frozenset(
    """
    model_type pruned_heads transformers_version dtype torch_dtype use_return_dict torchscript num_return_sequences
    """.split()
)
ODD: Config = {
    "architectures": ["Odd"],
    "_name_or_path": "odd",
    "_commit_hash": "odd",
    "_attn_implementation": "sdpa",
    "_attn_implementation_internal": "sdpa",
    "attn_implementation": "sdpa",
    "base_model_tp_plan": {"layers.*.mlp": "colwise"},
    "id2label": {"0": "odd", "1": "even", "2": "none"},
    "label2id": {"odd": 0, "even": 1, "none": 2},
    "num_labels": 3,
    "tokenizer_class": "Odd",
    "prefix": "odd",
    "problem_type": "regression",
    "finetuning_task": "odd",
    "task_specific_params": {"odd": {}},
    "bad_words_ids": [[7]],
    "suppress_tokens": [7],
    "begin_suppress_tokens": [7],
    "exponential_decay_length_penalty": [1, 2.0],
    "unsloth_version": "odd",
    "hidden_act": "gelu",
    "layer_types": ["sliding_attention", "sliding_attention"],
    "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0, "mrope_section": [2, 1, 1]},
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0, "mrope_section": [2, 1, 1]},
}
BOOLEANS = frozenset(
    """
    _attn_implementation_autoset use_cache output_hidden_states output_attentions
    output_scores return_dict_in_generate use_bfloat16 tf_legacy_loss gradient_checkpointing is_decoder
    is_encoder_decoder add_cross_attention tie_encoder_decoder tie_word_embeddings do_sample early_stopping
    remove_invalid_values enable_talker use_sliding_window unsloth_fixed return_dict
    """.split()
)
FRACTIONS = frozenset(
    """
    dropout attention_dropout activation_dropout encoder_layerdrop initializer_range temperature top_p typical_p
    """.split()
)


def odd_value(key: str) -> Any:
    """A value that no checkpoint has."""
    if key in ODD:
        return ODD[key]
    return True if key in BOOLEANS else 0.7 if key in FRACTIONS else 7


def probe_keys(directory: Path) -> dict[str, Any]:
    """For each section, the keys that changed nothing, and what became of a checkpoint with one of the others."""
    results: dict[str, Any] = {}
    for kind, sections in SECTIONS.items():
        if kind != "vl" and not has_omni():
            continue
        source = next(directory / name for name, saved in CHECKPOINTS.items() if saved.kind == kind)
        raw = json.loads((source / "config.json").read_text())
        plain = compute(load(kind, source), kind)[1]
        for path, keys in sections.items():
            if kind == "vl" and "text_config" not in raw:  # one flat section is the model's and the decoder's
                keys = keys if path else keys - KEYS["DECODER_SIZES"]
                if path == ("text_config",):
                    continue

            def outcome(keys: list[str], kind=kind, source=source, raw=raw, path=path, plain=plain) -> str:
                try:
                    logits = compute(load(kind, source, with_keys(raw, path, keys)), kind)[1]
                except Exception as error:  # noqa: BLE001 - whatever a version raises is its answer
                    return f"{type(error).__name__}: {error}"[:100]
                return "same" if abs(logits - plain).max() < 2e-5 else "differs"

            others = answers_by_key(sorted(keys - LEFT_ALONE), outcome)
            same = sorted(keys - LEFT_ALONE - others.keys())
            results[".".join((kind, *path))] = {"same": same, "other": others}
    return results


def answers_by_key(keys: list[str], outcome: Callable[[list[str]], str]) -> dict[str, str]:
    """The keys that change something, found by halves, each with what it changes."""
    answer = outcome(keys)
    if answer == "same":
        return {}
    if len(keys) == 1:
        return {keys[0]: answer}
    half = len(keys) // 2
    return {**answers_by_key(keys[:half], outcome), **answers_by_key(keys[half:], outcome)}


def with_keys(raw: Config, path: tuple[str, ...], keys: list[str]) -> Config:
    """A copy of a config with odd values in one section."""
    raw = copy.deepcopy(raw)
    section = raw
    for name in path:
        section = section[name]
    section.update({key: odd_value(key) for key in keys})
    return raw


def probe_tied(directory: Path) -> list[dict[str, Any]]:
    """Whether the embeddings are tied, for every declaration in the model's section and in the decoder's."""
    results = []
    for kind, (config_name, model_name) in CLASSES.items():
        if kind != "vl" and not has_omni():
            continue
        source = next(directory / name for name, saved in CHECKPOINTS.items() if saved.kind == kind)
        raw = json.loads((source / "config.json").read_text())
        for model, text in itertools.product((None, False, True), repeat=2):
            changed = copy.deepcopy(raw)
            section = changed["thinker_config"] if kind == "omni" else changed
            sections = {"model": (section, model)}
            if "text_config" in section:
                sections["text"] = (section["text_config"], text)
            for where, value in sections.values():
                where.pop("tie_word_embeddings", None)
                if value is not None:
                    where["tie_word_embeddings"] = value
            with tempfile.TemporaryDirectory() as written:
                (Path(written) / "config.json").write_text(json.dumps(changed))
                config = class_of(config_name).from_pretrained(written)
            tied = is_tied(class_of(model_name)(config))
            results.append({"kind": kind, "model": model, "text": text if "text" in sections else model, "tied": tied})
    return results


def main(directory: Path) -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    content = {"keys": probe_keys(directory), "tied": probe_tied(directory)}
    lines = [f'"keys": {json.dumps(content["keys"])}', *(f'"tied": {json.dumps(content["tied"])}',)]
    (directory / "probes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
