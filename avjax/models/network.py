"""What every family's network has."""

from flax import nnx

from avjax.models.audio import AudioTower
from avjax.models.decoder import Decoder
from avjax.models.vision import VisionTower


class Network(nnx.Module):
    """A decoder behind its towers."""

    decoder: Decoder
    vision: VisionTower
    audio: AudioTower | None
