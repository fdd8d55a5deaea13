"""The interface of `moshi`, against the codec that it stands on. tests/peers compares with `moshi` itself."""

import copy
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import save_file
from support.originals import config_of, kyutais_config, original_of
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from torch import nn

from mimi_hf import kyutai
from mimi_hf.kyutai import KyutaiMimi, get_mimi


@pytest.fixture
def mimi(model):
    return KyutaiMimi(model, num_codebooks=4)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A file of Kyutai's format, and its sizes, which are not those that its tensors let infer."""
    config = config_of(num_attention_heads=4, num_key_value_heads=4, sliding_window=9)
    path = tmp_path_factory.mktemp("original") / "tokenizer.safetensors"
    save_file(original_of(config), path)
    return path, config


def push_all(function, x, size):
    return torch.cat([function(chunk) for chunk in x.split(size, dim=2)], dim=2)


# What it is


def test_sizes_are_those_of_the_codec(mimi, model):
    assert (mimi.sample_rate, mimi.channels, mimi.frame_size) == (24_000, 1, FRAME)
    assert mimi.frame_rate == 24_000 / FRAME
    assert mimi.encoder_frame_rate == 2 * mimi.frame_rate
    assert (mimi.cardinality, mimi.dimension) == (64, 32)
    assert (mimi.num_codebooks, mimi.total_codebooks) == (4, 6)
    assert (mimi.device, mimi.dtype, mimi.training) == (model.device, torch.float32, False)
    assert {parameter.data_ptr() for parameter in mimi.parameters()} == {p.data_ptr() for p in model.parameters()}


def test_the_number_of_codebooks_changes_also_in_a_stream(mimi, model):
    audio = make_audio(3 * FRAME)
    codes = model.encode(audio).audio_codes
    with mimi.streaming(1):
        for number, frame in zip([4, 6, 1], audio.split(FRAME, dim=2), strict=True):
            mimi.set_num_codebooks(number)
            index = {4: 0, 6: 1, 1: 2}[number]
            assert torch.equal(mimi.encode(frame), codes[:, :number, index : index + 1])
    for number in (0, 7):
        with pytest.raises(ValueError, match="Choose a number in that range"):
            mimi.set_num_codebooks(number)
    assert mimi.num_codebooks == 1


