"""How far our features are from those that the original code made of the same files.

    PYTHONPATH=. python -m tests.reference.compare ARRAYS [--media qwen-omni-utils]

ARRAYS is the folder that `layout_originals --arrays` filled. Prints the largest and the mean difference for each clip
of each case: of pixels in levels of 255, of the log-mel in its own unit; "equal" is equal to the bit.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from avjax.families.registry import read_config
from avjax.media.features import audio_features, image_features, video_features
from avjax.media.options import CLIP_STD, MediaOptions
from avjax.models.config import VisionConfig
from tests.reference import layout_cases
from tests.reference.layout_cases import CASES, Image, LayoutCase, Sound, Text, Video

AUDIO = (("chunk_length", 300), ("feature_size", 128), ("hop_length", 160), ("n_fft", 400), ("sampling_rate", 16000))
LEVELS = 255 * float(np.mean(CLIP_STD))  # of a pixel, per unit of a normalised one


def features_of(case: LayoutCase, folder: Path, vision: VisionConfig, media: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of each clip under the names that `layout_originals` gives them."""
    arrays: dict[str, list[np.ndarray]] = {"image": [], "video": [], "audio": []}
    for i, item in enumerate(case.items):
        if isinstance(item, Text):
            continue
        content = layout_cases.content(item, folder / str(i))
        path = content[content["type"]]
        options = MediaOptions(audio=AUDIO).override(fps=getattr(item, "fps", None), **media)
        if isinstance(item, Image):
            arrays["image"].append(image_features(path, vision, options).patches)
        if isinstance(item, Video):
            arrays["video"].append(video_features(path, vision, options)[0].patches)
        if isinstance(item, Sound) or (isinstance(item, Video) and case.audio_in_video):
            arrays["audio"].append(audio_features(path, options).mel)
    return {f"{kind}{i}": array for kind, parts in arrays.items() for i, array in enumerate(parts)}


def difference(ours: np.ndarray, theirs: np.ndarray, unit: float) -> str:
    if ours.shape != theirs.shape:
        return f"shapes {list(ours.shape)} and {list(theirs.shape)}"
    if np.array_equal(ours, theirs):
        return "equal"
    apart = np.abs(ours.astype(np.float64) - theirs) * unit
    return f"{apart.max():.2g} {apart.mean():.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--media", help="the option of that name")
    arguments = parser.parse_args()
    media = {"media": arguments.media} if arguments.media else {}
    for i, case in enumerate(CASES):
        path = arguments.arrays / f"{i:03d}.npz"
        if not path.exists():
            continue
        vision = read_config(layout_cases.hf_config(case.family)).vision
        with tempfile.TemporaryDirectory() as folder, np.load(path) as theirs:
            ours = features_of(case, Path(folder), vision, media)
            assert ours.keys() == set(theirs), f"{case.name}: {sorted(ours)} and {sorted(theirs)}"
            rows = [
                f"{name} {difference(array, theirs[name], 1.0 if name.startswith('audio') else LEVELS)}"
                for name, array in ours.items()
            ]
        print(f"{case.name} | {' | '.join(rows)}", flush=True)


if __name__ == "__main__":
    main()
