"""A model's weights: made, loaded, saved, converted, and arranged in memory."""

import copy
import pickle

import pytest
import torch
from support.tiny import FRAME, TINY, assert_same_audio, make_audio, make_model, snr
from transformers import PreTrainedModel
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from mimi_hf import MimiConfig, MimiModel


def test_inference_mode_leaves_the_model_fit_for_training(checkpoint):
    model = MimiModel.from_pretrained(checkpoint)
    audio = make_audio(4 * FRAME)
    with torch.inference_mode():
        codes = model(audio).audio_codes
    model.train()
    model.decode_latents(model.encode_latents(audio)).sum().backward()
    model.decode(codes.clone()).audio_values.sum().backward()
    assert model.encoder.layers[0].conv.weight.grad.any()


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


def convolutions(model):
    return [module for module in model.modules() if hasattr(module, "memory_order")]


def are_arranged(model):
    return all(layer.conv.weight.permute(layer.memory_order).is_contiguous() for layer in convolutions(model))


def test_a_new_model_is_contiguous_and_as_loading_makes_it(monkeypatch):
    def initialize(model, module, *arguments):
        torch.manual_seed(0)  # layers of torch draw when they are made, unless they are made on the meta device
        original(model, module, *arguments)

    original = PreTrainedModel._initialize_weights
    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", initialize)
    config = MimiConfig(**TINY)
    made = MimiModel(config)
    assert all(tensor.is_contiguous() for tensor in made.state_dict().values())
    loaded = MimiModel.from_pretrained(None, config=config, state_dict={})
    state = loaded.state_dict()
    assert [name for name, tensor in made.state_dict().items() if not torch.equal(tensor, state[name])] == []


def test_weights_are_arranged_by_the_first_step_after_a_change(checkpoint):
    model = MimiModel.from_pretrained(checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps = [
        lambda: model.encode_tile(torch.zeros(1, FRAME, 1, dtype=model.dtype), None),
        lambda: model.decode_tile(torch.zeros(1, 1, 32, dtype=model.dtype), None),
        lambda: model.encoder_stream(),
        lambda: model.decode(torch.zeros(1, 2, 1, dtype=torch.int64)),
    ]
    changes = [
        lambda: None,
        lambda: model.load_state_dict(before, assign=True),
        lambda: model.double(),
        lambda: model.float(),
    ]
    for change, step in zip(changes, steps, strict=True):
        change()
        step()
        assert are_arranged(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
