"""The tokenizer of a directory is the one that transformers' own lookup loads, without torch."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import avjax
from avjax.prompts.tokenizer import load_tokenizer
from tests.tiny_hf import TinyCheckpoint

TEXT = "It's 12 o'clock;  naïve café\n\n<|im_start|>user 狗在叫"


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen2_5_omni_thinker", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "name",
    ["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer", None],
)
def test_it_is_the_one_of_transformers(omni: TinyCheckpoint, tmp_path: Path, name: str | None, model_type: str):
    for file in omni.directory.glob("*token*"):
        shutil.copy(file, tmp_path)
    for file in omni.directory.glob("chat_template*"):
        shutil.copy(file, tmp_path)
    declared = json.loads((tmp_path / "tokenizer_config.json").read_text())
    declared |= {"tokenizer_class": name}
    if name is None:
        del declared["tokenizer_class"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    got, expected = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(got) is type(expected)
    assert got(TEXT).input_ids == expected(TEXT).input_ids
    assert got.all_special_ids == expected.all_special_ids
    assert got.chat_template == expected.chat_template


def test_the_built_in_one():
    directory = Path(avjax.__file__).parent / "assets/checkpoints/tiny-av"
    got, expected = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert type(got) is type(expected)
    assert got(TEXT).input_ids == expected(TEXT).input_ids
