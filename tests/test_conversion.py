"""Conversion of checkpoints: exact in both directions, and nothing is written unless it is.

Checkpoints here are small and random, in Kyutai's original format.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from mimi_hf import MimiConfig, MimiModel
from mimi_hf.conversion import checkpoint, convert_checkpoint, export_checkpoint, infer_config, is_folder_or_id
from mimi_hf.conversion.command import convert
from mimi_hf.conversion.keys import canonical, key_table, to_original, to_ours

SCRIPT = Path(__file__).parent.parent / "conversion" / "convert_mimi_checkpoint.py"
SMALL = {
    "hidden_size": 32,
    "num_filters": 4,
    "upsampling_ratios": [3, 2],
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
CONFIGS = {
    "small": {},
    "every size": {
        "audio_channels": 2,
        "num_filters": 8,
        "num_residual_layers": 2,
        "upsampling_ratios": [4, 3, 2],
        "compress": 4,
        "kernel_size": 5,
        "last_kernel_size": 4,
        "residual_kernel_size": 2,
        "use_conv_shortcut": True,
        "num_semantic_quantizers": 2,
        "num_key_value_heads": 2,
        "upsample_groups": 4,
    },
    "one step, no residual blocks": {"num_residual_layers": 0, "upsampling_ratios": [5]},
    "not resampled": {"frame_rate": 4000, "upsample_groups": 1},
    "resampled by 5": {"frame_rate": 800},
}
CANNOT_BE_READ_OFF = {"num_attention_heads": 4, "sampling_rate": 240, "sliding_window": 7, "dilation_growth_rate": 3}


def config_of(**changes):
    return MimiConfig(**{**SMALL, **changes})


def original_of(config, seed=0):
    """A random checkpoint in the original format."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = MimiModel(config).state_dict()
    state = {name: torch.randn(value.shape, generator=generator) / 4 for name, value in state.items()}
    for name, value in state.items():
        if name.endswith((".initialized", ".cluster_usage")):
            value.abs_().add_(1)
        elif ".codebook." not in name and value.dim() > 1:
            value.mul_(4 / value[0].numel() ** 0.5)  # of the size that keeps signals at theirs
    return {name: value.contiguous() for name, value in to_original(state, config).items()}


def bits(state):
    return {name: (tuple(value.shape), value.contiguous().numpy().tobytes()) for name, value in state.items()}


