"""The one table between the tensors of Kyutai's original Mimi checkpoints and ours, used in both directions.

Ours are the names of `kyutai/mimi` on the Hub. The two formats hold the same numbers; they differ in names, in
`in_proj_weight` (query, key and value stacked), and in the order of the query and key rows. No torch is imported here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mimi_hf.configuration_mimi import MimiConfig

# What differs inside a transformer layer; the norms have a bias too.
_TRANSFORMER_LAYER = {
    "self_attn.out_proj.weight": "self_attn.o_proj.weight",
    "linear1.weight": "mlp.fc1.weight",
    "linear2.weight": "mlp.fc2.weight",
    "norm1.weight": "input_layernorm.weight",
    "norm1.bias": "input_layernorm.bias",
    "norm2.weight": "post_attention_layernorm.weight",
    "norm2.bias": "post_attention_layernorm.bias",
    "layer_scale_1.scale": "self_attn_layer_scale.scale",
    "layer_scale_2.scale": "mlp_layer_scale.scale",
}
_CODEBOOK = {"_initialized": "initialized", "cluster_usage": "cluster_usage", "embedding_sum": "embed_sum"}

# Other spellings in original files, and the one of the published file. Kyutai's own loader accepts them too.
_OTHER_SPELLINGS = (
    (r"\.self_attn\.in_projs\.0\.weight$", ".self_attn.in_proj_weight"),
    (r"\.self_attn\.in_proj\.weight$", ".self_attn.in_proj_weight"),
    (r"\.self_attn\.out_projs\.0\.weight$", ".self_attn.out_proj.weight"),
    (r"\._codebook\.inited$", "._codebook._initialized"),
    (r"\._codebook\.cluster_size$", "._codebook.cluster_usage"),
    (r"\._codebook\.embed_(avg|sum)$", "._codebook.embedding_sum"),
)
# Weight normalization stores a magnitude g per output row, and a direction v: in torch's present and former spelling.
_WEIGHT_NORM = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1", ".weight"),
    (".weight_g", ".weight_v", ".weight"),
)


def key_table(config: "MimiConfig") -> dict[str, tuple[str, ...]]:
    """Map the name of every tensor of an original checkpoint to the names of ours that it holds.

    Args:
        config: the sizes.

    Returns:
        Original name to names of ours: one, or the three (query, key, value) that are stacked in `in_proj_weight`.

    Raises:
        ValueError: for a configuration that the original format cannot hold.

    Example:
        >>> from mimi_hf import MimiConfig
        >>> table = key_table(MimiConfig())
        >>> len(table), table["encoder.model.0.conv.conv.weight"]
        (318, ('encoder.layers.0.conv.weight',))
    """
    _check_format(config)
    pairs: list[tuple[str, str | tuple[str, ...]]] = [
        *_encoder(config),
        *_decoder(config),
        *_resampling(config),
        *_quantizer(config),
    ]
    for half in ("encoder_transformer", "decoder_transformer"):
        pairs += _transformer(half, config.num_hidden_layers)
    return {original: (ours,) if isinstance(ours, str) else ours for original, ours in pairs}


def _check_format(config: "MimiConfig") -> None:
    rules = (
        (not config.attention_bias, "attention_bias=True, but its attention has no biases"),
        (
            config.has_half("encoder") and config.has_half("decoder"),
            "one half dropped (encoder_config or decoder_config is None), but it always holds both",
        ),
        (
            config.codebook_dim != config.hidden_size,
            f"codebook_dim=hidden_size={config.hidden_size}, which drops the projections around the quantizers that it"
            " always holds",
        ),
        (
            config.head_dim * config.num_attention_heads == config.hidden_size,
            f"head_dim={config.head_dim} times num_attention_heads={config.num_attention_heads} different from"
            f" hidden_size={config.hidden_size}, but its heads share the width equally",
        ),
    )
    for holds, problem in rules:
        if not holds:
            raise ValueError(
                f"Kyutai's original checkpoint format has no place for this configuration: it has {problem}."
                " Save such a model with save_pretrained."
            )


def _conv(original: str, ours: str) -> Iterator[tuple[str, str]]:
    for part in ("weight", "bias"):
        yield f"{original}.{part}", f"{ours}.{part}"


def _residual_block(side: str, index: int, config: "MimiConfig") -> Iterator[tuple[str, str]]:
    original, ours = f"{side}.model.{index}", f"{side}.layers.{index}"
    for j in (1, 3):  # 0 and 2 are activations
        yield from _conv(f"{original}.block.{j}.conv.conv", f"{ours}.block.{j}.conv")
    if config.use_conv_shortcut:
        yield from _conv(f"{original}.shortcut.conv.conv", f"{ours}.shortcut.conv")


def _encoder(config: "MimiConfig") -> Iterator[tuple[str, str]]:
    yield from _conv("encoder.model.0.conv.conv", "encoder.layers.0.conv")
    index = 1
    for _ in config.upsampling_ratios:
        for _ in range(config.num_residual_layers):
            yield from _residual_block("encoder", index, config)
            index += 1
        index += 1  # an activation
        yield from _conv(f"encoder.model.{index}.conv.conv", f"encoder.layers.{index}.conv")
        index += 1
    index += 1  # an activation
    yield from _conv(f"encoder.model.{index}.conv.conv", f"encoder.layers.{index}.conv")


def _decoder(config: "MimiConfig") -> Iterator[tuple[str, str]]:
    yield from _conv("decoder.model.0.conv.conv", "decoder.layers.0.conv")
    index = 1
    for _ in config.upsampling_ratios:
        index += 1  # an activation
        yield from _conv(f"decoder.model.{index}.convtr.convtr", f"decoder.layers.{index}.conv")
        index += 1
        for _ in range(config.num_residual_layers):
            yield from _residual_block("decoder", index, config)
            index += 1
    index += 1  # an activation
    yield from _conv(f"decoder.model.{index}.conv.conv", f"decoder.layers.{index}.conv")


def _transformer(half: str, num_layers: int) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    for n in range(num_layers):
        original, ours = f"{half}.transformer.layers.{n}", f"{half}.layers.{n}"
        stacked = tuple(f"{ours}.self_attn.{part}_proj.weight" for part in "qkv")
        yield f"{original}.self_attn.in_proj_weight", stacked
        for theirs, name in _TRANSFORMER_LAYER.items():
            yield f"{original}.{theirs}", f"{ours}.{name}"


def _resampling(config: "MimiConfig") -> Iterator[tuple[str, str]]:
    if config.latent_stride > 1:
        yield "downsample.conv.conv.conv.weight", "downsample.conv.weight"
        yield "upsample.convtr.convtr.convtr.weight", "upsample.conv.weight"


def _quantizer(config: "MimiConfig") -> Iterator[tuple[str, str]]:
    semantic = config.num_semantic_quantizers
    parts = (("rvq_first", "semantic", semantic), ("rvq_rest", "acoustic", config.num_quantizers - semantic))
    for original, ours, num_layers in parts:
        original, ours = f"quantizer.{original}", f"quantizer.{ours}_residual_vector_quantizer"
        for projection in ("input_proj", "output_proj"):
            yield f"{original}.{projection}.weight", f"{ours}.{projection}.weight"
        for n in range(num_layers):
            for theirs, name in _CODEBOOK.items():
                yield f"{original}.vq.layers.{n}._codebook.{theirs}", f"{ours}.layers.{n}.codebook.{name}"


def to_ours(state: Mapping[str, "Tensor"], config: "MimiConfig") -> dict[str, "Tensor"]:
    """Convert the tensors of an original checkpoint to ours. Exact: values are only moved.

    Args:
        state: an original checkpoint, complete, in the spelling of [`canonical`].
        config: its sizes.
    """
    head_dim, ours = config.head_dim, {}
    key_rows = config.num_key_value_heads * head_dim
    for original, names in key_table(config).items():
        tensor = state[original]
        if len(names) == 1:
            ours[names[0]] = tensor
            continue
        query, key, value = tensor.split([config.num_attention_heads * head_dim, key_rows, key_rows])
        rotated = [_pairs_to_halves(rows, head_dim) for rows in (query, key)]
        ours.update(zip(names, [*rotated, value], strict=True))
    return ours


def to_original(state: Mapping[str, "Tensor"], config: "MimiConfig") -> dict[str, "Tensor"]:
    """Convert our tensors to those of an original checkpoint: the inverse of [`to_ours`].

    Tensors on the meta device give the shapes that an original file must have.
    """
    original = {}
    for name, names in key_table(config).items():
        if len(names) == 1:
            original[name] = state[names[0]]
            continue
        query, key, value = (state[each] for each in names)
        rotated = [_halves_to_pairs(rows, config.head_dim) for rows in (query, key)]
        # new_empty instead of torch.cat: this module then needs no torch.
        stacked = value.new_empty(sum(len(rows) for rows in (query, key, value)), value.shape[1])
        for part, rows in zip(stacked.split([len(query), len(key), len(value)]), [*rotated, value], strict=True):
            part.copy_(rows)
        original[name] = stacked
    return original


# A rotary embedding turns the dimensions of a head two by two. Kyutai's takes neighbours, (0, 1), (2, 3), ...; ours, as
# the Hub's, takes (0, d/2), (1, d/2 + 1), ... Scores are the same once the rows of query and key, which make those
# dimensions, are reordered: per head, first the even rows, then the odd ones.


def _pairs_to_halves(weight: "Tensor", head_dim: int) -> "Tensor":
    rows, width = weight.shape  # (H * d, D)
    return weight.reshape(-1, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _halves_to_pairs(weight: "Tensor", head_dim: int) -> "Tensor":
    rows, width = weight.shape  # (H * d, D)
    return weight.reshape(-1, 2, head_dim // 2, width).transpose(1, 2).reshape(rows, width)


def canonical(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Bring an original checkpoint into the spelling of the published file, weight normalization multiplied out.

    Args:
        state: an original checkpoint in any spelling: `in_projs.0.weight`, the older names of codebook buffers,
            `weight_g` with `weight_v`, `parametrizations.weight.original0` with `original1`.

    Raises:
        ValueError: where two names of the file mean the same tensor.
    """
    renamed: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name, tensor in _fuse_weight_norm(state).items():
        published = name
        for pattern, replacement in _OTHER_SPELLINGS:
            published = re.sub(pattern, replacement, published)
        if published in renamed:
            raise ValueError(
                f"The checkpoint holds {published} twice, as {source[published]!r} and as {name!r}: which one counts is"
                " not for a conversion to decide. Delete one of them from the file."
            )
        renamed[published], source[published] = tensor, name
    return renamed


def _fuse_weight_norm(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    fused = dict(state)
    for name in state:
        for g_suffix, v_suffix, weight in _WEIGHT_NORM:
            stem = name.removesuffix(g_suffix)
            if stem == name or stem + v_suffix not in state:
                continue
            g, v = state[name].double(), state[stem + v_suffix].double()
            if v.dim() < 2 or g.shape != (len(v), *(1,) * (v.dim() - 1)):
                continue  # Not normalized per output row: left as it is, and so reported as unexpected.
            del fused[name], fused[stem + v_suffix]
            # Multiplied out in double precision, so that rounding to float32 happens once.
            fused[stem + weight] = (g * v / v.flatten(1).norm(dim=1).reshape(g.shape)).float()
    return fused
