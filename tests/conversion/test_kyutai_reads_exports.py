"""Kyutai's own code reads what is exported, and computes the same."""

import pytest
import torch
from safetensors.torch import save_file
from support.originals import bits, config_of, kyutais_config, original_of

from mimi_hf import MimiConfig, MimiModel
from mimi_hf.conversion import convert_checkpoint, export_checkpoint
from mimi_hf.conversion.keys import canonical


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2, "num_residual_layers": 2, "use_conv_shortcut": True},
    ],
    ids=["plain", "grouped queries and shortcuts"],
)
def test_kyutais_code_computes_the_same(tmp_path, changes):
    """Rotary order, stacking and every name at once: with a wrong one the outputs differ."""
    loaders = pytest.importorskip("moshi.models.loaders", reason="Kyutai's moshi is not installed")
    compiling = pytest.importorskip("moshi.utils.compile")
    # Heads of 8: in heads of 4 both directions of the reordering are the same.
    config = config_of(num_attention_heads=4, sliding_window=9, **changes)
    save_file(original_of(config), tmp_path / "original.safetensors")
    convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours", config=config)
    export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    ours = MimiModel.from_pretrained(tmp_path / "ours").eval()
    theirs = loaders.get_mimi(tmp_path / "back.safetensors", kyutais_config(config), num_codebooks=4)
    audio = torch.randn(1, 1, 40 * config.frame_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), compiling.no_compile():
        codes = theirs.encode(audio)
        decoded = theirs.decode(codes)
        assert torch.equal(ours.encode(audio).audio_codes, codes)
        torch.testing.assert_close(ours.decode(codes).audio_values, decoded, rtol=0, atol=1e-5 * decoded.abs().max())
    assert len(codes.unique()) > 8  # no comparison of constants


@pytest.mark.full_size
def test_exported_file_loads_in_kyutais_code(tmp_path):
    loaders = pytest.importorskip("moshi.models.loaders", reason="Kyutai's moshi is not installed")
    config = MimiConfig()
    original = original_of(config)
    save_file(original, tmp_path / "original.safetensors")
    assert convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours").tensors == 318
    export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    theirs = loaders.get_mimi(tmp_path / "back.safetensors", num_codebooks=8)
    assert bits(canonical(theirs.state_dict())) == bits(original)
    rustymimi = pytest.importorskip("rustymimi", reason="rustymimi is not installed")
    rustymimi.Tokenizer(str(tmp_path / "back.safetensors"), num_codebooks=8)
