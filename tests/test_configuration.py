import json

import pytest
from support.tiny import TINY
from transformers.models.mimi.configuration_mimi import MimiConfig as NativeConfig

from mimi_hf import MimiConfig


def test_fields_and_defaults_are_those_of_native():
    ours, native = MimiConfig().to_dict(), NativeConfig().to_dict()
    assert ours.pop("frame_rate") == 12.5
    assert native.pop("_frame_rate") is None  # native saves what was given, we what holds
    assert ours == native


def test_derived_values():
    config, native = MimiConfig(), NativeConfig()
    derived = ["frame_size", "frame_rate", "encodec_frame_rate", "num_codebooks"]
    derived += [name for name in ("latent_stride", "latent_dim") if hasattr(native, name)]  # since transformers 5.21
    assert [getattr(config, name) for name in derived] == [getattr(native, name) for name in derived]
    assert (config.latent_stride, config.latent_dim) == (2, 512)
    assert MimiConfig(upsampling_ratios=[4, 4], sampling_rate=16_000).frame_size == 32
    no_resampling = MimiConfig(frame_rate=25)
    assert (no_resampling.frame_size, no_resampling.latent_stride) == (960, 1)
    assert MimiConfig(frame_rate=6.25).frame_size == 3840


def test_published_config_of_2024():
    config = MimiConfig(
        frame_rate=12.5,
        rope_theta=10000.0,
        normalize=False,
        torch_dtype="float32",
        _name_or_path="kyutai/mimi",
        transformers_version="4.45.0.dev0",
    )
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.normalize is False
    assert config.frame_rate == 12.5
    assert MimiConfig(rope_theta=500.0).rope_theta == 500.0


@pytest.mark.parametrize("changes", [{}, TINY, {"frame_rate": 25}, {"decoder_config": None}, {"head_dim": 32}])
def test_round_trips_through_files_and_native(changes, tmp_path):
    config = MimiConfig(**changes)
    config.save_pretrained(tmp_path)
    assert MimiConfig.from_pretrained(tmp_path) == config
    native = NativeConfig.from_pretrained(tmp_path)
    assert native.frame_rate == config.frame_rate
    if hasattr(native, "decoder_config"):  # since transformers 5.21
        assert (native.decoder_config is None) == (config.decoder_config is None)
    native.save_pretrained(tmp_path / "native")
    assert MimiConfig.from_pretrained(tmp_path / "native") == config
    saved = json.loads((tmp_path / "native" / "config.json").read_text())
    assert saved["_frame_rate"] == config.frame_rate  # the name under which transformers 5 saves it


def test_halves_are_dropped_by_none_alone():
    config = MimiConfig()
    assert config.encoder_config.num_filters == config.num_filters
    config.encoder_config = None
    assert config.encoder_config is None
    assert not config.has_half("encoder")
    assert config.decoder_config.num_filters == config.num_filters
    with pytest.raises(ValueError, match="at least one half"):
        config.decoder_config = None
    with pytest.raises(ValueError, match="only be set to None"):
        MimiConfig().encoder_config = {"hidden_size": 3}


def test_equality_looks_at_every_field():
    assert MimiConfig() == MimiConfig()
    assert MimiConfig() != MimiConfig(num_filters=32)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("use_causal_conv", False, "causal codec"),
        ("trim_right_ratio", 0.5, "trimmed on the right"),
        ("codebook_dim", 128, "contradicts"),
        ("codebook_size", 2000, "power of 2"),
        ("num_semantic_quantizers", 32, "lower than"),
        ("num_semantic_quantizers", 0, "positive integer"),
        ("num_quantizers", 1, "lower than"),
        ("pad_mode", "reflect", "before the first sample"),
        ("audio_channels", 3, "mono"),
        ("upsampling_ratios", [8, 0], "positive integers"),
        ("compress", 3, "must divide num_filters"),
        ("num_key_value_heads", 3, "must divide num_attention_heads"),
        ("upsample_groups", 500, "must divide hidden_size"),
        ("head_dim", 63, "even"),
        ("sliding_window", 0, "positive integer"),
        ("hidden_size", 512.0, "positive integer"),
        ("frame_rate", 11, "does not divide"),
        ("frame_rate", 0, "positive number"),
        ("frame_rate", "12.5", "positive number"),
        ("upsampling_ratios", 8, "list of positive integers"),
        ("hidden_size", "a", "positive integer"),
        ("num_attention_heads", "x", "positive integer"),
        ("num_hidden_layers", 0, "a positive integer"),
        ("num_residual_layers", True, "0 or a positive integer"),
        ("audio_channels", True, "mono"),
        ("rope_theta", 0, "positive number"),
        ("attention_dropout", 2.0, "below 1"),
        ("norm_eps", -1, "positive number"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2}, "never extrapolates"),
    ],
)
def test_what_the_architecture_cannot_do_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        MimiConfig(**{field: value})
