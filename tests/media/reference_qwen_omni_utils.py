"""Writes what `qwen-omni-utils` makes of small files, for test_fidelity.py. Run by hand, in an environment of its own:

    python -m tests.media.reference_qwen_omni_utils TORCHVISION

It needs qwen-omni-utils 0.0.9, librosa 0.11, audioread 3.1 with the ffmpeg program, transformers 4.52.4, torch, PyAV.
TORCHVISION is an unpacked wheel of torchvision 0.23.0, the last with `io.read_video`; only that file of it is used, so
that any torchvision may be installed. Written with torch 2.14.1, PyAV 18.1 and ffmpeg 5.1.
"""

import hashlib
import importlib.util
import json
import struct
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FOLDER = Path(__file__).parent / "fixtures" / "qwen_omni_utils"
QUARTER_TURN = (0, 1, -1, 0)


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: waves with sharp edges, which overshoot when they are resized."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(40 * (x * (c + 1) + y * (3 - c)) + number) for c in range(3)]
    edges = ((x * 8).astype(int) + (y * 8).astype(int) + number) % 2
    return np.clip(128 + 90 * np.stack(waves, axis=-1) + 80 * edges[..., None] - 40, 0, 255).astype(np.uint8)


def board(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: slanted stripes of few colours, which take little space."""
    y, x = np.mgrid[:height, :width]
    stripes = (3 * x + 2 * y + 50 * number) // 97 % 4
    return np.array([(0, 0, 0), (250, 20, 90), (255, 255, 255), (60, 200, 10)], np.uint8)[stripes]


def loud_sound(seconds: float, rate: int) -> np.ndarray:
    """float32 [2, n], beyond full scale in places."""
    time = np.arange(round(seconds * rate)) / rate
    left = 1.3 * np.sin(2 * np.pi * 330 * time) * np.sin(2 * np.pi * 3 * time)
    return np.stack([left, 0.4 * np.sin(2 * np.pi * 1200 * time)]).astype(np.float32)


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """A lossless film, so that its frames do not depend on the decoder."""
    with av.open(str(path), "w", format="mov") as container:
        stream: Any = container.add_stream("png", rate=10)
        (stream.height, stream.width, _), stream.pix_fmt = frames[0].shape, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def turn(path: Path) -> None:
    """Writes a quarter turn into the header, as phones do."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    a, b, c, d = (value << 16 for value in QUARTER_TURN)
    data[header + 44 : header + 80] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_aac(path: Path, samples: np.ndarray, rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=rate, layout="stereo", bit_rate=96_000)
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_inputs() -> None:
    import soundfile
    from PIL import Image

    FOLDER.mkdir(parents=True, exist_ok=True)
    write_video(FOLDER / "turned.mov", [picture(number, 24, 36) for number in range(12)])
    turn(FOLDER / "turned.mov")
    write_video(FOLDER / "large.mov", [board(number, 720, 1280) for number in range(4)])
    write_aac(FOLDER / "loud.mp4", loud_sound(0.6, 44_100), 44_100)
    soundfile.write(FOLDER / "loud.wav", loud_sound(0.1, 48_000).T, 48_000, subtype="FLOAT")
    colour = picture(0, 60, 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colour).save(FOLDER / "turned.png", exif=exif)
    clear = Image.fromarray(np.dstack([colour, colour[::-1, :, 0]]))
    clear.save(FOLDER / "clear.png")
    clear.convert("LA").save(FOLDER / "grey-clear.png")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(FOLDER / "grey16.png")
    Image.fromarray(picture(0, 6, 300)).save(FOLDER / "ribbon.png")


def read_video_of(wheel: Path) -> Any:
    """`torchvision.io.read_video` of 0.23, without the rest of that version."""
    package = types.ModuleType("tv23")
    package.__path__ = []
    io = types.ModuleType("tv23.io")
    io.__path__ = [str(wheel / "torchvision" / "io")]
    utils, opt = types.ModuleType("tv23.utils"), types.ModuleType("tv23.io._video_opt")
    utils._log_api_usage_once = lambda _: None
    opt.default_timebase, opt.Timebase, opt.VideoMetaData = Fraction(0, 1), None, None
    io._video_opt = opt
    sys.modules |= {"tv23": package, "tv23.io": io, "tv23.utils": utils, "tv23.io._video_opt": opt}
    spec = importlib.util.spec_from_file_location("tv23.io.video", wheel / "torchvision" / "io" / "video.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.read_video


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def main() -> None:
    import torchvision
    from qwen_omni_utils.v2_5 import vision_process
    from qwen_omni_utils.v2_5.audio_process import process_audio_info
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    write_inputs()
    torchvision.io.read_video = read_video_of(Path(sys.argv[1]))
    torchvision.get_video_backend = lambda: "pyav"
    vision_process.get_video_reader_backend = lambda: "torchvision"
    expected: dict[str, Any] = {}
    for name in ("turned.mov", "large.mov"):
        frames, fps = vision_process.fetch_video({"video": str(FOLDER / name)}, return_video_sample_fps=True)
        patches = Qwen2VLVideoProcessor()(videos=[frames], return_tensors="pt")
        values = frames.numpy().astype(np.uint8).transpose(0, 2, 3, 1)
        assert (values.transpose(0, 3, 1, 2) == frames.numpy()).all()
        expected[name] = {
            "shape": values.shape,
            "fps": fps,
            "frames": digest(values),
            "grid": patches["video_grid_thw"][0].tolist(),
            "patches": digest(patches["pixel_values_videos"].numpy()),
        }
    for name in ("turned.png", "clear.png", "grey-clear.png", "grey16.png", "ribbon.png"):
        image = vision_process.fetch_image({"image": str(FOLDER / name)})
        patches = Qwen2VLImageProcessor(max_pixels=16384 * 28 * 28)(images=[image], return_tensors="np")
        expected[name] = {
            "shape": np.asarray(image).shape,
            "pixels": digest(np.asarray(image)),
            "grid": patches["image_grid_thw"][0].tolist(),
            "patches": digest(patches["pixel_values"]),
        }
    sounds = {}
    for name, kind in (("loud.mp4", "video"), ("loud.wav", "audio")):
        message = {"role": "user", "content": [{"type": kind, kind: str(FOLDER / name)}]}
        (sounds[name],) = process_audio_info([message], use_audio_in_video=True)
    np.savez_compressed(FOLDER / "sounds.npz", **sounds)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
