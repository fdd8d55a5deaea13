"""What the programs that embed Mimi do with it, on small models.

Where a program uses the layers by themselves, native's own layers are the oracle, wherever the installed version of
transformers keeps them. Names of programs stand where a test does as they do.
"""

import copy
import importlib
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.composites import CODEC, CSM_TEXT, make_csm, make_moshi
from support.tiny import assert_same_audio, make_audio, make_model, randomize
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ProcessorMixin, processing_utils
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.models.mimi import modeling_mimi as native

import mimi_hf

FRAMES = 6
CODEBOOKS = 4


@pytest.fixture(scope="module", autouse=True)
def registered():
    mimi_hf.register()


@pytest.fixture
def model():
    """One for each test: the programs take it apart."""
    return make_codec()


def make_codec(**changes) -> mimi_hf.MimiModel:
    fields = {**CODEC, **changes}
    fields.pop("model_type")
    return make_model(**fields)


@pytest.fixture(scope="module")
def audio():
    return make_audio(FRAMES * 1920, batch=2)


@pytest.fixture(scope="module")
def codes(audio):
    return make_codec().encode(audio).audio_codes


@dataclass
class Layers:
    """The layers of a model, by the names that they have in its checkpoints."""

    encoder: Any
    encoder_transformer: Any
    downsample: Any
    quantizer: Any
    upsample: Any
    decoder_transformer: Any
    decoder: Any


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Layers:
    """Native's layers with the weights of [`make_codec`]: in the halves of the model, or in the model itself."""
    folder = tmp_path_factory.mktemp("codec")
    make_codec().save_pretrained(folder)
    twin = native.MimiModel.from_pretrained(folder).eval()
    nested = hasattr(twin.encoder, "encoder_seanet")
    encoding, decoding = (twin.encoder, twin.decoder) if nested else (twin, twin)
    return Layers(
        twin.encoder.encoder_seanet if nested else twin.encoder,
        encoding.encoder_transformer,
        encoding.downsample,
        twin.quantizer,
        decoding.upsample,
        decoding.decoder_transformer,
        twin.decoder.decoder_seanet if nested else twin.decoder,
    )


# The layers by themselves: audiocodecs, codec_evaluation and whoever wants what lies between them


def encode_by_hand(layers: Any, audio: Tensor) -> Tensor:
    """Latents, shape = (B, D, F), as audiocodecs computes them."""
    steps = layers.encoder(audio)
    steps = layers.encoder_transformer(steps.transpose(1, 2))[0].transpose(1, 2)
    return layers.downsample(steps)


def decode_by_hand(layers: Any, latents: Tensor) -> Tensor:
    """Audio, shape = (B, 1, N)."""
    steps = layers.upsample(latents)
    steps = layers.decoder_transformer(steps.transpose(1, 2)).last_hidden_state.transpose(1, 2)
    return layers.decoder(steps)


def encode_as_breeze(layers: Any, audio: Tensor) -> Tensor:
    """Latents as vLLM-omni's Breeze computes them, with a mask of its own."""
    steps = layers.encoder(audio).transpose(1, 2)
    causal = torch.ones(steps.shape[1], steps.shape[1], dtype=torch.bool).tril()[None, None]
    steps = layers.encoder_transformer(steps, attention_mask=causal, use_cache=False, return_dict=True)
    return layers.downsample(steps.last_hidden_state.transpose(1, 2))


@torch.no_grad()
def test_layers_in_a_chain_give_what_native_ones_give(model, theirs, audio):
    latents = encode_by_hand(theirs, audio)
    assert_same_audio(encode_by_hand(model, audio), latents)
    assert_same_audio(encode_as_breeze(model, audio), encode_as_breeze(theirs, audio))
    assert_same_audio(decode_by_hand(model, latents), decode_by_hand(theirs, latents))


