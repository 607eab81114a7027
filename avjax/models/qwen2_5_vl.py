"""Qwen2.5-VL: the vision tower and decoder of Qwen2.5-Omni without audio; positions count its own units per second."""

from flax import nnx

from avjax.config import ModelConfig
from avjax.models.decoder import Decoder
from avjax.models.vision import VisionTower


class Qwen2_5VL(nnx.Module):
    def __init__(self, cfg: ModelConfig):
        self.decoder = Decoder(cfg.decoder)
        self.vision = VisionTower(cfg.vision)
        self.audio = None
