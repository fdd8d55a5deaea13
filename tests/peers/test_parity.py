"""The codes and the audio of Kyutai's own code and of transformers' native Mimi: at the published size with seeded
weights, and with the trained ones of `mimi-tiny`, on speech."""

import runpy
from pathlib import Path

import pytest
import torch

from mimi_hf import mimi_tiny_path
from mimi_hf.audio import read_audio
from mimi_hf.demo import speech_path

pytestmark = pytest.mark.full_size
RATE, FRAME = 24_000, 1920
kyutai_config = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "peers.py"))["kyutai_config"]
SECONDS = [1.6, 25]  # the second is longer than the attention window of 10 s


def make_speechlike(samples, seed=0):
    """Harmonics that glide, and noise, in syllables: Tensor, shape = (1, 1, samples)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    pitch = 120 + 60 * torch.rand((), generator=generator) + 30 * torch.sin(time * 2)
    phase = 2 * torch.pi * torch.cumsum(pitch / RATE, 0)
    voice = sum(torch.sin(phase * k) / k for k in range(1, 12))
    noise = torch.randn(samples, generator=generator)
    return ((0.2 * voice + 0.05 * noise) * (0.55 + 0.45 * torch.sin(time * 20)))[None, None]


def cut_speech(samples, seed=0):
    """A reader, again and again: Tensor, shape = (1, 1, samples)."""
    speech = torch.from_numpy(read_audio(speech_path(), RATE, 1)[0][0])
    return speech[(seed * RATE + torch.arange(samples)) % len(speech)][None, None]


def assert_same_codes(model, audio, codes, other, share):
    """Codes of two implementations agree. But where a latent lies between two entries of a codebook, as near to one as
    to the other, rounding decides: then the next codes of that frame may differ, too. In more than one frame, at least
    `share` of all codes are equal."""
    assert codes.shape == other.shape
    differing = (codes != other).any(dim=1).sum()
    assert (codes == other).float().mean() >= share or differing <= 1
    latents = model.encode_latents(audio)
    for half, first in model.quantizer.halves():
        residual = (latents if half.input_proj is None else half.input_proj(latents)).mT
        agreed = torch.ones(residual.shape[:2], dtype=torch.bool)
        for level, entries in enumerate(half.tables()[0], first):
            one, two = codes[:, level], other[:, level]
            distance, other_distance = ((residual - entries[code]).norm(dim=2) for code in (one, two))
            parting = agreed & (one != two)
            torch.testing.assert_close(distance[parting], other_distance[parting], rtol=1e-4, atol=0)
            agreed &= one == two
            residual = residual - entries[one]


def assert_same_audio(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=0.01)


@pytest.fixture(scope="module", params=["seeded", "mimi-tiny"])
def weights(request):
    return request.param


@pytest.fixture(scope="module")
def share(weights):
    """Of codes that are equal at least: speech meets a tie in some thousands of codes."""
    return 0.9999 if weights == "seeded" else 0.999


@pytest.fixture(scope="module")
def speech(weights):
    """Makes audio that the weights are fit for, of so many samples, for a seed."""
    return make_speechlike if weights == "seeded" else cut_speech


@pytest.fixture(scope="module")
def original(weights, seeded_original, tmp_path_factory):
    """A checkpoint in Kyutai's format."""
    from mimi_hf.conversion import export_checkpoint

    if weights == "seeded":
        return seeded_original
    path = tmp_path_factory.mktemp("original") / "tokenizer.safetensors"
    export_checkpoint(mimi_tiny_path(), path)
    return path


@pytest.fixture(scope="module")
def converted(weights, original, tmp_path_factory):
    """The folder that our conversion makes of it."""
    from mimi_hf.conversion import convert_checkpoint

    folder = tmp_path_factory.mktemp("converted") / "mimi"
    convert_checkpoint(
        original, folder, **({} if weights == "seeded" else {"config": mimi_tiny_path() / "config.json"})
    )
    return folder


@pytest.fixture(scope="module")
def ours(converted):
    from mimi_hf import MimiModel

    return MimiModel.from_pretrained(converted, dtype=torch.float32)


@pytest.fixture(scope="module")
def load_kyutai(ours):
    """Loads a file in Kyutai's code, at the sizes of our model."""
    from moshi.models import loaders

    sizes = kyutai_config(ours.config)
    return lambda path, codebooks: loaders.get_mimi(path, sizes, num_codebooks=codebooks)


