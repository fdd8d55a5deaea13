"""Audio in and out, as numpy arrays: read, write, resample, mix."""

from .blocks import AudioBlocks, read_audio, write_audio, write_blocks
from .mix import mix_channels, resample
from .pcm import PCM
from .readers import AUDIO_EXTENSIONS, AudioSource

__all__ = [
    "AUDIO_EXTENSIONS",
    "PCM",
    "AudioBlocks",
    "AudioSource",
    "mix_channels",
    "read_audio",
    "resample",
    "write_audio",
    "write_blocks",
]
