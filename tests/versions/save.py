"""Run under one version of transformers: what that version itself writes and computes, into a directory.

`tests.versions.build` makes the environments and calls this in each.
"""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.versions import inputs
from tests.versions.checkpoints import CHECKPOINTS, Saved
from tests.versions.published import PUBLISHED

Config = dict[str, Any]


def class_of(name: str) -> Any:
    """A class of this version, whether or not it exports it at the top."""
    if hasattr(transformers, name):
        return getattr(transformers, name)
    module = "omni" if "Omni" in name else "vl"
    kind = "configuration" if name.endswith("Config") else "modeling"
    return getattr(__import__(f"transformers.models.qwen2_5_{module}.{kind}_qwen2_5_{module}", fromlist=[name]), name)


def has_omni() -> bool:
    """Whether this version knows Qwen2.5-Omni, as it does since 4.52."""
    return hasattr(transformers, "Qwen2_5OmniForConditionalGeneration")


CLASSES = {
    "vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "thinker": ("Qwen2_5OmniThinkerConfig", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "omni": ("Qwen2_5OmniConfig", "Qwen2_5OmniForConditionalGeneration"),
}


def save_configs(directory: Path) -> None:
    """Default configurations, and published ones after this version loaded and saved them."""
    directory.mkdir()
    for kind in CLASSES if has_omni() else ["vl"]:
        write_config(class_of(CLASSES[kind][0])(), directory / f"{kind}-default.json")
    for name, raw in PUBLISHED.items():
        kind = "omni" if "omni" in name else "vl"
        if kind == "omni" and not has_omni():
            continue
        with tempfile.TemporaryDirectory() as original:
            (Path(original) / "config.json").write_text(json.dumps(raw))
            config = class_of(CLASSES[kind][0]).from_pretrained(original)
        write_config(config, directory / f"{name}.json")
        if kind == "omni":
            write_config(config.thinker_config, directory / f"{name}-thinker.json")


def write_config(config: Any, path: Path) -> None:
    with tempfile.TemporaryDirectory() as saved:
        config.save_pretrained(saved)
        content = json.loads((Path(saved) / "config.json").read_text())
    path.write_text(json.dumps(content) + "\n")


def build_model(saved: Saved) -> Any:
    """A model of the class whose every weight depends on its published name alone."""
    config_name, model_name = CLASSES[saved.kind]
    config = class_of(config_name)(**copy.deepcopy(saved.config))
    with tempfile.TemporaryDirectory() as directory:
        class_of(model_name)(config).save_pretrained(directory)  # under the names that this version writes
        path = Path(directory) / "model.safetensors"
        values = {name: inputs.weight(name, array.shape) for name, array in load_file(path).items()}
        save_file(values, path, metadata={"format": "pt"})
        return load(saved.kind, Path(directory))


def load(kind: str, source: Path, raw: Config | None = None) -> Any:
    """This version's model of a checkpoint in float32, with another config where one is given."""
    with tempfile.TemporaryDirectory() as directory:
        for path in source.iterdir():
            (Path(directory) / path.name).symlink_to(path.absolute())
        if raw is not None:
            (Path(directory) / "config.json").unlink()
            (Path(directory) / "config.json").write_text(json.dumps(raw))
        if kind == "omni":  # whose voices `from_pretrained` reads
            torch.save({}, Path(directory) / "spk_dict.pt")
        model_class = class_of(CLASSES[kind][1])
        arguments = {"attn_implementation": "eager", "local_files_only": True}
        return model_class.from_pretrained(directory, torch_dtype=torch.float32, **arguments).eval()


def is_tied(model: Any) -> bool:
    thinker = getattr(model, "thinker", model)
    return thinker.lm_head.weight.data_ptr() == thinker.get_input_embeddings().weight.data_ptr()


def compute(model: Any, kind: str) -> tuple[list[int], np.ndarray]:
    """What this version says greedily, and the logits of every token that it says."""
    thinker = getattr(model, "thinker", model)
    tensors = {name: torch.tensor(array) for name, array in inputs.batch(audio=kind != "vl").items()}
    prompt = len(tensors["input_ids"][0])
    logits = []
    for _ in range(inputs.GENERATED):
        call = dict(tensors)
        if kind == "vl" and int(transformers.__version__.split(".")[0]) >= 5:
            types = {inputs.IDS["image"]: 1, inputs.IDS["video"]: 2}
            ids = call["input_ids"][0].tolist()
            call["mm_token_type_ids"] = torch.tensor([[types.get(i, 0) for i in ids]])
        output = thinker(**call, use_cache=False, return_dict=True).logits[0, -1].float()
        logits.append(output.numpy())
        following = output.argmax().reshape(1, 1)
        tensors["input_ids"] = torch.cat([tensors["input_ids"], following], dim=1)
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    return tensors["input_ids"][0, prompt:].tolist(), np.stack(logits)


def save_checkpoints(directory: Path) -> None:
    reference = {}
    for name, saved in CHECKPOINTS.items():
        if saved.kind != "vl" and not has_omni():
            continue
        model = build_model(saved)
        tokens, logits = compute(model, saved.kind)
        reference[name] = {
            "kind": saved.kind,
            "tied": is_tied(model),
            "tokens": tokens,
            "logits": np.round(logits.astype(np.float64), 6).tolist(),
        }
        model.to(torch.bfloat16).save_pretrained(
            directory / name, safe_serialization=True, max_shard_size=saved.shard_size
        )
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in reference.items())
    (directory / "reference.json").write_text("{\n" + lines + "\n}\n")


def main(directory: Path) -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    directory.mkdir(parents=True)
    save_configs(directory / "configs")
    save_checkpoints(directory)