def listing(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def source(tmp_path):
    """A small original file, with its tensors."""
    state = original_of(config_of())
    save_file(state, tmp_path / "original.safetensors")
    return tmp_path / "original.safetensors", state


@pytest.fixture
def writes_nothing(tmp_path):
    """Checks after the test that the folder holds what it held when the fixture's value was called."""
    before = []
    yield lambda: before.append(listing(tmp_path))
    assert listing(tmp_path) == before[0]


# The table


def test_table_has_the_published_names():
    table = key_table(MimiConfig())
    assert len(table) == 318
    assert table["encoder.model.14.conv.conv.bias"] == ("encoder.layers.14.conv.bias",)
    assert table["decoder.model.11.convtr.convtr.weight"] == ("decoder.layers.11.conv.weight",)
    assert table["decoder.model.12.block.3.conv.conv.bias"] == ("decoder.layers.12.block.3.conv.bias",)
    assert table["decoder_transformer.transformer.layers.7.self_attn.in_proj_weight"] == tuple(
        f"decoder_transformer.layers.7.self_attn.{part}_proj.weight" for part in "qkv"
    )
    assert table["quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum"] == (
        "quantizer.acoustic_residual_vector_quantizer.layers.30.codebook.embed_sum",
    )
    assert table["upsample.convtr.convtr.convtr.weight"] == ("upsample.conv.weight",)


@pytest.mark.parametrize("changes", [None, *CONFIGS.values()], ids=["published", *CONFIGS])
def test_table_holds_every_tensor_of_the_model_once(changes):
    config = MimiConfig() if changes is None else config_of(**changes)
    with torch.device("meta"):
        names = list(MimiModel(config).state_dict())
    assert sorted(name for names in key_table(config).values() for name in names) == sorted(names)


@pytest.mark.full_size
def test_table_is_that_of_kyutais_own_model():
    loaders = pytest.importorskip("moshi.models.loaders", reason="Kyutai's moshi is not installed")
    theirs = canonical(loaders.get_mimi(None).state_dict())
    with torch.device("meta"):
        ours = to_original(MimiModel(MimiConfig()).state_dict(), MimiConfig())
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
        {"head_dim": 8},
        {"encoder_config": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_original_format_has_no_place_for_is_refused(changes):
    with pytest.raises(ValueError, match=r"no place for this configuration.*save_pretrained"):
        key_table(config_of(**changes))


def test_query_and_key_rows_go_from_pairs_to_halves():
    config = config_of(
        hidden_size=16, upsample_groups=16, num_attention_heads=2, num_key_value_heads=1
    )  # heads of 8 rows
    original = original_of(config)
    name = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    original[name] = torch.arange(32.0)[:, None].expand(32, 16)
    ours = to_ours(original, config)
    rows = {
        part: ours[f"encoder_transformer.layers.0.self_attn.{part}_proj.weight"][:, 0].int().tolist() for part in "qkv"
    }
    assert rows["q"] == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert rows["k"] == [16, 18, 20, 22, 17, 19, 21, 23]
    assert rows["v"] == list(range(24, 32))
    assert bits(to_original(ours, config)) == bits(original)


# Round trips


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_is_exact_and_sizes_are_read_off(tmp_path, changes):
    config = config_of(**changes)
    original = original_of(config)
    save_file(original, tmp_path / "original.safetensors")
    report = convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours")

    found = MimiConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(found, name) for name in config.to_dict() if hasattr(found, name)} | NEW == {
        name: getattr(config, name) for name in config.to_dict() if hasattr(config, name)
    } | NEW
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(
        ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    )
    assert report.tensors == len(original)
    assert report.parameters == sum(value.numel() for value in original.values())
    assert report.sha256 == hashlib.sha256((tmp_path / "original.safetensors").read_bytes()).hexdigest()

    back = export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(original)
    modes = [(tmp_path / name).stat().st_mode for name in ("back.safetensors", "ours/model.safetensors")]
    assert modes == 2 * [(tmp_path / "ours" / "config.json").stat().st_mode]
    assert back.sha256 == hashlib.sha256((tmp_path / "back.safetensors").read_bytes()).hexdigest()


# What saving adds to a configuration.
NEW = dict.fromkeys(["architectures", "dtype", "transformers_version"])


@pytest.mark.parametrize("as_file", [False, True])
def test_what_cannot_be_read_off_is_given(tmp_path, source, as_file):
    path, original = source
    config = config_of(**CANNOT_BE_READ_OFF, num_key_value_heads=4)
    if as_file:
        config.save_pretrained(tmp_path / "given")
    given = tmp_path / "given" / "config.json" if as_file else config
    convert_checkpoint(path, tmp_path / "ours", config=given)
    found = MimiConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(found, name) for name in CANNOT_BE_READ_OFF} == CANNOT_BE_READ_OFF
    features = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert features["sampling_rate"] == 240
    export_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(original)


def test_the_published_sizes_are_read_off():
    with torch.device("meta"):
        original = to_original(MimiModel(MimiConfig()).state_dict(), MimiConfig())
    assert infer_config(original) == MimiConfig()


def test_transformers_own_class_loads_the_folder(tmp_path, source):
    native = pytest.importorskip("transformers.models.mimi.modeling_mimi").MimiModel
    convert_checkpoint(source[0], tmp_path / "ours")
    _, info = native.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_half_precision_is_widened_exactly(tmp_path, source):
    path, original = source
    save_file({name: value.bfloat16() for name, value in original.items()}, path)
    convert_checkpoint(path, tmp_path / "ours")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32}
    wanted = {name: value.bfloat16().float() for name, value in original.items()}
    assert bits(to_original(found, config_of())) == bits(wanted)


# Spellings


def respell(state, *rules):
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    "rules",
    [
        [("in_proj_weight", "in_projs.0.weight"), ("out_proj.weight$", "out_projs.0.weight")],
        [("_initialized", "inited"), ("cluster_usage", "cluster_size"), ("embedding_sum", "embed_avg")],
        [("embedding_sum", "embed_sum")],
    ],
    ids=["in_projs", "older codebooks", "embed_sum"],
)
def test_other_spellings_mean_the_same(source, rules):
    state = source[1]
    other = respell(state, *rules)
    assert set(other) != set(state)
    assert bits(canonical(other)) == bits(state)


def test_two_spellings_of_one_tensor_are_refused(source):
    state = dict(source[1])
    name = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    state[name.replace("in_proj_weight", "in_projs.0.weight")] = state[name]
    with pytest.raises(ValueError, match=r"twice.*in_proj_weight.*in_projs\.0\.weight"):
        canonical(state)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the classic one is deprecated, its files exist