def test_layers_by_themselves_compute_what_the_model_computes(model, audio, codes):
    latents = encode_by_hand(model, audio)
    assert_same_audio(latents, model.encode_latents(audio))
    assert torch.equal(model.quantizer.encode(latents, CODEBOOKS).transpose(0, 1), codes[:, :CODEBOOKS])
    with torch.no_grad():
        decoded = decode_by_hand(model, model.quantizer.decode(codes))
        assert_same_audio(decoded, model.decode(codes).audio_values)


def test_gradients_flow_through_layers_by_themselves(model, audio):
    semantic = model.quantizer.semantic_residual_vector_quantizer
    sound = audio.clone().requires_grad_()
    projected = semantic.input_proj(encode_by_hand(model, sound))
    decode_by_hand(model, semantic.output_proj(projected)).square().mean().backward()
    assert sound.grad.abs().sum(dim=(0, 1)).all()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing == {
        f"quantizer.acoustic_residual_vector_quantizer.{side}_proj.weight" for side in ("input", "output")
    }


@torch.no_grad()
def test_what_a_layer_gave_is_kept_as_any_tensor(model, audio):
    """It is saved, copied, viewed, and changed in place."""
    latents = torch.zeros(2, 32, FRAMES)
    for output in (model.encoder(audio), model.downsample(latents), model.upsample(latents), model.decoder(latents)):
        for copied in (pickle.loads(pickle.dumps(output)), copy.deepcopy(output)):
            assert type(copied) is Tensor
            assert torch.equal(copied, output)
        assert output.view(-1).shape == (output.numel(),)
    output = model.encoder(audio)
    expected = output.latents
    output.zero_()
    assert torch.equal(output.latents, expected)


# Codebooks: speechbrain and audiocodecs


def read_entries(quantizer: Any) -> Tensor:
    """Tensor, shape = (K, V, codebook_dim)."""
    semantic, acoustic = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
    layers = (semantic.layers + acoustic.layers)[:CODEBOOKS]
    return torch.stack([layer.codebook.embed for layer in layers])


@torch.no_grad()
def test_entries_of_the_codebooks_are_native_ones_and_sum_to_the_latents(model, theirs, codes):
    entries = read_entries(model.quantizer)
    torch.testing.assert_close(entries, read_entries(theirs.quantizer))
    first = model.quantizer.semantic_residual_vector_quantizer.output_proj(entries[0, :, :, None])
    rest = model.quantizer.acoustic_residual_vector_quantizer.output_proj(entries[1:].flatten(0, 1)[..., None])
    table = torch.cat([first, rest])[..., 0].unflatten(0, (CODEBOOKS, -1))  # (K, V, D)
    latents = sum(table[level][codes[:, level]] for level in range(CODEBOOKS)).mT
    torch.testing.assert_close(latents, model.quantizer.decode(codes[:, :CODEBOOKS]))


# Half a model: audiocodecs' modes, Qwen3-TTS


@torch.no_grad()
def test_a_model_without_its_decoder_encodes(model, audio, codes):
    expected = model.decode(codes).audio_values
    model.decoder = None
    model.decoder_transformer = None
    assert torch.equal(model.to(torch.float32).encode(audio).audio_codes, codes)
    assert torch.equal(model.encoder_stream(2).push(audio), codes)
    with pytest.raises(ValueError, match="without its decoder"):
        model.decode(codes)

    model = make_codec()
    model.encoder = None
    model.encoder_transformer = None
    assert_same_audio(model.decode(codes).audio_values, expected)
    assert_same_audio(model.decoder_stream(2).push(codes), expected)
    with pytest.raises(ValueError, match="without its encoder"):
        model.encode(audio)


