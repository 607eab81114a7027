"""What Qwen's and Hugging Face's own code make of `layout_cases`: grids, token ids, positions, features.

    PYTHONPATH=. python -m tests.reference.layout_originals --out tests/reference/fixtures [--arrays FOLDER]

Run once in each environment of README.md; the file is named after the version of transformers. Media go the way that
the model cards show: `process_mm_info` or `process_vision_info`, then the processor, then the model's `get_rope_index`.
Qwen2.5-VL is told the sampled rates, as `process_vision_info(..., return_video_kwargs=True)` gives them.
"""

import argparse
import inspect
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import qwen_omni_utils
import qwen_vl_utils
import torch
import transformers

from tests.reference import layout_cases, tiny_omni
from tests.reference.layout_cases import CASES, LayoutCase
from tests.reference.summaries import JOIN, compact, digest, line_lengths, run_lengths, summary

OLD_ROPE = {"rope_theta": 10000.0, "rope_scaling": dict(tiny_omni.MROPE)}


def processor_of(family: str, directory: Path) -> Any:
    """The family's processor from a directory without weights."""
    directory.mkdir()
    tiny_omni.write_files(directory, hears=family == "qwen2_5_omni")
    if family == "qwen2_5_omni":
        return transformers.Qwen2_5OmniProcessor.from_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": family}))
    return transformers.Qwen2_5_VLProcessor.from_pretrained(directory)


def rope_owner(family: str) -> Any:
    """The model that counts positions, without weights."""
    raw = layout_cases.hf_config(family)
    raw.pop("architectures", None), raw.pop("model_type")
    text = {**raw["text_config"], **({} if transformers.__version__ >= "5" else OLD_ROPE)}
    with torch.device("meta"):
        if family == "qwen2_5_omni":
            config = transformers.Qwen2_5OmniThinkerConfig(**{**raw, "text_config": text})
            if not hasattr(config, "image_token_id"):
                for kind, token in tiny_omni.PLACEHOLDERS.items():
                    setattr(config, f"{kind}_token_id", token)
            return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
        flat = transformers.__version__ < "4.52"  # the text's keys at top level
        raw.pop("text_config")
        config = transformers.Qwen2_5_VLConfig(**{**raw, **(text if flat else {"text_config": text})})
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        return model if hasattr(model, "get_rope_index") else model.model


def batch_of(case: LayoutCase, messages: list[dict[str, Any]], processor: Any) -> Mapping[str, torch.Tensor]:
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text if isinstance(text, list) else [text]
    if case.family == "qwen2_5_omni":
        audio, images, videos = qwen_omni_utils.process_mm_info(messages, use_audio_in_video=case.audio_in_video)
        more = {} if case.fps is None else {"fps": case.fps}
        if case.audio_in_video and transformers.__version__ >= "5":  # which does not take the published call any more
            more |= {"load_audio_from_video": True, "audio_from_video_indices": sources_of_sound(case)}
        else:
            more["use_audio_in_video"] = case.audio_in_video
        media = {"audio": audio, "images": images, "videos": videos}
        return processor(text=text, return_tensors="pt", padding=True, **media, **more)
    new = transformers.__version__ >= "5"
    images, videos, more = qwen_vl_utils.process_vision_info(
        messages, image_patch_size=14, return_video_kwargs=True, return_video_metadata=new
    )
    if videos is None:
        more = {}
    elif new:
        videos, metadata = zip(*videos, strict=True)
        more = {**more, "video_metadata": list(metadata)}
    else:
        more.pop("do_sample_frames")
    videos = None if videos is None else list(videos)
    return processor(text=text, images=images, videos=videos, return_tensors="pt", padding=True, **more)


def sources_of_sound(case: LayoutCase) -> list[int | None]:
    """For each sound of the prompt, the video that it belongs to."""
    media = [item for item in case.items if isinstance(item, layout_cases.Sound | layout_cases.Video)]
    videos = [item for item in media if isinstance(item, layout_cases.Video)]
    return [videos.index(item) if isinstance(item, layout_cases.Video) else None for item in media]


