"""The codes of mimi-tiny on the clip in the package are what they were when it was published.

No code of the clip lies near a tie: rounding in another order, and double precision, give the same ones.
"""

import hashlib

import pytest
import torch

from mimi_hf import MimiModel, mimi_tiny_path
from mimi_hf.audio import read_audio
from mimi_hf.demo import speech_path

DIGEST = "fab864a58baee563cf7c0952d861bfc7ccb6251650cd8e51d7c888761e7e5952"  # SHA-256 of (1, 8, 76) int64


@pytest.fixture(scope="module")
def speech():
    audio, _ = read_audio(speech_path(), 24_000, 1)
    return torch.from_numpy(audio)[None]


@pytest.fixture(scope="module", params=["float32", "float64"])
def codec(request):
    return MimiModel.from_pretrained(mimi_tiny_path(), dtype=getattr(torch, request.param))


def digest(codes):
    return hashlib.sha256(codes.numpy().astype("<i8").tobytes()).hexdigest()


def test_codes_of_the_whole_clip(codec, speech):
    assert digest(codec.encode(speech.to(codec.dtype)).audio_codes) == DIGEST


def test_codes_of_a_ragged_batch(codec, speech):
    batch = torch.nn.functional.pad(torch.cat([speech, speech.flip(2)]), (0, 5000)).to(codec.dtype)
    mask = torch.zeros(2, batch.shape[2], dtype=torch.bool)
    mask[0, : speech.shape[2]], mask[1] = True, True
    assert digest(codec.encode(batch, mask).audio_codes[:1, :, :76]) == DIGEST


@pytest.mark.parametrize("chunk", [1920, 1000])
def test_codes_of_a_stream(codec, speech, chunk):
    stream = codec.encoder_stream()
    codes = [stream.push(part.to(codec.dtype)) for part in speech.split(chunk, dim=2)]
    assert digest(torch.cat([*codes, stream.flush().audio_codes], dim=2)) == DIGEST
