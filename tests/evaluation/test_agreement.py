"""Agreement of variants: of constructed codes, of models that differ more or less."""

import json
import math

import pytest
import soundfile
import torch
from support.corpora import save_model
from support.speech import RATE, noise
from support.tiny import make_model

from mimi_hf import MimiConfig
from mimi_hf.evaluation.agreement import compare
from mimi_hf.evaluation.variants import WholeVariant, open_variant
from mimi_hf.loading import ModelChoice


class Constructed:
    """A variant whose codes and audio are given."""

    def __init__(self, name, codes, audio):
        self.name, self.codes, self.audio = name, torch.tensor(codes)[None], audio
        self.config = MimiConfig(num_quantizers=self.codes.shape[1])

    def encode(self, audio, num_quantizers):
        return self.codes[:, :num_quantizers]

    def decode(self, codes):
        return self.audio


def test_agreement_of_constructed_codes(tmp_path):
    path = tmp_path / "four frames.wav"
    soundfile.write(path, 0.1 * noise(4 * 1920), RATE)
    audio = torch.from_numpy(noise(4 * 1920))[None, None]
    first = Constructed("first", [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], audio)
    second = Constructed("second", [[1, 2, 3, 9], [1, 2, 9, 4], [1, 9, 9, 4]], 1.1 * audio)
    report = compare(first, second, path)
    assert [codebook.equal for codebook in report.codebooks] == [0.75, 0.75, 0.5]
    assert [codebook.equal_so_far for codebook in report.codebooks] == [0.75, 2 / 3, 0.5]
    assert [codebook.frames_so_far for codebook in report.codebooks] == [4, 3, 2]
    assert report.equal == pytest.approx(8 / 12)
    assert report.equal_frames == 0.25
    assert report.snr == report.median_snr == pytest.approx(20, abs=1e-3)
    assert report.largest_difference == pytest.approx(0.1 * float(audio.abs().max()), rel=1e-4)
    assert compare(first, second, path, num_quantizers=1).equal_frames == 0.75
    with pytest.raises(ValueError, match="num_quantizers=4, but first and second both have 1 to 3"):
        compare(first, second, path, num_quantizers=4)


def test_a_model_agrees_with_itself_and_less_with_a_perturbed_one(codec, recordings):
    itself = compare(open_variant("eager", codec.choice), open_variant(str(codec.folder), codec.choice), recordings)
    assert itself.equal == itself.equal_frames == 1.0
    assert {(one.equal, one.equal_so_far) for one in itself.codebooks} == {(1.0, 1.0)}
    assert itself.snr == math.inf
    content = json.loads(json.dumps(itself.to_dict(), allow_nan=False))
    assert content["same_audio"] and content["snr"] is None
    assert [file["reason"] is None for file in content["files"]] == [True, True, True, False]
    found = []
    for strength in (0.01, 0.1):
        model = codec.choice.load("cpu")
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += strength * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
        found.append(compare(WholeVariant(codec.model, "a"), WholeVariant(model, "b"), recordings))
    assert 1.0 > found[0].equal > found[1].equal
    assert found[0].snr > found[1].snr


@pytest.mark.parametrize("word", ["stream", "native"])
def test_variants_of_one_precision_agree(codec, recordings, word):
    # A partial frame is where transformers' own Mimi differs: ten whole ones.
    variants = [open_variant(name, codec.choice) for name in ("eager", word)]
    report = compare(*variants, recordings / "1.wav", seconds=0.8)
    assert report.equal > 0.99
    assert report.snr > 90


def test_precisions_differ(codec, recordings):
    report = compare(open_variant("float32", codec.choice), open_variant("bfloat16", codec.choice), recordings)
    assert 0.5 < report.equal < 1.0
    assert 15 < report.snr < 60


def test_int8_is_of_eight_bits(tmp_path, recordings):
    folder = save_model(tmp_path, intermediate_size=2**13)  # large enough for weights to become integers
    variant = open_variant("int8", ModelChoice(folder))
    assert torch.int8 in {parameter.dtype for parameter in variant.model.parameters()}
    report = compare(open_variant("eager", ModelChoice(folder)), variant, recordings, seconds=1.0)
    assert 20 < report.snr < math.inf


def test_a_variant_that_gives_nan_fails(tmp_path):
    path = tmp_path / "one frame.wav"
    soundfile.write(path, noise(1920) / 10, RATE)
    good, bad = (
        Constructed(name, [[1], [2]], torch.full((1, 1, 1920), value)) for name, value in (("a", 0.5), ("b", math.nan))
    )
    with pytest.raises(ValueError, match="b decoded the codes to NaN"):
        compare(good, bad, path)


def test_models_of_other_frames_are_not_compared(codec, recordings):
    other = WholeVariant(make_model(), "other")
    with pytest.raises(ValueError, match="cannot be compared: their frame_size is 1920 and 24"):
        compare(WholeVariant(codec.model, "first"), other, recordings)
