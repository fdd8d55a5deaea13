import copy
import gc
import pickle

import pytest
import torch
from support.tiny import FRAME, TINY, assert_same_audio, make_audio, make_model
from transformers import PreTrainedModel
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from mimi_hf import MimiConfig, MimiModel, modeling_mimi

CONFIGS = {
    "published ratios": {"upsampling_ratios": [8, 6, 5, 4], "upsample_groups": 16},
    "two residual layers, shortcuts": {"num_residual_layers": 2, "use_conv_shortcut": True, "residual_kernel_size": 5},
    "grouped-query attention": {"num_key_value_heads": 2, "attention_bias": True},
    "stereo": {"audio_channels": 2},
    "no resampling step": {"frame_rate": 2000},
    "four steps a frame": {"frame_rate": 500},
    "another window": {"sliding_window": 3},
    "a window of one step": {"sliding_window": 1},
    "replicate": {"pad_mode": "replicate"},
    "no projection": {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
    "two semantic": {"num_semantic_quantizers": 2},
    "relu": {"hidden_act": "relu", "head_dim": 6, "num_hidden_layers": 1},
}


def snr(signal, other):
    """Signal-to-noise ratio of `other` as an approximation of `signal`, in dB."""
    return float(10 * torch.log10(signal.square().sum() / (signal - other).float().square().sum()))


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_any_architecture_gives_the_same_whole_and_in_tiles(changes, monkeypatch):
    model = make_model(**changes)
    size = model.config.frame_size
    audio = make_audio(size * 11 - 5, batch=2, channels=model.config.audio_channels)
    codes = model.encode(audio).audio_codes
    assert codes.shape == (2, 6, 11)
    with torch.no_grad():
        whole = model.decode(codes).audio_values
    assert whole.shape == (2, model.config.audio_channels, size * 11)
    monkeypatch.setattr(modeling_mimi, "_PIECE_FRAMES", 2)
    for row_frames in (1, 100):  # rows by themselves, and together
        monkeypatch.setattr(modeling_mimi, "_ROW_FRAMES", row_frames)
        assert torch.equal(model.encode(audio).audio_codes, codes)
        with torch.no_grad():
            assert_same_audio(model.decode(codes).audio_values, whole)
    monkeypatch.setattr(MimiModel, "_tiles", lambda self, frames, batch: ((i, i + 1) for i in range(frames)))
    assert torch.equal(model.encode(audio).audio_codes, codes)
    with torch.no_grad():
        assert_same_audio(model.decode(codes).audio_values, whole)


def test_causal(model):
    audio, changed = make_audio(20 * FRAME), make_audio(20 * FRAME)
    changed[..., 12 * FRAME :] = 0
    codes, changed_codes = model.encode(audio).audio_codes, model.encode(changed).audio_codes
    assert torch.equal(codes[..., :12], changed_codes[..., :12])
    assert not torch.equal(codes[..., 12:], changed_codes[..., 12:])
    with torch.no_grad():
        decoded = model.decode(codes).audio_values
        shorter = model.decode(codes[..., :12]).audio_values
    assert_same_audio(decoded[..., : 12 * FRAME], shorter)


@pytest.mark.parametrize("num_quantizers", range(1, 7))
def test_fewer_quantizers_are_the_first_of_all(model, num_quantizers):
    audio = make_audio(5 * FRAME)
    codes = model.encode(audio, num_quantizers=num_quantizers).audio_codes
    assert torch.equal(codes, model.encode(audio).audio_codes[:, :num_quantizers])
    with torch.no_grad():
        assert model.decode(codes).audio_values.shape == audio.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
@torch.no_grad()
def test_codes_of_any_integer_type(model, dtype):
    codes = torch.randint(0, 64, (1, 6, 3))
    assert torch.equal(model.decode(codes.to(dtype)).audio_values, model.decode(codes).audio_values)
    assert torch.equal(model.decoder_stream().push(codes.to(dtype)), model.decode(codes).audio_values)
    some = model.decoder_stream(2).push(codes.to(dtype).expand(2, -1, -1), active=[1])
    assert_same_audio(some[1:], model.decode(codes).audio_values)


def test_no_codes_are_no_audio(model):
    codes = torch.zeros(2, 6, 0, dtype=torch.int64)
    assert model.decode(codes).audio_values.shape == (2, 1, 0)
    assert model.decoder_stream(2).push(codes).shape == (2, 1, 0)


def test_outputs_are_named_indexed_and_tuples(model):
    audio = make_audio(3 * FRAME - 1)
    output = model(audio)
    assert output[0] is output.audio_codes
    assert output[1] is output.audio_values
    assert output.audio_values.shape == audio.shape  # as long as the input
    assert output.audio_codes_mask.tolist() == [[True] * 3]
    codes, values = model(audio, return_dict=False)
    assert torch.equal(codes, output.audio_codes)
    assert torch.equal(values, output.audio_values)
    (alone,) = model.encode(audio, return_dict=False)
    assert torch.equal(alone, codes)
    (decoded,) = model.decode(codes, return_dict=False)
    assert torch.equal(decoded, model.decode(codes)[0])
    assert torch.equal(model(audio, audio_codes=codes).audio_values, values)
    assert model(audio_codes=codes).audio_values.shape == (1, 1, 3 * FRAME)


def test_encoded_length_and_mask(model):
    assert [int(model.get_encoded_length(n)) for n in (1, FRAME, FRAME + 1)] == [1, 1, 2]
    assert model.get_encoded_length(torch.tensor([0, 2 * FRAME])).tolist() == [0, 2]
    mask = torch.ones(2, 3 * FRAME)
    mask[1, FRAME + 1 :] = 0
    assert model.get_audio_codes_mask(mask).tolist() == [[True] * 3, [True, True, False]]
    assert model.get_audio_codes_mask(mask[:, None]).tolist() == [[True] * 3, [True, True, False]]
    assert model.get_audio_codes_mask(mask.flip(1), padding_side="left").tolist() == [[True] * 3, [False, True, True]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("noise", [100.0, float("nan")])
def test_ragged_batch_gives_each_row_what_it_gets_alone(model, side, noise):
    lengths = [7 * FRAME, 1, 3 * FRAME + 5, 30 * FRAME - 1, FRAME, FRAME + 1, 29 * FRAME, 2 * FRAME]
    longest = max(lengths)
    batch = torch.full((len(lengths), 1, longest), noise)
    mask = torch.zeros(len(lengths), longest, dtype=torch.int64)
    rows = [make_audio(length, seed=seed) for seed, length in enumerate(lengths)]
    for index, row in enumerate(rows):
        extent = slice(0, lengths[index]) if side == "right" else slice(longest - lengths[index], longest)
        batch[index, :, extent] = row
        mask[index, extent] = 1
    output = model.encode(batch, mask)
    with torch.no_grad():
        audio = model.decode(output.audio_codes, mask).audio_values
        by_frames = model.decode(output.audio_codes, audio_codes_mask=output.audio_codes_mask).audio_values
    assert audio.shape == batch.shape
    assert torch.equal(output.audio_codes_mask, model.get_audio_codes_mask(mask, padding_side=side))
    for index, row in enumerate(rows):
        alone = model.encode(row).audio_codes[0]
        assert torch.equal(output.audio_codes[index][:, output.audio_codes_mask[index]], alone)
        with torch.no_grad():
            alone_audio = model.decode(alone[None]).audio_values[0]
        assert_same_audio(audio[index][:, mask[index].bool()], alone_audio[:, : lengths[index]])
        assert not audio[index][:, ~mask[index].bool()].any()
        frames = output.audio_codes_mask[index].repeat_interleave(FRAME)
        assert_same_audio(by_frames[index][:, frames], alone_audio)
        assert not by_frames[index][:, ~frames].any()
    assert not output.audio_codes.masked_select(~output.audio_codes_mask[:, None]).any()


def test_ragged_batch_with_gradients_is_the_same(model):
    codes = torch.randint(0, 64, (2, 6, 4))
    mask = torch.ones(2, 4 * FRAME)
    mask[0, : FRAME // 2] = 0
    mask[1, : FRAME * 2 + 3] = 0
    with torch.no_grad():
        expected = model.decode(codes, mask).audio_values
    assert_same_audio(model.decode(codes, mask).audio_values, expected)


@torch.no_grad()
def test_masks_of_frames_say_where_each_row_lies(model):
    codes = torch.randint(0, 64, (2, 6, 9))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 2:5] = mask[1, :7] = True
    audio = model.decode(codes, audio_codes_mask=mask).audio_values
    assert_same_audio(audio[:1, :, 2 * FRAME : 5 * FRAME], model.decode(codes[:1, :, 2:5]).audio_values)
    assert_same_audio(audio[1:, :, : 7 * FRAME], model.decode(codes[1:, :, :7]).audio_values)
    assert not audio.masked_select(~mask.repeat_interleave(FRAME, dim=1)[:, None]).any()


def test_mask_of_three_dimensions_and_rows_without_samples(model):
    audio = make_audio(3 * FRAME, batch=2)
    mask = torch.ones(2, 1, 3 * FRAME)
    mask[1] = 0
    output = model.encode(audio, mask)
    assert output.audio_codes_mask.tolist() == [[True] * 3, [False] * 3]
    assert torch.equal(output.audio_codes[:1], model.encode(audio[:1]).audio_codes)


def test_latents_lie_before_and_after_the_quantizer(model):
    audio = make_audio(4 * FRAME - 3)
    latents = model.encode_latents(audio)
    assert latents.shape == (1, 32, 4)
    codes = model.encode(audio).audio_codes
    assert torch.equal(model.quantizer.encode(latents).transpose(0, 1), codes)
    quantized = model.quantizer.decode(codes)
    assert quantized.shape == (1, 32, 4)
    assert_same_audio(model.decode_latents(quantized), model.decode(codes).audio_values)


def test_gradients_reach_every_parameter_up_to_the_quantizer():
    model = make_model(use_conv_shortcut=True)
    audio = make_audio(30 * FRAME - 2, batch=2).requires_grad_()
    latents = model.encode_latents(audio)
    model.decode_latents(latents).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("_proj.weight" in name and name.startswith("quantizer") for name in missing), missing
    assert audio.grad.abs().sum(dim=(0, 1)).all()


def test_inference_mode_leaves_the_model_fit_for_training(checkpoint):
    model = MimiModel.from_pretrained(checkpoint)
    audio = make_audio(4 * FRAME)
    with torch.inference_mode():
        codes = model(audio).audio_codes
    model.train()
    model.decode_latents(model.encode_latents(audio)).sum().backward()
    model.decode(codes.clone()).audio_values.sum().backward()
    assert model.encoder.layers[0].conv.weight.grad.any()


def test_autocast_trains_and_keeps_the_search_in_single_precision():
    model = make_model().train()
    audio = make_audio(30 * FRAME)
    codes = model.encode(audio).audio_codes
    with torch.autocast("cpu", torch.bfloat16):
        model.decode_latents(model.encode_latents(audio)).square().mean().backward()
        agreement = (model.encode(audio).audio_codes[:, 0] == codes[:, 0]).float().mean()
    assert agreement > 0.8
    assert model.encoder.layers[0].conv.weight.grad.dtype == torch.float32
    latents = model.encode_latents(audio).detach()
    exact = model.quantizer.search(latents.transpose(1, 2), 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantizer.search(latents.transpose(1, 2), 6), exact)


def test_hooks_see_every_call():
    model = make_model()
    calls = []
    model.encoder_transformer.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    model.encode(make_audio(FRAME))
    model.encode(make_audio(50 * FRAME))
    assert len(calls) == 2


def test_offloaded_weights_are_refused(checkpoint, tmp_path):
    names = ["encoder", "encoder_transformer", "downsample", "upsample", "decoder_transformer", "decoder"]
    device_map = {**dict.fromkeys(names, "cpu"), "quantizer": "disk"}
    model = MimiModel.from_pretrained(checkpoint, device_map=device_map, offload_folder=tmp_path)
    with pytest.raises(ValueError, match="one device"):
        model.encode(make_audio(FRAME))


def test_a_model_made_for_inference_alone_encodes(model):
    audio = make_audio(3 * FRAME)
    with torch.inference_mode():
        inferring = make_model()
        inferring.load_state_dict(model.state_dict())
        codes = inferring.encode(audio).audio_codes
    assert torch.equal(codes, model.encode(audio).audio_codes)


def test_gradient_is_the_derivative():
    model = make_model(pad_mode="replicate").double()
    audio = make_audio(3 * FRAME).double()
    direction = torch.randn_like(audio)

    def loss(x):
        return model.decode_latents(model.encode_latents(x)).square().sum()

    step = 1e-6
    numeric = (loss(audio + step * direction) - loss(audio - step * direction)) / (2 * step)
    audio.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(audio), audio)
    torch.testing.assert_close((gradient * direction).sum(), numeric.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_codebooks_are_made_in_single_precision(checkpoint, dtype):
    from transformers import AutoConfig, AutoModel

    made = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint), dtype=dtype)
    for model in (made, MimiModel.from_pretrained(checkpoint, dtype=dtype)):
        assert model.dtype == dtype
        assert {buffer.dtype for name, buffer in model.named_buffers() if "codebook" in name} == {torch.float32}
        assert torch.isfinite(model.train()(make_audio(4 * FRAME).to(dtype)).loss)


