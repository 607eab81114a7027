"""The defaults that stand in avjax are those of the classes in the transformers that is installed."""

import pytest
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni
from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as vl

from avjax.families import config_defaults as defaults
from avjax.families import inert_keys as keys

UNREAD = keys.COMMON | {"layer_types", "text_config", "vision_config", "audio_config"}
CLASSES = {
    "OMNI_THINKER": omni.Qwen2_5OmniThinkerConfig,
    "OMNI_TEXT": omni.Qwen2_5OmniTextConfig,
    "OMNI_VISION": omni.Qwen2_5OmniVisionEncoderConfig,
    "OMNI_AUDIO": omni.Qwen2_5OmniAudioEncoderConfig,
    "VL": vl.Qwen2_5_VLConfig,
    "VL_TEXT": vl.Qwen2_5_VLTextConfig,
    "VL_VISION": vl.Qwen2_5_VLVisionConfig,
}


@pytest.mark.parametrize("name", CLASSES)
def test_they_are_those_of_transformers(name: str):
    published = CLASSES[name]().to_dict()
    read = {key: value for key, value in published.items() if key not in UNREAD and value is not None}
    assert getattr(defaults, name) == read


def test_every_table_is_compared():
    assert {name for name in vars(defaults) if name.isupper()} == CLASSES.keys()