@pytest.mark.parametrize("parametrized", [True, False], ids=["parametrized", "classic"])
def test_weight_norm_is_multiplied_out(parametrized):
    apply = torch.nn.utils.parametrizations.weight_norm if parametrized else torch.nn.utils.weight_norm
    torch.manual_seed(0)
    for layer in (torch.nn.Conv1d(6, 4, 3), torch.nn.ConvTranspose1d(6, 4, 3)):
        normed = apply(layer)
        with torch.no_grad():
            for parameter in normed.parameters():
                parameter.mul_(torch.rand_like(parameter) + 0.5)
        x = torch.randn(1, 6, 9)
        y = normed(x)  # recomputes the weight
        state = {f"a.conv.{name}": value for name, value in normed.state_dict().items()}
        fused = canonical(state)
        assert set(fused) == {"a.conv.weight", "a.conv.bias"}
        plain = type(layer)(6, 4, 3)
        plain.load_state_dict({name.removeprefix("a.conv."): value for name, value in fused.items()})
        torch.testing.assert_close(plain(x), y, rtol=0, atol=1e-6)
        torch.testing.assert_close(fused["a.conv.weight"], normed.weight.detach(), rtol=0, atol=1e-6)


def test_weight_norm_through_a_file(tmp_path, source):
    path, original = source
    state = dict(original)
    for name in [name for name in state if re.search(r"\.model\..*\.weight$", name)]:
        weight = state.pop(name)
        state[name + "_v"] = 3 * weight
        state[name + "_g"] = weight.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    save_file(state, path)
    convert_checkpoint(path, tmp_path / "ours")
    found = to_original(load_file(tmp_path / "ours" / "model.safetensors"), config_of())
    for name, value in original.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


# Pickled files


@pytest.mark.parametrize(
    ("suffix", "keys"),
    [
        (".pt", ()),
        (".pt", ("model",)),
        (".th", ("best_state",)),
        (".bin", ()),
        (".ckpt", ("best_state", "model")),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, tuple) else value,
)
def test_pickled_state_dicts(tmp_path, source, suffix, keys):
    original = source[1]
    content = original
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    if keys == ("best_state",):
        content["model"] = {}  # the last state, which counts less
    torch.save(content, tmp_path / f"original{suffix}")
    convert_checkpoint(tmp_path / f"original{suffix}", tmp_path / "ours")
    assert bits(to_original(load_file(tmp_path / "ours" / "model.safetensors"), config_of())) == bits(original)


class Code:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path, source, writes_nothing):
    code = Code()
    code.path = str(tmp_path / "ran")
    torch.save({"model": source[1], "config": code}, tmp_path / "original.pt")
    writes_nothing()
    with pytest.raises(ValueError, match="never loaded here"):
        convert_checkpoint(tmp_path / "original.pt", tmp_path / "ours")