def test_layers_with_weights_of_their_own_multiply_themselves(model):
    from mimi_hf.codec.matmul import linear

    class Packed(torch.nn.Linear):  # as bitsandbytes makes of a layer
        def forward(self, x):
            return x @ self.weight.to(x.dtype).t() / 10

    layer = Packed(8, 4, bias=False)
    layer.weight = torch.nn.Parameter(torch.ones(4, 8, dtype=torch.int8), requires_grad=False)
    torch.testing.assert_close(linear(layer, torch.ones(1, 3, 8)), torch.full((1, 3, 4), 0.8))


@pytest.mark.parametrize(("dtype", "least_snr"), [(torch.bfloat16, 20), (torch.float16, 35)])
def test_half_precision_loads_runs_and_searches_in_single(checkpoint, dtype, least_snr):
    audio = make_audio(20 * FRAME)
    reference = MimiModel.from_pretrained(checkpoint)
    codes = reference.encode(audio).audio_codes
    with torch.no_grad():
        expected = reference.decode(codes).audio_values
    for model in (MimiModel.from_pretrained(checkpoint, dtype=dtype), make_model().to(dtype)):
        assert model.dtype == dtype
        assert {buffer.dtype for name, buffer in model.named_buffers() if "codebook" in name} == {torch.float32}
        agreement = (model.encode(audio).audio_codes == codes).float()
        assert agreement[:, 0].mean() > 0.8  # the later levels quantize what rounding left
        with torch.no_grad():
            decoded = model.decode(codes).audio_values
        assert decoded.dtype == dtype
        assert snr(expected, decoded) > least_snr


