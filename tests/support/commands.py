"""`mimi-hf` in this process or in one of its own, and a codec for it."""

import os
import sys
import threading
from contextlib import suppress

import numpy as np
import torch
from typer.testing import CliRunner

from mimi_hf.cli import app

from .sounds import encoded
from .tiny import make_model

MIMI_HF = [sys.executable, "-c", "from mimi_hf.cli import main; main()"]
FRAME = 1920


def run(*arguments):
    """A command in this process: its exit code and output."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_codec():
    """A small model with the published frame of 80 ms."""
    model = make_model(upsampling_ratios=[8, 6, 5, 4], sliding_window=4, num_hidden_layers=1)
    model.decoder.layers[-1].conv.weight.data *= 0.03  # so that nothing is clipped
    return model


def wav_bytes(sound):
    """A WAV file that holds the very samples (C, N)."""
    return encoded(sound, format="WAV", subtype="FLOAT")


def pcm_bytes(sound):
    """Samples (C, N) as raw audio of 16 bits."""
    return np.rint(sound.T * 32767).astype("<i2").tobytes()


def pipe_of(data):
    """A real pipe with some bytes in it, which cannot seek."""
    read_end, write_end = os.pipe()

    def feed():
        with suppress(BrokenPipeError), open(write_end, "wb") as file:
            file.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return open(read_end, "rb")


def encode_whole(model, sound, **options):
    """(C, K, F), each channel by itself."""
    with torch.no_grad():
        return model.encode(torch.from_numpy(sound)[:, None], **options).audio_codes.numpy()


def decode_whole(model, codes):
    """(C, N)."""
    with torch.no_grad():
        return model.decode(torch.from_numpy(codes.astype(np.int64))).audio_values[:, 0].numpy()
