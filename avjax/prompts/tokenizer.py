"""A checkpoint's tokenizer, by the class that transformers' own lookup picks.

`AutoTokenizer` reads the model's config first, and with it imports torch where that is installed, for seconds. The
families here declare one of two classes; whatever else a checkpoint says is left to the lookup.
"""

import json
from pathlib import Path
from typing import Any

from avjax.models.config import read_json

QWEN, ANY = "Qwen2Tokenizer", ("PreTrainedTokenizer", "TokenizersBackend")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory, with its chat template.

    Raises:
      ValueError: the directory has no tokenizer.
    """
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        raise ValueError(
            f"{directory}: expected the tokenizer's files beside the weights, found none; copy "
            "tokenizer.json and tokenizer_config.json there, or use model.prompt_from_hf"
        )
    tokenizer = _class_of(read_json(file)).from_pretrained(directory, local_files_only=True)
    if not tokenizer.chat_template:
        legacy = directory / "chat_template.json"  # where hub checkpoints keep a processor's template
        if legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
    return tokenizer


def _class_of(declared: dict[str, Any]) -> Any:
    import transformers

    name = str(declared.get("tokenizer_class")).removesuffix("Fast")
    if "auto_map" in declared or name not in (QWEN, *ANY):
        return transformers.AutoTokenizer
    return transformers.Qwen2Tokenizer if name == QWEN else transformers.PreTrainedTokenizerFast
