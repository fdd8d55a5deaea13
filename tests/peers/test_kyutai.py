"""The same calls to Kyutai's own packages and to ours give the same: `moshi` on small weights, `rustymimi`, which knows
no others, on weights of the published size.

Neither package ships tests of what it offers of Mimi: moshi's are of its language model and of single layers, rustymimi
has none. So programs of moshi run on our codec instead, below.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.originals import config_of, kyutais_config, original_of
from support.tiny import assert_same_audio, make_audio
from support.waiting import wait_for
from torch import nn

from mimi_hf import kyutai

# A window of 125 frames, more than any stream here is long: once it is full, streams of moshi attend to less.
CONFIG = config_of(num_attention_heads=4, num_key_value_heads=4, sliding_window=250)
FRAME = CONFIG.frame_size


@pytest.fixture(scope="module")
def loaders():
    return pytest.importorskip("moshi.models.loaders", reason="Kyutai's own package is not installed: moshi==0.2.13")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "tokenizer.safetensors"
    save_file(original_of(CONFIG), path)
    return path


@pytest.fixture
def load_both(loaders):
    """Loads theirs and ours by the same call."""
    compiling = pytest.importorskip("moshi.utils.compile")

    def load(path, config):
        return [
            get(path, kyutais_config(config), "cpu", num_codebooks=4) for get in (loaders.get_mimi, kyutai.get_mimi)
        ]

    with compiling.no_compile(), torch.no_grad():
        yield load


@pytest.fixture
def both(load_both, original):
    return load_both(original, CONFIG)


def test_ours_has_all_that_theirs_offers(loaders, both):
    theirs, ours = both
    offered = {name for name in dir(type(theirs)) if not name.startswith("_")} - set(dir(nn.Module))
    missing = offered - set(dir(ours)) - {"set_streaming_detached"}  # for modules inside of others that stream
    assert not missing
    for name in offered & {name for name, kind in vars(type(ours)).items() if isinstance(kind, property)} - {
        "quantizer"
    }:
        assert getattr(theirs, name) == getattr(ours, name), name
    assert kyutai.MIMI_NAME == loaders.MIMI_NAME
    assert kyutai.DEFAULT_REPO == loaders.DEFAULT_REPO
    assert (kyutai.SAMPLE_RATE, kyutai.FRAME_RATE) == (loaders.SAMPLE_RATE, loaders.FRAME_RATE)


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, 40 * FRAME + 5])
def test_whole_recordings(both, samples):
    theirs, ours = both
    audio = make_audio(samples, batch=2)
    codes = theirs.encode(audio)
    assert torch.equal(ours.encode(audio), codes)
    assert_same_audio(ours.decode(codes), theirs.decode(codes))
    assert_same_audio(ours.decode(codes[:, :2]), theirs.decode(codes[:, :2]))
    assert_same_audio(ours.decode_latent(codes), theirs.decode_latent(codes))
    for quantize in (True, False):
        assert_same_audio(ours.encode_to_latent(audio, quantize), theirs.encode_to_latent(audio, quantize=quantize))
    assert_same_audio(ours.quantizer.decode(codes), theirs.quantizer.decode(codes))
    latents = theirs.encode_to_latent(audio, quantize=False)
    assert torch.equal(ours.quantizer.encode(latents), theirs.quantizer.encode(latents))


def test_a_call(both):
    """Theirs takes whole frames alone."""
    audio = make_audio(5 * FRAME, batch=2)
    expected, result = (mimi(audio) for mimi in both)
    assert_same_audio(result.x, expected.x)
    assert torch.equal(result.codes, expected.codes)
    for field in ("bandwidth", "penalty"):
        torch.testing.assert_close(getattr(result, field), getattr(expected, field))


def same_steps(theirs, ours, random, active, frames):
    """Both get the same frames, of the rows that go on and of the others, and give the same for the first."""
    audio = torch.randn(len(active), 1, frames * FRAME, generator=random)
    codes = theirs.encode(audio)
    found = ours.encode(audio)
    assert found.shape == codes.shape
    assert torch.equal(found[active], codes[active])
    assert ((found >= 0) & (found < ours.cardinality)).all()
    assert_same_audio(ours.decode(codes), theirs.decode(codes).masked_fill(~active[:, None, None], 0))


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_pause_and_begin_again(both, seed):
    """Any series of masks, restarts, numbers of codebooks and frames."""
    theirs, ours = both
    random = torch.Generator().manual_seed(seed)
    rows = 3
    active = torch.ones(rows, dtype=torch.bool)
    with theirs.streaming(rows), ours.streaming(rows):
        for _ in range(50):
            chance = float(torch.rand((), generator=random))
            mask = torch.rand(rows, generator=random) < 0.6
            if chance < 0.3:
                active = mask.clone()
                for mimi in both:
                    mimi.set_exec_mask(mask)
            elif chance < 0.4:
                active |= mask
                for mimi in both:
                    mimi.reset_streaming(reset_mask=mask)
            elif chance < 0.45:
                active[:] = True
                for mimi in both:
                    mimi.reset_streaming()
            elif chance < 0.55:
                number = int(torch.randint(1, 5, (), generator=random))
                for mimi in both:
                    mimi.set_num_codebooks(number)
            same_steps(theirs, ours, random, active, frames=1 + int(chance * 1000) % 2)
    assert not theirs.is_streaming
    assert not ours.is_streaming


@pytest.mark.parametrize("frames", [1, 3])
def test_a_stream_past_its_window_gives_what_theirs_gives_offline(load_both, tmp_path, frames):
    """A chunk of theirs overwrites the oldest keys of its ring before its first steps have attended to them."""
    config = config_of(num_attention_heads=4, num_key_value_heads=4, sliding_window=9)
    save_file(original_of(config), tmp_path / "original.safetensors")
    theirs, ours = load_both(tmp_path / "original.safetensors", config)
    audio = make_audio(60 * FRAME)
    latents = theirs.encode_to_latent(audio, quantize=False)
    codes = theirs.encode(audio)
    with ours.streaming(1):
        chunks = audio.split(frames * FRAME, dim=2)
        assert_same_audio(torch.cat([ours.encode_to_latent(chunk, quantize=False) for chunk in chunks], dim=2), latents)
        decoded = torch.cat([ours.decode(chunk) for chunk in codes.split(frames, dim=2)], dim=2)
    assert_same_audio(decoded, theirs.decode(codes))


def test_latents_of_a_stream(both):
    audio = make_audio(9 * FRAME, batch=2)
    for mimi in both:
        mimi.streaming_forever(2)
    for chunk in audio.split(3 * FRAME, dim=2):
        for quantize in (True, False):
            theirs, ours = (mimi.encode_to_latent(chunk, quantize=quantize) for mimi in both)
            assert_same_audio(ours, theirs)


def test_states_taken_and_set_again(both):
    theirs, ours = both
    random = torch.Generator().manual_seed(0)
    active = torch.ones(2, dtype=torch.bool)
    with theirs.streaming(2), ours.streaming(2):
        same_steps(theirs, ours, random, active, frames=12)
        states = [copy.deepcopy(mimi.get_streaming_state()) for mimi in both]
        same_steps(theirs, ours, random, active, frames=2)
        for mimi, state in zip(both, states, strict=True):
            mimi.set_streaming_state(state)
        same_steps(theirs, ours, random, active, frames=2)


def test_both_refuse_the_same(both):
    mask = torch.ones(1, dtype=torch.bool)
    for mimi, error in zip(both, (AssertionError, ValueError), strict=True):
        for call in (mimi.reset_streaming, lambda mimi=mimi: mimi.set_exec_mask(mask)):
            with pytest.raises(error):
                call()
        for number in (0, 5):
            with pytest.raises(error):
                mimi.set_num_codebooks(number)
        with mimi.streaming(1), pytest.raises(error):
            mimi.streaming(1)
        with pytest.raises((AssertionError, ValueError)):
            mimi.encode(torch.zeros(1, FRAME))


def test_state_dicts_go_both_ways(loaders, both):
    theirs, ours = both
    audio = make_audio(5 * FRAME)
    codes = theirs.encode(audio)
    for get, source in ((loaders.get_mimi, ours), (kyutai.get_mimi, theirs)):
        mimi = get(None, kyutais_config(CONFIG), num_codebooks=4)
        assert mimi.load_state_dict(source.state_dict()) == ([], [])
        assert torch.equal(mimi.encode(audio), codes)


# Programs of moshi, with a small language model


@pytest.fixture
def language_model(loaders):
    lm = pytest.importorskip("moshi.models.lm")
    torch.manual_seed(0)
    return lm.LMModel(
        delays=[0, 0, 1, 1, 1, 0, 1, 1, 1],
        n_q=8,
        dep_q=4,
        card=CONFIG.codebook_size,
        text_card=48,
        dim=16,
        num_layers=2,
        num_heads=2,
        hidden_scale=1,
        depformer_dim=16,
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_num_heads=1,
        depformer_gating="silu",
        context=8,
    ).eval()


@pytest.mark.parametrize("kind", ["moshi", "hibiki"])
def test_moshis_inference_runs_on_ours(both, language_model, kind):
    program = pytest.importorskip("moshi.run_inference")
    checkpoint = SimpleNamespace(model_type=kind, stt_config={})
    tokenizer = SimpleNamespace(eos_id=lambda: -1, id_to_piece=str)
    heard = []
    for mimi in both:
        state = program.InferenceState(
            checkpoint, mimi, tokenizer, copy.deepcopy(language_model), 2, 1.0, "cpu", use_sampling=False
        )
        state.lm_gen.lm_model.eval()
        if kind == "hibiki":  # it ends with the end of the text
            tokenizer.eos_id = SentinelAfter(8)
        heard.append(state.run(make_audio(12 * FRAME + 3, batch=2)))
    for (text, audio), (found_text, found_audio) in zip(*heard, strict=True):
        assert len(text) > 5
        assert torch.equal(found_text, text)
        assert_same_audio(found_audio, audio)


class SentinelAfter:
    """The id of the end of the text: any id, once it was asked for so many times."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self):
        self.calls -= 1
        return AnyToken() if self.calls < 0 else -1