def test_a_pickle_of_something_else(tmp_path, writes_nothing):
    torch.save({"model": {"weight": torch.ones(1), "epoch": 3}}, tmp_path / "a.pt")
    torch.save(torch.ones(3), tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    writes_nothing()
    for name, message in (("a", "state dict.*'epoch'"), ("b", "state dict.*Tensor"), ("c", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / f"{name}.pt", tmp_path / "ours")


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

    monkeypatch.setattr(checkpoint.os, "rename", fail)
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


# The card


def test_card(tmp_path, source):
    path, _ = source
    report = convert_checkpoint(path, tmp_path / "ours")
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "kyutai/mimi"
    assert "mimi" in card.data.tags
    assert report.sha256 in card.text and "original.safetensors" in card.text
    assert "Apache-2.0" in card.text and "2410.00037" in card.text
    # 16 entries = 4 bits, 24000 / 12 = 2000 frames a second.
    assert "| 1 | 4 | 8,000 |\n| 2 | 8 | 16,000 |\n| 3 | 12 | 24,000 |\n| 4 | 16 | 32,000 |\n" in card.text
    assert "| 5 |" not in card.text
    assert "{{" not in card.text and "{%" not in card.text


def test_bitrates_of_the_published_codec():
    from mimi_hf.model_card import fill_card

    text = fill_card(MimiConfig(), source_name="a", sha256="b", model_id="c").text
    assert "| 1 | 11 | 137.5 |" in text and "| 8 | 88 | 1,100 |" in text and "| 32 | 352 | 4,400 |" in text


@pytest.mark.parametrize("name", ["small", "every size"])
def test_example_of_the_card_runs(tmp_path, monkeypatch, name):
    config = config_of(**CONFIGS[name])
    save_file(original_of(config), tmp_path / "original.safetensors")
    convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours")
    text = (tmp_path / "ours" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(example.replace("5 * 24000", "500"), names)
    frames = -(-500 // config.frame_size)
    assert names["codes"].shape == (1, 4, frames)
    assert names["decoded"].shape == (1, config.audio_channels, frames * config.frame_size)
    assert names["audio_out"].shape[:2] == (1, config.audio_channels)


# The command


@pytest.fixture
def run():
    app = Typer()
    app.command()(convert)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_goes_where_its_source_says(tmp_path, source, run):
    path, state = source
    result = run(path, tmp_path / "ours")
    assert result.exit_code == 0 and f"{len(state)} tensors" in result.stdout
    assert run(tmp_path / "ours", tmp_path / "back.safetensors", "--to-original").exit_code == 0
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(state)
    assert run(path, tmp_path / "ours", "--force").exit_code == 0


def test_command_says_what_is_wrong(tmp_path, source, run, writes_nothing):
    (tmp_path / "a.safetensors").write_bytes(b"short")
    (tmp_path / "ours").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    writes_nothing()
    for source_name in ("a.safetensors", "absent.safetensors"):
        result = run(tmp_path / source_name, tmp_path / "ours")
        assert result.exit_code == 1 and result.stdout == "" and source_name in result.stderr
        assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
    result = run(source[0], tmp_path / "taken")
    assert result.exit_code == 1 and "pass --force to" in result.stderr
    for arguments in (
        [source[0], tmp_path / "ours", "--to-original"],
        [tmp_path / "ours", tmp_path / "b.safetensors", "--config", "c.json"],
        [source[0], tmp_path / "ours", "--private"],
        [source[0]],
    ):
        assert run(*arguments).exit_code == 2


def test_what_can_be_an_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "file").write_text("")
    assert is_folder_or_id("kyutai/mimi") and is_folder_or_id("me/mimi-v1.5") and is_folder_or_id("user")
    for name in ("user/file", "user/absent.safetensors", "absent", "./absent", "a/b/c", "/absent"):
        assert not is_folder_or_id(name)


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub that an upload needs."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        asked = json.loads(body)["files"] if self.path.endswith("preupload/main") else []
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
        commit = "1" * 40
        answer = {
            "/api/repos/create": {"url": f"{self.server.url}/user/name"},
            "/api/models/user/name/preupload/main": {"files": files},
            "/api/models/user/name/commit/main": {
                "commitUrl": f"{self.server.url}/user/name/commit/{commit}",
                "commitOid": commit,
            },
        }.get(self.path, {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_script_uploads_the_verified_folder(tmp_path, source, hub):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, str(SCRIPT), str(source[0]), "ours", "--push-to-hub", "user/name", "--private"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "user/name" in done.stdout and "secret" not in done.stdout + done.stderr

    requests = {path: body for path, _, body in hub.requests}
    assert {token for _, token, _ in hub.requests} == {"Bearer secret"}
    create = json.loads(requests["/api/repos/create"])
    assert create["name"] == "name" and create["organization"] == "user"
    assert create.get("private") or create.get("visibility") == "private"
    lines = [json.loads(line) for line in requests["/api/models/user/name/commit/main"].splitlines()]
    uploaded = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert b'model_id = "user/name"' in uploaded["README.md"]


def test_upload_without_a_token_or_with_a_bad_name_writes_nothing(tmp_path, source, monkeypatch, writes_nothing):
    writes_nothing()
    monkeypatch.setattr(checkpoint, "get_token", lambda: None)
    with pytest.raises(ValueError, match="needs a token"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="user/name")
    with pytest.raises(ValueError, match="a/b/c"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="a/b/c")


def test_a_failed_upload_keeps_the_folder(tmp_path, source, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoint, "get_token", lambda: "secret")
    monkeypatch.setattr(checkpoint.HfApi, "create_repo", fail)
    with pytest.raises(OSError, match=r"converted and verified.*no route to host.*hf upload user/name"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="user/name")
    assert (tmp_path / "ours" / "model.safetensors").exists()


# Kyutai's own code reads what is exported


def kyutais_config(config):
    seanet = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "causal": True,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "activation": "ELU",
        "compress": config.compress,
        "dilation_base": config.dilation_growth_rate,
        "kernel_size": config.kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "norm": "none",
        "pad_mode": config.pad_mode,
        "ratios": config.upsampling_ratios,
        "true_skip": not config.use_conv_shortcut,
    }
    transformer = {
        "d_model": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "kv_repeat": config.num_attention_heads // config.num_key_value_heads,
        "num_layers": config.num_hidden_layers,
        "causal": True,
        "layer_scale": 0.01,
        "context": config.sliding_window,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": config.intermediate_size,
        "input_dimension": config.hidden_size,
        "output_dimensions": [config.hidden_size],
    }
    quantizer = {
        "dimension": config.codebook_dim,
        "n_q": config.num_quantizers,
        "n_q_semantic": config.num_semantic_quantizers,
        "bins": config.codebook_size,
        "input_dimension": config.hidden_size,
        "output_dimension": config.hidden_size,
    }
    return {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "frame_rate": config.frame_rate,
        "seanet": seanet,
        "transformer": transformer,
        "quantizer": quantizer,
    }


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
