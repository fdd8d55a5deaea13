"""The sizes of a codec, inferred from the shapes of its original tensors."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mimi_hf.configuration_mimi import MimiConfig

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# Where a field of ours stands in the configuration that Kyutai's loader takes, and in which part of it.
_KYUTAIS_FIELDS = {
    "sampling_rate": ("", "sample_rate"),
    "audio_channels": ("", "channels"),
    "frame_rate": ("", "frame_rate"),
    "hidden_size": ("seanet", "dimension"),
    "num_filters": ("seanet", "n_filters"),
    "num_residual_layers": ("seanet", "n_residual_layers"),
    "upsampling_ratios": ("seanet", "ratios"),
    "kernel_size": ("seanet", "kernel_size"),
    "residual_kernel_size": ("seanet", "residual_kernel_size"),
    "last_kernel_size": ("seanet", "last_kernel_size"),
    "dilation_growth_rate": ("seanet", "dilation_base"),
    "compress": ("seanet", "compress"),
    "pad_mode": ("seanet", "pad_mode"),
    "num_hidden_layers": ("transformer", "num_layers"),
    "num_attention_heads": ("transformer", "num_heads"),
    "intermediate_size": ("transformer", "dim_feedforward"),
    "sliding_window": ("transformer", "context"),
    "rope_theta": ("transformer", "max_period"),
    "layer_scale_initial_scale": ("transformer", "layer_scale"),
    "num_quantizers": ("quantizer", "n_q"),
    "codebook_size": ("quantizer", "bins"),
    "codebook_dim": ("quantizer", "dimension"),
}
# What Mimi has not, in Kyutai's words: any other value describes another architecture.
_KYUTAIS_CONSTANTS = {
    ("seanet", "causal"): True,
    ("seanet", "activation"): "ELU",
    ("seanet", "norm"): "none",
    ("transformer", "causal"): True,
    ("transformer", "gating"): "none",
    ("transformer", "norm"): "layer_norm",
    ("transformer", "positional_embedding"): "rope",
}

# Tensors whose axes are fields. Where one is missing, the published size is used; the comparison of keys reports it.
_AXES = {
    "encoder.model.0.conv.conv.weight": ("num_filters", "audio_channels", "kernel_size"),
    "encoder.model.1.block.1.conv.conv.weight": (None, None, "residual_kernel_size"),
    "decoder.model.{last}.conv.conv.weight": (None, None, "last_kernel_size"),
    "decoder.model.0.conv.conv.weight": (None, "hidden_size", None),
    "encoder_transformer.transformer.layers.0.linear1.weight": ("intermediate_size", None),
    "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum": ("codebook_size", "codebook_dim"),
}


def infer_config(state: Mapping[str, "Tensor"]) -> MimiConfig:
    """Infer the configuration of an original checkpoint from its tensors.

    They do not show the sampling rate, the number of attention heads, the attention window, the dilations and the
    padding: these get the published values.

    Args:
        state: an original checkpoint in the spelling of [`canonical`]. It may be incomplete.

    Raises:
        ValueError: where the sizes and the published values contradict each other.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    last = max(_indices(shapes, r"decoder\.model\.(\d+)\."), default=0)
    fields: dict[str, Any] = {}
    for name, axes in _AXES.items():
        shape = shapes.get(name.format(last=last), ())
        if len(shape) == len(axes):
            fields |= {field: size for field, size in zip(axes, shape, strict=True) if field}
    if "codebook_dim" in fields:
        fields["vector_quantization_hidden_dimension"] = fields["codebook_dim"]
    fields |= _seanet(shapes, last) | _counts(shapes)
    ratios = {"upsampling_ratios": fields["upsampling_ratios"]} if "upsampling_ratios" in fields else {}
    fields |= _resampling(shapes, MimiConfig(**ratios))
    fields |= _attention(shapes, fields.get("hidden_size"))
    try:
        return MimiConfig(**fields)
    except ValueError as error:
        raise ValueError(
            f"The sizes of these tensors contradict the published values of what tensors do not show"
            f" (attention heads, sampling rate): {error} Pass the configuration of the checkpoint as `config`."
        ) from error