class QwenEncoder(mimi_hf.MimiModel):
    """As `Qwen3TTSTokenizerV2Encoder` of qwen-tts and vLLM-omni."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        self.upsample = None
        self.decoder_transformer = None
        self.decoder = None
        self.post_init()


class QwenTokenizerConfig(PreTrainedConfig):
    model_type = "mimi_hf_test_tokenizer"
    sub_configs = {"encoder_config": mimi_hf.MimiConfig}  # noqa: RUF012

    def __init__(self, encoder_config=None, **options):
        self.encoder_config = mimi_hf.MimiConfig(**(encoder_config or CODEC))
        super().__init__(**options)


class QwenTokenizer(PreTrainedModel):
    """As `Qwen3TTSTokenizerV2Model`, which has a decoder of its own."""

    config_class = QwenTokenizerConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = QwenEncoder._from_config(config.encoder_config)
        self.decoder = nn.Conv1d(8, 4, 1)
        self.post_init()

    def encode(self, input_values, padding_mask):
        codes = self.encoder.encode(input_values=input_values.unsqueeze(1), return_dict=True).audio_codes[:, :CODEBOOKS]
        return [code[..., : -(-mask.sum() // 1920)].mT for code, mask in zip(codes, padding_mask, strict=True)]


@torch.no_grad()
def test_a_subclass_keeps_the_encoder_alone(model, audio, codes, tmp_path):
    tokenizer = QwenTokenizer(QwenTokenizerConfig())
    left = tokenizer.encoder.load_state_dict(model.state_dict(), strict=False)
    assert not left.missing_keys
    assert all(name.startswith(("decoder", "upsample")) for name in left.unexpected_keys)
    tokenizer.save_pretrained(tmp_path)
    loaded, info = QwenTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    mask = torch.ones(2, FRAMES * 1920, dtype=torch.bool)
    mask[1, 2 * 1920 + 1 :] = False
    first, second = loaded.encode(audio[:, 0], mask)
    assert torch.equal(first.mT, codes[0, :CODEBOOKS])
    assert torch.equal(second.mT, codes[1, :CODEBOOKS, :3])
    with pytest.raises(ValueError, match="without its decoder"):
        loaded.encoder.decode(codes)


# The whole model: Dia2, speechbrain, vLLM-omni, transformers' own


@torch.no_grad()
def test_dia2_decodes_to_a_pair(model, codes, tmp_path):
    model.save_pretrained(tmp_path)
    codec = mimi_hf.MimiModel.from_pretrained(tmp_path, torch_dtype=None, low_cpu_mem_usage=True)
    audio, _ = codec.decode(codes, return_dict=False)
    assert_same_audio(audio, model.decode(codes).audio_values)
    audio, stream = codec.decode(codes, use_cache=True, return_dict=False)
    assert_same_audio(audio, model.decode(codes).audio_values)
    assert stream is not None
    assert torch.equal(codec.encode(audio, return_dict=False)[0], model.encode(audio).audio_codes)


@torch.no_grad()
def test_vllm_builds_the_codec_of_csm_and_decodes_with_context_on_the_left():
    csm_config = make_csm()[1]
    csm_config.codec_config.sliding_window = 6
    model = make_codec(sliding_window=6)
    codec = AutoModel.from_config(csm_config.codec_config)
    assert type(codec) is mimi_hf.MimiModel
    left = codec.load_state_dict(model.state_dict(), strict=False)
    assert not left.missing_keys
    assert not left.unexpected_keys
    codec.to(device="cpu", dtype=torch.float32)
    codec.eval()
    for parameter in codec.parameters():
        parameter.requires_grad_(False)
    codes = torch.randint(0, 64, (8, 22))  # of one request
    context, heard = 12, []
    with torch.inference_mode():
        for start in range(0, 22, 4):
            before = min(start, context)
            decoded = codec.decode(codes[:, start - before : start + 4].unsqueeze(0)).audio_values
            heard.append(decoded.reshape(1, -1)[0, before * 1920 :])
    assert_same_audio(torch.cat(heard), model.decode(codes[None]).audio_values[0, 0])


def speak_as_csm(model: Any) -> Tensor:
    return model.generate(CSM_TEXT, max_new_tokens=4, do_sample=False, output_audio=True)[0]


def speak_as_moshi(model: Any) -> Tensor:
    sound, text = make_audio(4 * 1920), torch.zeros(1, 4, dtype=torch.int64)
    heard = {"user_input_values": sound, "moshi_input_values": -sound}
    return model.generate(text, **heard, max_new_tokens=4, do_sample=False).audio_sequences


@pytest.mark.parametrize(("make", "speak"), [(make_csm, speak_as_csm), (make_moshi, speak_as_moshi)])
@torch.no_grad()
def test_models_of_transformers_speak_as_with_native(make, speak, tmp_path):
    model_class, config, _ = make()
    torch.manual_seed(0)
    randomize(model_class(config)).save_pretrained(tmp_path)
    mimi_hf.unregister()
    expected = speak(model_class.from_pretrained(tmp_path))
    mimi_hf.register()
    assert expected.numel() > 1920
    assert_same_audio(speak(model_class.from_pretrained(tmp_path)), expected)


class SpeechProcessor(ProcessorMixin):
    attributes = ["feature_extractor"]  # noqa: RUF012

    def __init__(self, feature_extractor, audio_tokenizer=None):
        super().__init__(feature_extractor, audio_tokenizer=audio_tokenizer)


def test_a_processor_takes_the_model_as_its_audio_tokenizer(model, monkeypatch):
    """Releases up to 5.24 name three other classes; what is to stand there is the base class of audio tokenizers."""
    assert isinstance(model, PreTrainedAudioTokenizerBase)
    named = {**processing_utils.MODALITY_TO_BASE_CLASS_MAPPING, "audio_tokenizer": "PreTrainedAudioTokenizerBase"}
    monkeypatch.setattr(processing_utils, "MODALITY_TO_BASE_CLASS_MAPPING", named)
    monkeypatch.setattr("transformers.PreTrainedAudioTokenizerBase", PreTrainedAudioTokenizerBase, raising=False)
    processor = SpeechProcessor(mimi_hf.MimiFeatureExtractor(), audio_tokenizer=model)
    assert processor.audio_tokenizer is model


@pytest.fixture
def speechbrain_mimi():
    """The class of speechbrain; it imports torchaudio, which may be there and fail to load."""
    try:
        return importlib.import_module("speechbrain.integrations.huggingface.mimi").Mimi
    except (ImportError, OSError) as error:
        pytest.skip(f"speechbrain does not import here: {error}")


@torch.no_grad()
def test_speechbrain_encodes_and_decodes(speechbrain_mimi, model, audio, codes, tmp_path):
    model.save_pretrained(tmp_path / "mimi")
    wrapped = speechbrain_mimi(str(tmp_path / "mimi"), str(tmp_path / "saved"), num_codebooks=CODEBOOKS)
    assert type(wrapped.model) is mimi_hf.MimiModel
    lengths = torch.tensor([1, 0.5])
    tokens, entries = wrapped.encode(audio[:, 0], lengths)
    assert torch.equal(tokens[0], codes[0, :CODEBOOKS])
    assert torch.equal(tokens[1, :, : FRAMES // 2], codes[1, :CODEBOOKS, : FRAMES // 2])
    assert entries.shape == (*tokens.shape, CODEC["codebook_dim"])
    decoded, expected = wrapped.decode(tokens, lengths), model.decode(codes[:, :CODEBOOKS]).audio_values
    assert_same_audio(decoded[:1], expected[:1])
    assert_same_audio(decoded[1, :, : FRAMES // 2 * 1920], expected[1, :, : FRAMES // 2 * 1920])
    trainable = speechbrain_mimi(str(tmp_path / "mimi"), str(tmp_path / "saved"), freeze=False, num_codebooks=CODEBOOKS)
    assert torch.equal(trainable.encode(audio[:, 0], torch.ones(2))[0], codes[:, :CODEBOOKS])
