"""Qwen2.5-Omni's thinker: audio and vision towers in front of the shared decoder. The talker is not needed."""

from flax import nnx

from avjax.config import ModelConfig
from avjax.models.audio import AudioTower
from avjax.models.decoder import Decoder
from avjax.models.vision import VisionTower


class Qwen2_5Omni(nnx.Module):
    def __init__(self, cfg: ModelConfig):
        assert cfg.audio is not None
        self.decoder = Decoder(cfg.decoder)
        self.vision = VisionTower(cfg.vision)
        self.audio = AudioTower(cfg.audio)
