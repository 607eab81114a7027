"""Generation settings from a checkpoint's files."""

from pathlib import Path
from typing import Any

from avjax.model import GenerationDefaults
from avjax.models.config import read_json

# Settings that change HF's greedy decoding, with the value that leaves it alone.
GREEDY = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": {},
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
}


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """What HF's greedy decoding takes from a checkpoint's files.

    In a whole Omni model the thinker generates, and HF makes its settings from `thinker_config` alone: neither the
    directory's generation config nor the outer config reaches it. Where it names no stop token, HF goes on to the
    limit; here those of the generation config end a caption.
    """
    config = read_json(directory / "config.json")
    path = directory / "generation_config.json"
    from_file: dict[str, Any] = read_json(path) if path.is_file() else {}
    if thinker := config.get("thinker_config"):
        return _defaults([*_with_text(thinker), from_file, *_with_text(config)], _with_text(thinker))
    # Without a generation config, HF takes these settings from the model's config, outermost first.
    return (
        _defaults([from_file, *_with_text(config)], [from_file])
        if from_file
        else _defaults(_with_text(config), _with_text(config))
    )


def _with_text(section: dict[str, Any]) -> list[dict[str, Any]]:
    return [section, section.get("text_config") or {}]


def _defaults(sections: list[dict[str, Any]], settings: list[dict[str, Any]]) -> GenerationDefaults:
    """Stop tokens from the first of `sections` that has them, all else from `settings`."""

    def find(key: str, places: list[dict[str, Any]]) -> Any:
        return next((place[key] for place in places if place.get(key) is not None), None)

    stop = find("eos_token_id", sections)
    penalty = find("repetition_penalty", settings)
    return GenerationDefaults(
        stop_tokens=() if stop is None else (stop,) if isinstance(stop, int) else tuple(stop),
        repetition_penalty=1.0 if penalty is None else float(penalty),
        unsupported=tuple(
            f"{key}={value!r}"
            for key, leaves_alone in GREEDY.items()
            if (value := find(key, settings)) not in (None, leaves_alone)
        ),
    )
