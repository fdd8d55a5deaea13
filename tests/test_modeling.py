import gc

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model

from mimi_hf import MimiModel
from mimi_hf.codec import pieces

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
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 2)
    for row_frames in (1, 100):  # rows by themselves, and together
        monkeypatch.setattr(pieces, "ROW_FRAMES", row_frames)
        assert torch.equal(model.encode(audio).audio_codes, codes)
        with torch.no_grad():
            assert_same_audio(model.decode(codes).audio_values, whole)
    monkeypatch.setattr(MimiModel, "tile_frames", lambda self, batch_size: 1)
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
    codes, values, *caches = model(audio, return_dict=False)
    assert torch.equal(codes, output.audio_codes)
    assert torch.equal(values, output.audio_values)
    assert caches == [None, None]
    alone, *caches = model.encode(audio, return_dict=False)
    assert torch.equal(alone, codes)
    assert caches == [None, None]
    decoded, cache = model.decode(codes, return_dict=False)
    assert torch.equal(decoded, model.decode(codes)[0])
    assert cache is None
    assert torch.equal(model.decode(codes, None, None, False)[0], decoded)  # the fourth argument, as up to 5.20
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