def positions_of(case: LayoutCase, batch: Mapping[str, torch.Tensor], model: Any, audio_in_video: bool) -> np.ndarray:
    """int32 [3, T]; a prompt of text alone is counted by the decoder itself."""
    grids = [batch.get(name) for name in ("image_grid_thw", "video_grid_thw")]
    sounds = batch.get("feature_attention_mask")
    if all(grid is None for grid in grids) and sounds is None:
        return np.tile(np.arange(batch["input_ids"].shape[1], dtype=np.int32), (3, 1))
    if case.family == "qwen2_5_omni":
        seconds = batch.get("video_second_per_grid")
        positions, _ = model.get_rope_index(
            batch["input_ids"],
            *grids,
            batch["attention_mask"],
            audio_in_video,
            None if sounds is None else sounds.sum(-1),
            None if seconds is None else torch.as_tensor(seconds),
        )
    else:
        more = {"second_per_grid_ts": batch.get("second_per_grid_ts"), "attention_mask": batch["attention_mask"]}
        if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
            more["mm_token_type_ids"] = batch["mm_token_type_ids"]
        positions, _ = model.get_rope_index(
            input_ids=batch["input_ids"], image_grid_thw=grids[0], video_grid_thw=grids[1], **more
        )
    return positions[:, 0].numpy().astype(np.int32)


def features_of(batch: Mapping[str, torch.Tensor]) -> dict[str, list[np.ndarray]]:
    """The arrays of each clip, as the towers get them."""
    clips: dict[str, list[np.ndarray]] = {}
    for values, grid, kind in (
        ("pixel_values", "image_grid_thw", "image"),
        ("pixel_values_videos", "video_grid_thw", "video"),
    ):
        if batch.get(values) is not None:
            sizes = batch[grid].prod(-1).tolist()
            clips[kind] = [part.numpy().astype(np.float32) for part in batch[values].split(sizes)]
    if batch.get("input_features") is not None:
        masks = batch["feature_attention_mask"].bool()
        mels = zip(batch["input_features"], masks, strict=True)
        clips["audio"] = [np.ascontiguousarray(mel[:, mask].T.numpy()) for mel, mask in mels]
    return clips


def row_of(case: LayoutCase, processor: Any, model: Any, folder: Path, arrays: Path | None) -> dict[str, Any]:
    batch = batch_of(case, layout_cases.messages(case, folder), processor)
    seconds = batch.get("video_second_per_grid", batch.get("second_per_grid_ts"))
    positions = positions_of(case, batch, model, case.audio_in_video)
    clips = features_of(batch)
    if arrays is not None:
        named = {f"{kind}{i}": array for kind, parts in clips.items() for i, array in enumerate(parts)}
        np.savez(arrays / f"{CASES.index(case):03d}.npz", **named)
    row = {
        "name": case.name,
        "images": as_list(batch.get("image_grid_thw")),
        "videos": as_list(batch.get("video_grid_thw")),
        "seconds_per_grid": [] if seconds is None else [float(s) for s in seconds],
        "audio_frames": [len(mel) for mel in clips.get("audio", [])],
        "token_ids": run_lengths(batch["input_ids"][0].tolist()),
        "positions": {
            "sha256": digest(positions),
            "largest": int(positions.max()),
            "last": int(positions[0, -1]),
            "t": line_lengths(positions[0].tolist()),
        },
        "features": {kind: [summary(array) for array in parts] for kind, parts in clips.items()},
    }
    if case.audio_in_video:
        try:
            published = positions_of(case, batch, model, False)
            row["published_positions"] = {"sha256": digest(published), "t": line_lengths(published[0].tolist())}
        except RuntimeError as error:  # two videos with their sounds
            row["published_positions"] = {"error": str(error)}
    return row


def as_list(grid: torch.Tensor | None) -> list[list[int]]:
    return [] if grid is None else grid.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, help="keep the features themselves here, for tests.reference.compare")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    families = ["qwen2_5_vl"] + (["qwen2_5_omni"] if hasattr(transformers, "Qwen2_5OmniProcessor") else [])
    if arguments.arrays:
        arguments.arrays.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        tools = {family: (processor_of(family, Path(name) / family), rope_owner(family)) for family in families}
        for i, case in enumerate(CASES):
            if case.family in tools and arguments.only in case.name:
                folder = Path(name) / str(i)
                folder.mkdir()
                start = time.monotonic()
                rows.append(row_of(case, *tools[case.family], folder, arguments.arrays))
                print(f"{case.name}: {time.monotonic() - start:.1f} s", flush=True)
    head = {"transformers": transformers.__version__, "torch": torch.__version__}
    body = JOIN.join(compact(row) for row in rows)
    path = arguments.out / f"layout-{transformers.__version__}.json"
    path.write_text(json.dumps({"versions": head})[:-1] + f',\n"cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
