"""Nothing is written unless it is right."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.originals import bits, config_of, listing, original_of

from mimi_hf.conversion import checkpoint, convert_checkpoint, export_checkpoint
from mimi_hf.conversion.keys import to_ours

# Errors


def test_one_message_lists_everything_that_is_wrong(tmp_path, source, writes_nothing):
    path, state = source
    state = dict(state)
    state["encoder.model.99.weight"] = torch.ones(2)
    del state["downsample.conv.conv.conv.weight"]
    state["decoder_transformer.transformer.layers.1.linear2.weight"] = torch.ones(5, 6)
    state["quantizer.rvq_rest.vq.layers.1._codebook.cluster_usage"] = torch.full((16,), torch.nan)
    save_file(state, path)
    writes_nothing()
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / "ours")
    message = str(error.value)
    assert "missing (1): downsample.conv.conv.conv.weight\n" in message
    assert "unexpected (1): encoder.model.99.weight\n" in message
    assert (
        "wrong shape (1): decoder_transformer.transformer.layers.1.linear2.weight is (5, 6), must be (32, 48)"
        in message
    )
    assert "not finite (NaN or infinity) (1): quantizer.rvq_rest.vq.layers.1._codebook.cluster_usage" in message
    assert message.count("\n") == 5 and message.endswith("pass its `config`.")


def test_long_lists_are_shortened(tmp_path, source, writes_nothing):
    path, state = source
    save_file(state | {f"optimizer.{n}": torch.ones(1) for n in range(30)}, path)
    writes_nothing()
    with pytest.raises(ValueError, match=r"unexpected \(30\): optimizer.*; and 10 more") as error:
        convert_checkpoint(path, tmp_path / "ours")
    assert str(error.value).count("optimizer.") == 20


def test_a_wrong_config(tmp_path, source, writes_nothing):
    writes_nothing()
    with pytest.raises(ValueError, match=r"wrong shape.*\n.*configuration that belongs to these tensors"):
        convert_checkpoint(source[0], tmp_path / "ours", config=config_of(intermediate_size=40))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_not_finite(tmp_path, source, writes_nothing, value):
    path, state = source
    state["encoder.model.0.conv.conv.bias"][1] = value
    save_file(state, path)
    writes_nothing()
    with pytest.raises(ValueError, match=r"not finite.*: encoder\.model\.0\.conv\.conv\.bias\n.*earlier checkpoint"):
        convert_checkpoint(path, tmp_path / "ours")


def test_other_files(tmp_path, source, writes_nothing):
    path, state = source
    save_file({"layers.0.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    save_file(to_ours(state, config_of()), tmp_path / "hub.safetensors")
    save_file({n: v.to(torch.int8) for n, v in state.items()}, tmp_path / "quantized.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    writes_nothing()
    for name, message in {
        "other.safetensors": "missing.*another model",
        "hub.safetensors": "those of the Hub",
        "quantized.safetensors": "int8.*quantized",
        "truncated.safetensors": "truncated.*download it again",
        "empty.safetensors": "download it again",
        "notes.txt": "'.txt'.*recognized by",
    }.items():
        with pytest.raises(ValueError, match=f"(?s){message}"):
            convert_checkpoint(tmp_path / name, tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        convert_checkpoint(tmp_path / "absent.safetensors", tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        convert_checkpoint(path, tmp_path / "absent" / "ours")


def test_sizes_that_contradict_published_values(tmp_path, writes_nothing):
    config = config_of(hidden_size=24, num_attention_heads=4, num_key_value_heads=4, upsample_groups=24)
    save_file(original_of(config), tmp_path / "original.safetensors")
    writes_nothing()
    with pytest.raises(ValueError, match=r"head_dim.*Pass the configuration"):
        convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours")


# What is there already


def test_existing_outputs_need_force(tmp_path, source):
    path, _ = source
    convert_checkpoint(path, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match="force"):
        convert_checkpoint(path, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="force"):
        export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    assert listing(tmp_path) == before

    other = original_of(config_of(num_quantizers=3), seed=1)
    save_file(other, path)
    convert_checkpoint(path, tmp_path / "ours", force=True)
    export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors", force=True)
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(other)
    assert set(listing(tmp_path)) == set(before)


def test_force_deletes_nothing_but_a_conversion(tmp_path, source, writes_nothing):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("the only copy")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.safetensors").mkdir()
    writes_nothing()
    with pytest.raises(FileExistsError, match=r"chapter\.tex"):
        convert_checkpoint(source[0], tmp_path / "thesis", force=True)
    with pytest.raises(FileExistsError, match="is a file"):
        convert_checkpoint(source[0], tmp_path / "file", force=True)
    with pytest.raises(FileExistsError, match="is a folder"):
        export_checkpoint(tmp_path / "thesis", tmp_path / "folder.safetensors", force=True)


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, source, monkeypatch, there):
    path, _ = source
    convert_checkpoint(path, tmp_path / "kept")
    if there:
        convert_checkpoint(path, tmp_path / "ours")
        export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    before = listing(tmp_path)

    def fail(found, wanted):
        assert set(listing(tmp_path)) > set(before)  # something is being written
        raise RuntimeError("differs")

    monkeypatch.setattr(checkpoint, "_compare", fail)
    with pytest.raises(RuntimeError, match="differs"):
        convert_checkpoint(path, tmp_path / "ours", force=there)
    with pytest.raises(RuntimeError, match="differs"):
        export_checkpoint(tmp_path / "kept", tmp_path / "back.safetensors", force=there)
    assert listing(tmp_path) == before


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, source, monkeypatch):
    convert_checkpoint(source[0], tmp_path / "ours")
    before, rename = listing(tmp_path), os.rename

    def fail(old, new):
        if str(old).endswith(".new"):
            raise OSError("disk error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk error"):
        convert_checkpoint(source[0], tmp_path / "ours", force=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("function", ["convert", "export"])
def test_one_wrong_bit_is_noticed(tmp_path, source, monkeypatch, function):
    path, _ = source
    convert_checkpoint(path, tmp_path / "kept")
    before = listing(tmp_path)
    save = checkpoint.save_file

    def flip(state, *args, **kwargs):
        name = next(name for name in state if name.startswith("encoder") and name.endswith("conv.bias"))
        flipped = state[name].clone()
        flipped.view(torch.int32)[0] ^= 1
        save({**state, name: flipped}, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", flip)
    with pytest.raises(RuntimeError, match="differs from its source in 1 tensors"):
        if function == "convert":
            convert_checkpoint(path, tmp_path / "ours")
        else:
            export_checkpoint(tmp_path / "kept", tmp_path / "back.safetensors")
    assert listing(tmp_path) == before


def test_folders_that_are_no_codec(tmp_path, source, writes_nothing):
    path, _ = source
    convert_checkpoint(path, tmp_path / "short")
    tensors = load_file(tmp_path / "short" / "model.safetensors")
    del tensors["upsample.conv.weight"]
    save_file(tensors, tmp_path / "short" / "model.safetensors", {"format": "pt"})
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    convert_checkpoint(path, tmp_path / "other")
    values = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(values | {"intermediate_size": 40}))
    convert_checkpoint(path, tmp_path / "truncated")
    (tmp_path / "truncated" / "model.safetensors").write_bytes(b"short")
    (tmp_path / "empty").mkdir()
    writes_nothing()
    with pytest.raises(ValueError, match=r"mismatched \(8\): .*fc1"):
        export_checkpoint(tmp_path / "other", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        export_checkpoint(tmp_path / "truncated", tmp_path / "back.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        export_checkpoint(tmp_path / "empty", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match=r"no complete Mimi checkpoint:\n  missing \(1\): upsample\.conv\.weight\n"):
        export_checkpoint(tmp_path / "short", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match="'bert'"):
        export_checkpoint(tmp_path / "bert", tmp_path / "back.safetensors")
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        export_checkpoint(tmp_path / "absent", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        export_checkpoint(tmp_path / "short", tmp_path / "back.bin")