def config_from_kyutai(sizes: Mapping[str, Any]) -> MimiConfig:
    """Our configuration of what Kyutai's own loader takes: the `mimi_config` of `moshi.models.loaders.get_mimi`.

    Args:
        sizes: `sample_rate`, `channels`, `frame_rate`, and the parts `seanet`, `transformer` and `quantizer`.

    Raises:
        ValueError: something is missing, or is not what Mimi is made of.
    """
    parts = {"": sizes, **{part: sizes.get(part) or {} for part in ("seanet", "transformer", "quantizer")}}
    missing = [".".join(filter(None, place)) for place in _KYUTAIS_FIELDS.values() if place[1] not in parts[place[0]]]
    if missing:
        raise ValueError(
            f"This is no configuration of Kyutai's Mimi: it has no {', '.join(missing)}. Pass the whole `mimi_config`"
            " that belongs to the checkpoint, or a MimiConfig, or leave it out to infer the sizes."
        )
    for (part, name), constant in _KYUTAIS_CONSTANTS.items():
        found = parts[part].get(name, constant)
        if found != constant:
            raise ValueError(f"{part}.{name}={found!r}, but Mimi has {constant!r}. This is another codec.")
    fields = {field: parts[part][name] for field, (part, name) in _KYUTAIS_FIELDS.items()}
    return MimiConfig(
        **fields,
        num_semantic_quantizers=parts["quantizer"].get("n_q_semantic", 1),
        num_key_value_heads=fields["num_attention_heads"] // parts["transformer"].get("kv_repeat", 1),
        use_conv_shortcut=not parts["seanet"].get("true_skip", True),
        vector_quantization_hidden_dimension=fields["codebook_dim"],
        upsample_groups=fields["hidden_size"],
    )


def _indices(shapes: Shapes, pattern: str) -> list[int]:
    """List the numbers in the names of tensors that match."""
    return sorted({int(found[1]) for found in map(re.compile(pattern).match, shapes) if found})


def _seanet(shapes: Shapes, last: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"use_conv_shortcut": any(".shortcut." in name for name in shapes)}
    kernels = [shapes[f"decoder.model.{i}.convtr.convtr.weight"][-1] for i in _transposed(shapes)]
    if kernels and all(kernel > 1 for kernel in kernels):
        fields["upsampling_ratios"] = [kernel // 2 for kernel in kernels]
        # Each ratio takes an activation, a convolution and its residual blocks; a first and two last layers are around.
        fields["num_residual_layers"] = max((last - 2) // len(kernels) - 2, 0)
    narrow, wide, _ = shapes.get("encoder.model.1.block.1.conv.conv.weight", (0, 0, 0))
    if narrow and wide >= narrow:
        fields["compress"] = wide // narrow
    return fields


def _transposed(shapes: Shapes) -> list[int]:
    """List the numbers of the decoder's transposed convolutions."""
    return _indices(shapes, r"decoder\.model\.(\d+)\.convtr\.convtr\.weight$")


def _counts(shapes: Shapes) -> dict[str, Any]:
    def count(pattern: str) -> int:
        return max(_indices(shapes, pattern), default=-1) + 1

    semantic, acoustic = (count(rf"quantizer\.rvq_{part}\.vq\.layers\.(\d+)\.") for part in ("first", "rest"))
    fields = {"num_hidden_layers": count(r"(?:en|de)coder_transformer\.transformer\.layers\.(\d+)\.")}
    if semantic and acoustic:
        fields |= {"num_semantic_quantizers": semantic, "num_quantizers": semantic + acoustic}
    if not any(name.startswith(("encoder.model.", "decoder.model.")) for name in shapes):
        del fields["num_hidden_layers"]  # Another model's file: 0 layers would hide most of what is missing.
    return fields


def _resampling(shapes: Shapes, config: MimiConfig) -> dict[str, Any]:
    """Infer the frame rate. `config` has the ratios of the checkpoint."""
    down = shapes.get("downsample.conv.conv.conv.weight", ())
    up = shapes.get("upsample.convtr.convtr.convtr.weight", ())
    kernel = down[-1] if down else up[-1] if up else 0
    fields: dict[str, Any] = {}
    if len(up) == 3 and up[1] and up[0] % up[1] == 0:
        fields["upsample_groups"] = up[0] // up[1]
    if not kernel and _transposed(shapes):
        # Nothing is resampled: the groups play no role, but must divide any width.
        fields |= {"frame_rate": config.encodec_frame_rate, "upsample_groups": 1}
    elif kernel > 1 and kernel != 4:
        fields["frame_rate"] = config.sampling_rate / config.hop_length / (kernel // 2)
    return fields


def _attention(shapes: Shapes, hidden_size: int | None) -> dict[str, Any]:
    heads = MimiConfig().num_attention_heads
    rows = shapes.get("encoder_transformer.transformer.layers.0.self_attn.in_proj_weight", (0,))[0]
    if not hidden_size or hidden_size % heads:
        return {}
    # Rows of query, key and value: (heads + 2 * key_value_heads) * head_dim.
    key_value_heads, rest = divmod(rows - hidden_size, 2 * (hidden_size // heads))
    if rest or key_value_heads < 1 or heads % key_value_heads:
        return {}
    return {"num_key_value_heads": key_value_heads}