class AnyToken:
    def __eq__(self, other):
        return True

    __hash__ = None


def test_moshis_checkpoints_load_into_ours(loaders, original, monkeypatch):
    """One line turns every loader of moshi's."""
    monkeypatch.setattr(loaders, "get_mimi", kyutai.get_mimi)
    sizes = {"dep_q": 4, "n_q": 8}
    info = loaders.CheckpointInfo(None, original, None, lm_config=sizes, mimi_config=kyutais_config(CONFIG))
    mimi = info.get_mimi(device="cpu")
    assert isinstance(mimi, kyutai.KyutaiMimi)
    assert mimi.num_codebooks == 4


# rustymimi


@pytest.fixture
def tokenizers(seeded_original):
    rustymimi = pytest.importorskip("rustymimi", reason="rustymimi is not installed: pip install rustymimi==0.4.1")
    return [package.Tokenizer(str(seeded_original), num_codebooks=8) for package in (rustymimi, kyutai)]


def sound(frames, seed=0):
    random = np.random.default_rng(seed)
    return (0.2 * random.standard_normal((1, 1, frames * 1920))).astype(np.float32)


def assert_same_arrays(actual, expected):
    """Codes in all but ties, audio within 1e-5 of the peak; and their shapes and types."""
    if expected is None:
        assert actual is None
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if actual.dtype == np.float32:
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    else:
        assert (actual == expected).mean() >= 0.97