@pytest.fixture(scope="module")
def kyutai(load_kyutai, ours, original):
    return load_kyutai(original, ours.config.num_quantizers)


@pytest.fixture(scope="module")
def native(converted):
    from transformers.models.mimi.modeling_mimi import MimiModel

    return MimiModel.from_pretrained(converted, dtype=torch.float32)


@pytest.mark.parametrize(
    "samples", [1, FRAME - 1, FRAME + 1, 3 * RATE + 7, *(int(s * RATE) - 5 for s in [*SECONDS, 60])]
)
@torch.no_grad()
def test_kyutai(ours, kyutai, speech, share, samples):
    audio = speech(samples)
    codes = kyutai.encode(audio)
    assert_same_codes(ours, audio, ours.encode(audio).audio_codes, codes, share)
    assert_same_audio(ours.decode(codes).audio_values, kyutai.decode(codes))


@pytest.mark.parametrize("seconds", SECONDS)
@torch.no_grad()
def test_native(ours, native, speech, share, seconds):
    audio = speech(int(seconds * RATE))
    codes, found = native.encode(audio).audio_codes, ours.encode(audio).audio_codes
    assert found.shape == codes.shape
    whole = audio.shape[2] // FRAME  # native encodes part of a frame in another way
    assert_same_codes(ours, audio[..., : whole * FRAME], found[..., :whole], codes[..., :whole], share)
    assert_same_audio(ours.decode(codes).audio_values, native.decode(codes).audio_values)


@torch.no_grad()
def test_latents_of_native(ours, native, speech):
    audio = speech(2 * FRAME)
    theirs = native.encoder(audio).latents
    torch.testing.assert_close(ours.encode_latents(audio), theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("sizes", [[7, 1, 5000, FRAME - 1, FRAME + 1], [FRAME], [96_000]])
@torch.no_grad()
def test_streaming_equals_offline(ours, speech, share, sizes):
    audio = speech(12 * RATE + 3)
    encoder, decoder = ours.encoder_stream(), ours.decoder_stream()
    codes, start = [], 0
    while start < audio.shape[2]:
        for size in sizes:
            codes.append(encoder.push(audio[..., start : start + size]))
            start += size
    codes.append(encoder.flush().audio_codes)
    pieces = [decoder.push(piece) for piece in codes]
    codes = torch.cat(codes, dim=2)
    assert_same_codes(ours, audio, codes, ours.encode(audio).audio_codes, share)
    assert_same_audio(torch.cat(pieces, dim=2), ours.decode(codes).audio_values)


@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_ragged_batch_equals_each_row_alone(ours, speech, side):
    lengths = [48_000, 1920, 1, 70_001, 33_333, 23_999, 5 * 1920, 66_666]
    rows = [speech(length, seed)[0] for seed, length in enumerate(lengths)]
    batch = torch.randn(8, 1, max(lengths), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, max(lengths), dtype=torch.bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        extent = slice(0, length) if side == "right" else slice(max(lengths) - length, None)
        batch[index, :, extent] = row
        mask[index, extent] = True
    output = ours.encode(batch, mask)
    same = total = 0
    for index, row in enumerate(rows):
        alone = ours.encode(row[None]).audio_codes[0]
        found = output.audio_codes[index][:, output.audio_codes_mask[index]]
        assert found.shape == alone.shape
        assert torch.equal(found[:, -1], alone[:, -1])
        same, total = same + (found == alone).sum(), total + alone.numel()
    assert same / total >= 0.9999


@torch.no_grad()
def test_exported_weights_give_the_same_in_kyutais_loaders(
    weights, ours, converted, kyutai, load_kyutai, speech, tmp_path
):
    from mimi_hf.conversion import export_checkpoint

    export_checkpoint(converted, tmp_path / "back.safetensors")
    audio = speech(4 * FRAME)
    again = load_kyutai(tmp_path / "back.safetensors", 8)
    codes = kyutai.encode(audio)[:, :8]
    assert torch.equal(again.encode(audio), codes)
    if weights == "mimi-tiny":
        return  # rustymimi knows the published sizes alone
    rustymimi = pytest.importorskip("rustymimi", reason="rustymimi is not installed: pip install rustymimi==0.4.1")
    candle = rustymimi.Tokenizer(str(tmp_path / "back.safetensors"), num_codebooks=8)
    theirs = torch.from_numpy(candle.encode(audio.numpy()).astype("int64"))
    agreement = (ours.encode(audio, num_quantizers=8).audio_codes == theirs).float().mean()
    assert agreement >= 0.97  # its arithmetic differs
