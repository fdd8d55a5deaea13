"""The table of names, in both directions, and every spelling of it that is read."""

import hashlib
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.originals import CANNOT_BE_READ_OFF, CONFIGS, bits, config_of, original_of

from mimi_hf import MimiConfig, MimiModel
from mimi_hf.conversion import convert_checkpoint, export_checkpoint, infer_config, load_original
from mimi_hf.conversion.keys import canonical, key_table, to_original, to_ours

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


@pytest.mark.parametrize("given", [False, True])
def test_a_file_loads_as_its_conversion_does(tmp_path, given):
    config = config_of(**({**CANNOT_BE_READ_OFF, "num_key_value_heads": 4} if given else {}))
    save_file(original_of(config), tmp_path / "original.safetensors")
    config = config if given else None
    convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "mimi", config=config)
    converted = MimiModel.from_pretrained(tmp_path / "mimi", dtype=torch.float32)
    model = load_original(tmp_path / "original.safetensors", config)
    assert bits(model.state_dict()) == bits(converted.state_dict())
    assert not model.training
    for field in ("sliding_window", "sampling_rate", "num_attention_heads", "dilation_growth_rate"):
        assert getattr(model.config, field) == getattr(converted.config, field)


def test_a_file_of_another_model_does_not_load(tmp_path):
    state = original_of(config_of())
    state.pop("downsample.conv.conv.conv.weight")
    save_file(state, tmp_path / "original.safetensors")
    with pytest.raises(ValueError, match=r"missing \(1\): downsample"):
        load_original(tmp_path / "original.safetensors", config_of())