@pytest.mark.full_size
def test_tokenizer(tokenizers):
    theirs, ours = tokenizers
    for samples in (1000, 1920, 5 * 1920 + 7):  # less than half a frame theirs pads in each convolution
        audio = np.ascontiguousarray(sound(6)[..., :samples])
        codes = theirs.encode(audio)
        assert_same_arrays(ours.encode(audio), codes)
        assert_same_arrays(ours.decode(codes), theirs.decode(codes))


@pytest.mark.full_size
def test_tokenizer_in_steps(tokenizers):
    theirs, ours = tokenizers
    audio, position = sound(9), 0
    for size in (0, 1000, 920, 1920, 3840, 5000, 1):
        chunk = np.ascontiguousarray(audio[..., position : position + size])
        codes = theirs.encode_step(chunk)
        assert_same_arrays(ours.encode_step(chunk), codes)
        position += size
        if codes is not None:
            assert_same_arrays(ours.decode_step(codes), theirs.decode_step(codes))
    none = np.zeros((1, 8, 0), np.uint32)
    assert_same_arrays(ours.decode_step(none), theirs.decode_step(none))
    ours.reset()
    # A reset of theirs forgets the downsampling: its next codes are wrong.
    assert np.array_equal(ours.encode_step(audio), ours.encode(audio))


@pytest.mark.full_size
def test_stream_tokenizer(seeded_original):
    rustymimi = pytest.importorskip("rustymimi", reason="rustymimi is not installed: pip install rustymimi==0.4.1")
    theirs, ours = [package.StreamTokenizer(str(seeded_original), num_codebooks=8) for package in (rustymimi, kyutai)]
    assert ours.get_encoded() is None
    assert theirs.get_encoded() is None
    audio = sound(3)[0, 0]
    for chunk in (audio[:1920], audio[1920:]):
        for tokenizer in (theirs, ours):
            tokenizer.encode(np.ascontiguousarray(chunk))
        codes, found = wait_for(theirs.get_encoded), wait_for(ours.get_encoded)
        assert_same_arrays(found, codes)
        for frame in codes.T:
            for tokenizer in (theirs, ours):
                tokenizer.decode(frame[None].copy())
            assert_same_arrays(wait_for(ours.get_decoded), wait_for(theirs.get_decoded))
