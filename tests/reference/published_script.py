"""Runs the knockout script of the paper, as it was published, and keeps what it fed its model and what came out.

    PYTHONPATH=. python -m tests.reference.published_script SCRIPT --clips FOLDER --out tests/reference/fixtures

Run in the environment of transformers 4.52.4 (README.md). SCRIPT is `src/attention_knockout_experiment.py` of
`ramaneswaran/avllm_interpretability`, which is fetched and never kept here. It runs as `__main__` with its own command
line. Only two lines are ever exchanged, and both exchanges are named in the case: the order of question and video, and
the arguments of `generate`. Everything that is kept is read from the script's own variables or by hooks that watch.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.reference import cases, clips, whole_omni
from tests.reference.summaries import JOIN, compact, digest, line_lengths, run_lengths, summary

QUESTION = '                    {"type": "text", "text": QUERY_TEXT},\n'
VIDEO = '                    {"type": "video", "video": video_path},\n'
LIMIT = "            max_new_tokens=50,\n"
KEPT_TOKENS = 64  # of each caption; longer ones are held by their checksum


def edited(source: str, case: cases.CaptionCase) -> str:
    """The script with the exchanges that the case names; each line must be there exactly once."""
    for line in (QUESTION + VIDEO, LIMIT):
        if source.count(line) != 1:
            raise SystemExit(f"the script has changed: expected once, got {source.count(line)} times: {line!r}")
    if case.order == "media-first":
        source = source.replace(QUESTION + VIDEO, VIDEO + QUESTION)
    if case.positions == "proper":
        limit = "            thinker_max_new_tokens=50,\n            use_audio_in_video=USE_AUDIO_IN_VIDEO,\n"
        source = source.replace(LIMIT, limit)
    return source


@contextlib.contextmanager
def watched(record: dict[str, Any]):
    """Notes positions and the two best logits of every step, through hooks that change nothing."""
    thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration
    whole = transformers.Qwen2_5OmniForConditionalGeneration
    rope, quiet = thinker.get_rope_index, whole.disable_talker

    def get_rope_index(self, *args, **kwargs):
        positions, deltas = rope(self, *args, **kwargs)
        record["positions"] = positions[:, 0].tolist()
        return positions, deltas

    def disable_talker(self):
        quiet(self)
        self.thinker.lm_head.register_forward_hook(
            lambda _module, _inputs, logits: record["best"].append(logits[0, -1].topk(2).values.tolist())
        )

    record["best"] = []
    thinker.get_rope_index, whole.disable_talker = get_rope_index, disable_talker
    try:
        yield
    finally:
        thinker.get_rope_index, whole.disable_talker = rope, quiet


def caption(source: str, case: cases.CaptionCase, checkpoint: Path, clip: Path, folder: Path) -> dict[str, Any]:
    """One run of the script: its prompt and its caption."""
    script = folder / "script.py"
    script.write_text(edited(source, case))
    arguments = [
        *("--model_path", str(checkpoint), "--video_path", str(clip)),
        *("--knockout-rules", case.rules, "--query_text", cases.QUESTION),
    ]
    record: dict[str, Any] = {}
    command, sys.argv = sys.argv, [str(script), *arguments]
    try:
        with watched(record), contextlib.redirect_stdout(io.StringIO()):
            names = runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = command
    prompt = names["inputs"]["input_ids"][0].tolist()
    tokens = names["output_ids"][0].tolist()[len(prompt) :]
    positions = np.asarray(record["positions"], np.int32)
    return {
        "case": dataclasses.asdict(case),
        "prompt": {
            "token_ids": run_lengths(prompt),
            "positions": {"sha256": digest(positions), "t": line_lengths(positions[0].tolist())},
            "types": dict(sorted(names["Counter"](names["token_mapping"]).items())),
            "features": features(names["inputs"]),
        },
        "caption": {
            "tokens": tokens[:KEPT_TOKENS],
            "count": len(tokens),
            "sha256": digest(np.asarray(tokens, np.int32)),
            "smallest_margin": round(min(first - second for first, second in record["best"]), 6),
        },
    }


def features(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Enough to tell whether another program fed the same: shapes, sums, and a checksum of the exact bits."""
    mask = inputs["feature_attention_mask"][0].bool()
    mel = inputs["input_features"][0][:, mask].T.contiguous()
    arrays = {"patches": inputs["pixel_values_videos"], "mel": mel}
    return {
        "grid": inputs["video_grid_thw"].tolist(),
        "seconds_per_grid": [float(s) for s in inputs["video_second_per_grid"]],
        **{name: summary(array.numpy()) for name, array in arrays.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("--clips", type=Path, help="the folder of real clips; cases on them are left out without it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = arguments.script.read_text()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = clips.write_all(folder / "clips")
        kinds = sorted({case.model for case in cases.CAPTIONS})
        sums = {kind: whole_omni.write_whole(folder / kind, kind) for kind in kinds}
        path = arguments.out / "published_captions.json"
        stored = stored_rows(path, source, sums)
        rows = []
        for case in cases.CAPTIONS:
            clip = made.get(case.clip) or (arguments.clips and arguments.clips / case.clip)
            if case.name in stored:
                rows.append(stored[case.name])
                continue
            if clip is None:
                continue
            start = time.monotonic()
            rows.append(caption(source, case, folder / case.model, clip, folder))
            seconds = time.monotonic() - start
            path.write_text(document(source, sums, rows))
            print(f"{case.name}: {seconds:.0f} s, {compact(rows[-1]['caption'])[-80:]}", flush=True)


def stored_rows(path: Path, source: str, sums: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The runs that an earlier, interrupted one has left, of the same script and models; by the case's name."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if (stored["script"], stored["weights"]) != (hashlib.sha256(source.encode()).hexdigest(), sums):
        return {}
    fields = [field.name for field in dataclasses.fields(cases.CaptionCase)]
    rows = {}
    for row in stored["captions"]:
        case = cases.CaptionCase(**{name: row.pop(name) for name in fields})
        prompt = stored["prompts"][case.prompt]
        rows[case.name] = {"case": dataclasses.asdict(case), "prompt": prompt, "caption": row}
    return rows


def document(source: str, sums: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """JSON with a line for each prompt and each caption; captions name their prompt."""
    prompts = {cases.CaptionCase(**row["case"]).prompt: row["prompt"] for row in rows}
    head = {
        "script": hashlib.sha256(source.encode()).hexdigest(),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "weights": sums,
    }
    of_prompts = [f"{json.dumps(name)}: {compact(prompt)}" for name, prompt in prompts.items()]
    of_captions = [compact({**row["case"], **row["caption"]}) for row in rows]
    body = f'"prompts": {{\n{JOIN.join(of_prompts)}\n}},\n"captions": [\n{JOIN.join(of_captions)}\n]\n}}\n'
    return json.dumps(head, indent=1)[:-2] + ",\n" + body


if __name__ == "__main__":
    main()