# Whole recordings


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, 7 * FRAME + 5])
@torch.no_grad()
def test_whole_recordings_give_what_the_codec_gives(mimi, model, samples):
    audio = make_audio(samples, batch=2)
    codes = mimi.encode(audio)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 4, -(-samples // FRAME))
    assert torch.equal(codes, model.encode(audio, num_quantizers=4).audio_codes)
    assert torch.equal(mimi.decode(codes), model.decode(codes).audio_values)
    assert mimi.decode(codes).shape == (2, 1, codes.shape[2] * FRAME)
    assert torch.equal(mimi.encode_to_latent(audio, quantize=False), model.encode_latents(audio))
    assert torch.equal(mimi.encode_to_latent(audio), model.quantizer.decode(codes))
    assert torch.equal(mimi.decode_latent(codes), model.quantizer.decode(codes))
    assert torch.equal(mimi.decode(codes[:, :1]), model.decode(codes[:, :1]).audio_values)


def test_defaults_of_the_config_change_nothing():
    """A config may ask for streams and tuples, where `moshi` has neither."""
    model = make_model(use_streaming=True, use_cache=True, return_dict=False)
    mimi, audio = KyutaiMimi(model, 6), make_audio(2 * FRAME + 1)
    assert mimi.encode(audio).shape == (1, 6, 3)
    assert mimi.decode(mimi.encode(audio)).shape == (1, 1, 3 * FRAME)


@torch.no_grad()
def test_a_call_encodes_and_decodes(mimi):
    audio = make_audio(2 * FRAME + 7, batch=2)
    result = mimi(audio)
    assert torch.equal(result.codes, mimi.encode(audio))
    assert torch.equal(result.x, mimi.decode(result.codes)[..., : audio.shape[2]])
    assert float(result.bandwidth) == pytest.approx(4 * 6 * mimi.frame_rate / 1000)
    assert (float(result.penalty), result.metrics) == (0, {})


def test_a_call_does_not_pretend_to_train():
    mimi = KyutaiMimi(make_model(), 4).train()
    assert mimi.model.training
    with pytest.raises(ValueError, match=r"Train mimi.model, or call eval\(\)"):
        mimi(make_audio(FRAME))


@torch.no_grad()
def test_the_quantizer_is_batch_first(mimi, model):
    latents = model.encode_latents(make_audio(3 * FRAME, batch=2))
    codes = mimi.quantizer.encode(latents)
    assert codes.shape == (2, 4, 3)
    assert torch.equal(codes, mimi.encode(make_audio(3 * FRAME, batch=2)))
    assert torch.equal(mimi.quantizer.decode(codes), mimi.decode_latent(codes))
    mimi.quantizer.set_num_codebooks(2)
    quantizer = mimi.quantizer
    assert (mimi.num_codebooks, quantizer.num_codebooks, quantizer.total_codebooks, quantizer.cardinality) == (
        2,
        2,
        6,
        64,
    )


# Streams


@pytest.mark.parametrize("size", [1, FRAME - 1, FRAME, 3 * FRAME, 1000])
def test_a_stream_gives_whole_frames_alone(mimi, size):
    audio = make_audio(30 * FRAME + 5, batch=2)
    whole = audio[..., : 30 * FRAME]
    codes, latents = mimi.encode(whole), mimi.encode_to_latent(whole, quantize=False).detach()
    with mimi.streaming(2):
        assert torch.equal(push_all(mimi.encode, audio, size), codes)
    with mimi.streaming(2):
        torch.testing.assert_close(push_all(lambda x: mimi.encode_to_latent(x, quantize=False), audio, size), latents)
    with mimi.streaming(2):
        streamed = push_all(mimi.decode, codes, 1 + size // FRAME)
    assert_same_audio(streamed, mimi.decode(codes).detach())


def test_codes_and_latents_share_a_stream(mimi):
    audio = make_audio(4 * FRAME)
    codes = mimi.encode(audio)
    latents = mimi.encode_to_latent(audio, quantize=False).detach()
    with mimi.streaming(1):
        first, second, third, fourth = audio.split(FRAME, dim=2)
        assert torch.equal(mimi.encode(first), codes[..., :1])
        torch.testing.assert_close(mimi.encode_to_latent(second, quantize=False), latents[..., 1:2])
        assert torch.equal(mimi.encode_to_latent(third), mimi.decode_latent(codes[..., 2:3]))
        assert torch.equal(mimi.encode(fourth), codes[..., 3:])


def test_rows_keep_their_own_time(mimi):
    """Each row goes on in half of the calls, at random; what the others hold is ignored."""
    rows, frames = 4, 25
    audio = make_audio(frames * FRAME, batch=rows)
    codes = mimi.encode(audio)
    decoded = mimi.decode(codes).detach()
    random = torch.Generator().manual_seed(0)
    position, heard = [0] * rows, [[] for _ in range(rows)]
    with mimi.streaming(rows):
        while min(position) < frames:
            active = (torch.rand(rows, generator=random) < 0.5) & (torch.tensor(position) < frames)
            chunk = torch.full((rows, 1, FRAME), torch.nan)
            for row in active.nonzero().flatten().tolist():
                chunk[row] = audio[row, :, position[row] * FRAME :][:, :FRAME]
            mimi.set_exec_mask(active)
            frame = mimi.encode(chunk)
            assert not frame[~active].any()
            sound = mimi.decode(frame.masked_fill(~active[:, None, None], 10**6))
            assert not sound[~active].any()
            for row in active.nonzero().flatten().tolist():
                assert torch.equal(frame[row, :, 0], codes[row, :, position[row]])
                heard[row].append(sound[row])
                position[row] += 1
    assert_same_audio(torch.stack([torch.cat(row, dim=1) for row in heard]), decoded)


def test_paused_rows_have_latents_of_zero(mimi):
    with mimi.streaming(2):
        mimi.set_exec_mask(torch.tensor([1, 0]))
        latents = mimi.encode_to_latent(make_audio(FRAME, batch=2), quantize=False)
    assert latents[0].any()
    assert not latents[1].any()


def test_some_rows_begin_again(mimi):
    audio = make_audio(6 * FRAME, batch=2)
    before, after = audio.split(3 * FRAME, dim=2)
    codes, fresh = mimi.encode(audio), mimi.encode(after)
    sound, fresh_sound = mimi.decode(codes).detach(), mimi.decode(fresh).detach()
    with mimi.streaming(2):
        mimi.encode(before)
        mimi.decode(codes[..., :3])
        mimi.set_exec_mask(torch.tensor([False, False]))
        mimi.reset_streaming(torch.tensor([True, False]))
        assert mimi.get_streaming_state()["exec_mask"].tolist() == [True, False]
        mimi.set_exec_mask(torch.tensor([True, True]))
        frames = mimi.encode(after)
        assert torch.equal(frames[0], fresh[0])
        assert torch.equal(frames[1], codes[1, :, 3:])
        decoded = mimi.decode(frames)
        assert_same_audio(decoded[0], fresh_sound[0])
        assert_same_audio(decoded[1], sound[1, :, 3 * FRAME :])
        mimi.reset_streaming()
        assert torch.equal(mimi.encode(audio), codes)


def test_a_stream_begins_at_once_and_ends_with_its_context(mimi):
    assert not mimi.is_streaming
    context = mimi.streaming(2)
    assert isinstance(context, ExitStack)
    assert mimi.is_streaming
    with pytest.raises(ValueError, match="streams already, in 2 rows"):
        mimi.streaming(1)
    with pytest.raises(RuntimeError), context:
        raise RuntimeError
    assert not mimi.is_streaming
    mimi.streaming_forever(1)
    assert mimi.is_streaming
    assert mimi.encode(make_audio(5)).shape == (1, 4, 0)


def test_a_failed_start_is_no_start(mimi):
    with pytest.raises(ValueError, match="batch_size=0 must be a positive integer"):
        mimi.streaming(0)
    assert not mimi.is_streaming


def test_streams_refuse_what_does_not_fit(mimi):
    mask = torch.ones(2, dtype=torch.bool)
    for call in (mimi.reset_streaming, lambda: mimi.reset_streaming(mask), lambda: mimi.set_exec_mask(mask)):
        with pytest.raises(ValueError, match=r"mimi does not stream\. Call streaming"):
            call()
    with mimi.streaming(3):
        for call in (mimi.reset_streaming, mimi.set_exec_mask):
            with pytest.raises(ValueError, match=r"shape \(2,\), but the stream has 3 rows"):
                call(mask)
        with pytest.raises(ValueError, match="made for 3 rows"):
            mimi.encode(make_audio(FRAME))
        with pytest.raises(ValueError, match="made for 3 rows"):
            mimi.decode(torch.zeros(1, 4, 1, dtype=torch.int64))
        mimi.set_exec_mask(torch.tensor([True, False, True]))
        with pytest.raises(ValueError, match="push multiples of 24 samples"):
            mimi.encode(make_audio(5, batch=3))


@torch.no_grad()
def test_states_can_be_forked_and_swapped(mimi):
    audio = make_audio(6 * FRAME)
    codes = mimi.encode(audio)
    assert mimi.get_streaming_state() == {"encoder": None, "decoder": None, "exec_mask": None}
    with mimi.streaming(1):
        mimi.encode(audio[..., : 2 * FRAME])
        live = mimi.get_streaming_state()
        fork = copy.deepcopy(live)
        assert fork["encoder"].model is mimi.model
        mimi.encode(audio[..., 2 * FRAME :])
        mimi.set_streaming_state(fork)
        assert torch.equal(mimi.encode(audio[..., 2 * FRAME :]), codes[..., 2:])
        mimi.set_streaming_state(live)
        assert not torch.equal(mimi.encode(audio[..., 2 * FRAME :]), codes[..., 2:])
        with pytest.raises(ValueError, match="encoder, decoder, exec_mask are needed"):
            mimi.set_streaming_state({"encoder.model.0": None})
        mimi.set_streaming_state(dict.fromkeys(live))
        assert not mimi.is_streaming


@torch.no_grad()
def test_a_state_goes_on_in_a_copy_of_the_model(mimi):
    audio = make_audio(4 * FRAME)
    codes = mimi.encode(audio)
    mimi.streaming_forever(1)
    mimi.encode(audio[..., : 2 * FRAME])
    other = KyutaiMimi(make_model(), 4)
    other.set_streaming_state(mimi.get_streaming_state())
    assert other.get_streaming_state()["encoder"].model is other.model
    for each in (mimi, other):
        assert torch.equal(each.encode(audio[..., 2 * FRAME :]), codes[..., 2:])


def test_a_deep_copy_streams_by_itself():
    mimi = KyutaiMimi(make_model(), 4)
    audio = make_audio(4 * FRAME)
    codes = mimi.encode(audio)
    mimi.streaming_forever(1)
    mimi.encode(audio[..., :FRAME])
    copied = copy.deepcopy(mimi)
    for parameter in mimi.parameters():
        parameter.data.zero_()
    assert torch.equal(copied.encode(audio[..., FRAME:]), codes[..., 1:])
    copied.load_state_dict(mimi.state_dict())
    assert not any(parameter.any() for parameter in copied.parameters())


def test_a_stream_goes_on_in_and_out_of_inference_mode(mimi):
    audio = make_audio(6 * FRAME)
    codes = mimi.encode(audio)
    first, second, third = audio.split(2 * FRAME, dim=2)
    with mimi.streaming(1):
        pieces = [mimi.encode(first)]
        with torch.inference_mode():
            pieces.append(mimi.encode(second))
        pieces.append(mimi.encode(third))
    assert torch.equal(torch.cat(pieces, dim=2), codes)


def test_a_stream_follows_its_model():
    mimi = KyutaiMimi(make_model(), 4)
    mimi.streaming_forever(1)
    mimi.encode(make_audio(FRAME))
    assert mimi.to(torch.bfloat16).dtype == torch.bfloat16
    assert mimi.encode(make_audio(FRAME)).shape == (1, 4, 1)
    assert mimi.decode(torch.zeros(1, 4, 1, dtype=torch.int64)).dtype == torch.bfloat16


# Weights


def test_the_state_dict_is_that_of_kyutai(original):
    path, config = original
    mimi = get_mimi(path, config, num_codebooks=3)
    state = mimi.state_dict()
    for name, tensor in original_of(config).items():
        assert torch.equal(state.pop(name), tensor)
    assert not state
    assert mimi.state_dict(keep_vars=True).keys() == original_of(config).keys()


def test_weights_can_be_loaded_later(original):
    """As liquid-audio does: a model without weights, and its state dict."""
    path, config = original
    audio = make_audio(5 * config.frame_size)
    wanted = get_mimi(path, config, num_codebooks=3).encode(audio)
    mimi = get_mimi(None, config, num_codebooks=3)
    assert not torch.equal(mimi.encode(audio), wanted)
    for assign in (False, True):
        mimi = get_mimi(None, config, num_codebooks=3)
        assert str(mimi.load_state_dict(original_of(config), strict=True, assign=assign)) == str(
            nn.Module().load_state_dict({})
        )
        assert torch.equal(mimi.encode(audio), wanted)


def test_what_a_state_dict_lacks_is_reported(original):
    _, config = original
    mimi = get_mimi(None, config, num_codebooks=3)
    state = {**original_of(config), "more.weight": torch.zeros(1)}
    del state["downsample.conv.conv.conv.weight"]
    before = mimi.model.downsample.conv.weight.clone()
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing key.*downsample.conv.conv.conv.weight.*Unexpected.*more.weight"
    ):
        mimi.load_state_dict(state)
    report = mimi.load_state_dict(state, strict=False)
    assert report == (["downsample.conv.conv.conv.weight"], ["more.weight"])
    assert torch.equal(mimi.model.downsample.conv.weight, before)


def test_a_module_that_holds_it_saves_and_loads_it(original):
    path, config = original
    outer = nn.ModuleDict({"codec": get_mimi(path, config, num_codebooks=3), "head": nn.Linear(2, 2)})
    state = outer.state_dict()
    assert "codec.encoder.model.0.conv.conv.weight" in state
    again = nn.ModuleDict({"codec": get_mimi(None, config, num_codebooks=3), "head": nn.Linear(2, 2)})
    again.load_state_dict(state)
    audio = make_audio(5 * config.frame_size)
    assert torch.equal(again["codec"].encode(audio), outer["codec"].encode(audio))


# Loading


def test_files_folders_and_names_load(original, checkpoint, model):
    path, config = original
    mimi = get_mimi(path, kyutais_config(config), device="cpu", num_codebooks=3)
    assert (mimi.num_codebooks, mimi.training, mimi.dtype) == (3, False, torch.float32)
    assert {**mimi.model.config.to_dict(), "dtype": None, "_name_or_path": ""} == config.to_dict()
    assert mimi.model.config.name_or_path == str(path)
    assert get_mimi(str(path), num_codebooks=3).model.config.sliding_window == 250  # what tensors do not tell
    folder = get_mimi(checkpoint, num_codebooks=6)
    audio = make_audio(3 * FRAME)
    assert torch.equal(folder.encode(audio), model.encode(audio).audio_codes)
    assert get_mimi("mimi-tiny").num_codebooks == 8


def test_older_programs_name_the_device_second(original):
    """As PersonaPlex does."""
    path, _ = original
    for device in ("cpu", torch.device("cpu")):
        assert get_mimi(path, device, num_codebooks=3).device == torch.device("cpu")
    with pytest.raises(RuntimeError):
        get_mimi(path, "no-device", num_codebooks=3)


def test_programs_find_the_names_of_the_checkpoint():
    assert kyutai.MIMI_NAME == "tokenizer-e351c8d8-checkpoint125.safetensors"
    assert (kyutai.SAMPLE_RATE, kyutai.FRAME_RATE) == (24_000, 12.5)
    assert set(kyutai.__all__) <= set(dir(kyutai))


def test_loading_refuses_what_it_cannot_load(original, checkpoint, tmp_path):
    path, config = original
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*none.safetensors"):
        get_mimi(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="num_quantizers=8, but this model encodes with 1"):
        get_mimi(path, config)
    with pytest.raises(ValueError, match=r"brings its own config.json"):
        get_mimi(checkpoint, config)
    with pytest.raises(OSError, match="neither a folder here nor in the cache"):
        get_mimi("nobody/nothing")
    sizes = kyutais_config(config)
    with pytest.raises(ValueError, match=r"it has no channels, transformer.context"):
        sizes = {**sizes, "transformer": {**sizes["transformer"]}}
        del sizes["channels"], sizes["transformer"]["context"]
        get_mimi(path, sizes)
    sizes = kyutais_config(config)
    with pytest.raises(ValueError, match=r"seanet.norm='weight_norm', but Mimi has 'none'"):
        get_mimi(path, {**sizes, "seanet": {**sizes["seanet"], "norm": "weight_norm"}})