def test_attention_implementations_agree(checkpoint):
    audio = make_audio(30 * FRAME)
    eager, sdpa = (
        MimiModel.from_pretrained(checkpoint, attn_implementation=implementation)
        for implementation in ("eager", "sdpa")
    )
    assert eager.config._attn_implementation == "eager"
    assert sdpa.config._attn_implementation == "sdpa"
    assert_same_audio(eager.encode_latents(audio), sdpa.encode_latents(audio))
    sdpa.set_attn_implementation("eager")
    with pytest.raises((ValueError, ImportError)):
        MimiModel.from_pretrained(checkpoint, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(checkpoint, device_map):
    audio = make_audio(2 * FRAME)
    model = MimiModel.from_pretrained(checkpoint, device_map=device_map)
    assert torch.equal(model.encode(audio).audio_codes, make_model().encode(audio).audio_codes)


def test_save_and_load_keep_every_bit(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded, info = MimiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    audio = make_audio(5 * FRAME)
    assert torch.equal(loaded.encode(audio).audio_codes, model.encode(audio).audio_codes)
    assert isinstance(loaded, PreTrainedModel)
    assert isinstance(loaded, PreTrainedAudioTokenizerBase)
    assert not loaded.training


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(clone):
    model = make_model()
    audio = make_audio(5 * FRAME)
    codes = model.encode(audio).audio_codes
    copied = clone(model)
    model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.zero_()
    assert torch.equal(copied.encode(audio).audio_codes, codes)
    assert not torch.equal(model.encode(audio).audio_codes, codes)


def test_halves_load_from_a_full_checkpoint(checkpoint, model, tmp_path):
    audio = make_audio(4 * FRAME)
    codes = model.encode(audio).audio_codes
    encoder, info = MimiModel.from_pretrained(checkpoint, decoder_config=None, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert encoder.decoder is None
    assert torch.equal(encoder.encode(audio).audio_codes, codes)
    with pytest.raises(ValueError, match="without its decoder"):
        encoder.decode(codes)
    decoder = MimiModel.from_pretrained(checkpoint, encoder_config=None)
    with torch.no_grad():
        assert_same_audio(decoder.decode(codes).audio_values, model.decode(codes).audio_values)
    for call in (decoder.encode, decoder.encode_latents, lambda _: decoder.encoder_stream()):
        with pytest.raises(ValueError, match="without its encoder"):
            call(audio)
    encoder.save_pretrained(tmp_path)
    assert MimiModel.from_pretrained(tmp_path).decoder is None
    assert sum(p.numel() for p in encoder.parameters()) < sum(p.numel() for p in model.parameters())


def test_every_parameter_is_initialized():
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**TINY))
    flat = [name for name, p in model.named_parameters() if p.dim() > 1 and not p.std() > 0]
    assert not flat
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_no_gradient_is_kept_by_encoding(model):
    codes = model.encode(make_audio(3 * FRAME)).audio_codes
    assert not codes.requires_grad
    gc.collect()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode(torch.full((1, 1, 50), torch.nan)), ValueError, "NaN or infinity"),
        (lambda m: m.encode(torch.full((1, 1, 50), torch.inf)), ValueError, "NaN or infinity"),
        (lambda m: m.encode(torch.zeros(1, 1, 0)), ValueError, "empty"),
        (lambda m: m.encode(torch.zeros(0, 1, 9)), ValueError, "empty"),
        (lambda m: m.encode(make_audio(50) * 1e38), ValueError, "overflow"),
        (lambda m: m.encode(torch.zeros(1, 1, 5), [[1] * 5]), TypeError, "list"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), num_quantizers="a"), TypeError, "integer"),
        (lambda m: m.quantizer.decode(torch.full((1, 6, 3), 64)), ValueError, "0 to 63"),
        (lambda m: m.decode_latents([1]), TypeError, "float tensor"),
        (lambda m: m.decode(torch.zeros(1, 6, 1).long(), audio_codes_mask=[[1]]), TypeError, "list"),
        (lambda m: m.encode(torch.zeros(1, 50)), ValueError, r"shape \(1, 50\)"),
        (lambda m: m.encode(torch.zeros(1, 2, 50)), ValueError, r"\(batch, 1, samples\)"),
        (lambda m: m.encode(torch.zeros(1, 1, 50, dtype=torch.int16)), TypeError, "int16"),
        (lambda m: m.encode([[[0.0]]]), TypeError, "list"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), num_quantizers=7), ValueError, "num_quantizers=7"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), num_quantizers=0), ValueError, "semantic"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), num_quantizers=1.5), TypeError, "integer"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), torch.ones(1, 49)), ValueError, r"shape \(1, 49\)"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), torch.ones(2, 50)), ValueError, r"shape \(2, 50\)"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), torch.zeros(1, 50)), ValueError, "no real sample"),
        (
            lambda m: m.encode(torch.zeros(1, 1, 5), torch.tensor([[1, 0, 1, 1, 0]])),
            ValueError,
            "both sides of padding",
        ),
        (lambda m: m.decode(torch.full((1, 6, 3), 64)), ValueError, "0 to 63"),
        (lambda m: m.decode(torch.full((1, 6, 3), -1)), ValueError, "from -1"),
        (lambda m: m.decode(torch.zeros(1, 6, 3)), TypeError, "float32"),
        (lambda m: m.decode(torch.zeros(6, 3, dtype=torch.int64)), ValueError, r"shape \(6, 3\)"),
        (lambda m: m.decode(torch.zeros(1, 7, 3, dtype=torch.int64)), ValueError, "num_quantizers=7"),
        (lambda m: m.decode(torch.zeros(1, 0, 3, dtype=torch.int64)), ValueError, r"shape \(1, 0, 3\)"),
        (lambda m: m.decode(torch.zeros(1, 6, 1, dtype=torch.int64), torch.ones(1, 25)), ValueError, "hold only 24"),
        (lambda m: m.decode(torch.zeros(1, 6, 1, dtype=torch.int64), torch.ones(2, 24)), ValueError, r"\(2, 24\)"),
        (lambda m: m.decode_latents(torch.zeros(1, 31, 4)), ValueError, r"\(batch, 32, frames\)"),
        (lambda m: m.get_audio_codes_mask(torch.ones(1, 4), padding_side="top"), ValueError, "top"),
    ],
)
def test_bad_input_is_answered_with_the_value_the_rule_and_the_remedy(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_fewer_codebooks_than_semantic_ones_are_refused():
    model = make_model(num_semantic_quantizers=2)
    with pytest.raises(ValueError, match="2 \\(its semantic"):
        model.encode(make_audio(FRAME), num_quantizers=1)
    with pytest.raises(ValueError, match="2 \\(its semantic"):
        model.decode(torch.zeros(1, 1, 2, dtype=torch.int64))


def test_checkpoint_cut_short_or_of_another_size_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"(?i)safetensors|incomplete|header"):
        MimiModel.from_pretrained(tmp_path)
    weights.write_bytes(content)
    make_model(codebook_size=32).config.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        MimiModel.from_pretrained(tmp_path)
