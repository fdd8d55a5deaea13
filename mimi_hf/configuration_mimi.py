"""Configuration of the Mimi codec."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from transformers.configuration_utils import PreTrainedConfig

DEFAULT_ROPE_THETA = 10_000.0

Half = TypeVar("Half", bound="MimiConfig")


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class MimiConfig(PreTrainedConfig):
    """Everything that determines the architecture of a Mimi codec.

    The fields, their names and their defaults are those of transformers' native `MimiConfig`, so that every published
    `config.json` loads, and what is saved here loads there. The defaults are the sizes of `kyutai/mimi`.

    Args:
        sampling_rate: samples per second of the audio.
        audio_channels: 1 for mono, 2 for stereo.
        hidden_size: D, the width of the latents and of both transformers.
        num_filters: channels of the first SEANet convolution; they double at every downsampling step.
        num_residual_layers: residual blocks before each downsampling (after each upsampling) step.
        upsampling_ratios: strides of the SEANet decoder; the encoder uses them in reverse. `[8, 6, 5, 4]`
            by default.
        kernel_size, last_kernel_size, residual_kernel_size: taps of the first, the last and the residual
            convolutions.
        dilation_growth_rate: the dilation of residual block `j` is this to the power of `j`.
        use_causal_conv: must be `True`, Mimi is causal.
        pad_mode: what a SEANet convolution sees before the first sample: `"constant"` (silence) or `"replicate"`.
        compress: a residual block narrows its channels by this factor.
        trim_right_ratio: must be 1.0, a causal transposed convolution is trimmed on the right.
        codebook_size: V, entries per codebook, a power of two.
        codebook_dim: width of a codebook entry.
        num_quantizers: K, codebooks in all, the semantic ones included.
        use_conv_shortcut: a 1-tap convolution in place of the identity on the skip of residual blocks.
        vector_quantization_hidden_dimension: the width that latents are projected to before the search; equals
            `codebook_dim`.
        num_semantic_quantizers: codebooks of the semantic quantizer; lower than `num_quantizers`.
        upsample_groups: groups of the transposed convolution that doubles the frame rate before the decoder.
        num_hidden_layers, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, hidden_act, norm_eps,
            attention_dropout, attention_bias, layer_scale_initial_scale: of each of the two transformers.
        sliding_window: W, how many steps (itself included) a step attends to.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; `rope_theta` alone is understood too.
        max_position_embeddings, initializer_range: kept for compatibility. Streams here never end.
        use_streaming: default of the `use_streaming` argument of [`MimiModel.encode`] and its `forward`.
        use_cache: default of the `use_cache` argument of [`MimiModel.decode`], which begins a stream.
        frame_rate: frames per second, where it is not half the SEANet's own rate. A frame rate equal
            to `encodec_frame_rate` drops the resampling step.
        encoder_config, decoder_config: pass `None` for one of them to drop that half of the model.

    Raises:
        ValueError: for a value, or a combination, that the architecture cannot do. The message says why.

    Example:
        >>> from mimi_hf import MimiConfig
        >>> config = MimiConfig()
        >>> config.frame_size, config.frame_rate
        (1920, 12.5)
    """

    model_type = "mimi"

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "MimiConfig":
        """This configuration from that of transformers' own Mimi class, or of one that derives from it.

        Raises:
            TypeError: for the configuration of another model.
        """
        if isinstance(config, MimiConfig):
            return config
        if not isinstance(config, PreTrainedConfig) or config.model_type not in _KINDS:
            found = getattr(config, "model_type", None) or type(config).__name__
            raise TypeError(
                f"The configuration is of {found!r}, but MimiModel takes that of Mimi. Load it with"
                " MimiConfig.from_pretrained."
            )
        fields = config.to_dict()
        # How attention is computed is not among the fields.
        return _KINDS[fields.pop("model_type")](**fields, attn_implementation=config._attn_implementation)

    def __init__(
        self,
        sampling_rate: int = 24_000,
        audio_channels: int = 1,
        hidden_size: int = 512,
        num_filters: int = 64,
        num_residual_layers: int = 1,
        upsampling_ratios: list[int] | None = None,
        kernel_size: int = 7,
        last_kernel_size: int = 3,
        residual_kernel_size: int = 3,
        dilation_growth_rate: int = 2,
        use_causal_conv: bool = True,
        pad_mode: str = "constant",
        compress: int = 2,
        trim_right_ratio: float = 1.0,
        codebook_size: int = 2048,
        codebook_dim: int | None = 256,
        num_quantizers: int = 32,
        use_conv_shortcut: bool = False,
        vector_quantization_hidden_dimension: int = 256,
        num_semantic_quantizers: int = 1,
        upsample_groups: int = 512,
        num_hidden_layers: int = 8,
        intermediate_size: int = 2048,
        num_attention_heads: int = 8,
        num_key_value_heads: int = 8,
        head_dim: int | None = None,
        hidden_act: str = "gelu",
        max_position_embeddings: int = 8000,
        initializer_range: float = 0.02,
        norm_eps: float = 1e-5,
        use_cache: bool = False,
        use_streaming: bool = False,
        rope_parameters: dict | None = None,
        sliding_window: int = 250,
        attention_dropout: float = 0.0,
        layer_scale_initial_scale: float = 0.01,
        attention_bias: bool = False,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.sampling_rate = sampling_rate
        self.audio_channels = audio_channels
        self.hidden_size = hidden_size
        self.num_filters = num_filters
        self.num_residual_layers = num_residual_layers
        ratios = upsampling_ratios or [8, 6, 5, 4]
        self.upsampling_ratios = list(ratios) if isinstance(ratios, list | tuple) else ratios
        self.kernel_size = kernel_size
        self.last_kernel_size = last_kernel_size
        self.residual_kernel_size = residual_kernel_size
        self.dilation_growth_rate = dilation_growth_rate
        self.use_causal_conv = use_causal_conv
        self.pad_mode = pad_mode
        self.compress = compress
        self.trim_right_ratio = trim_right_ratio
        self.codebook_size = codebook_size
        self.codebook_dim = hidden_size if codebook_dim is None else codebook_dim
        self.num_quantizers = num_quantizers
        self.use_conv_shortcut = use_conv_shortcut
        self.vector_quantization_hidden_dimension = vector_quantization_hidden_dimension
        self.num_semantic_quantizers = num_semantic_quantizers
        self.upsample_groups = upsample_groups
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        derives = not head_dim and is_size(hidden_size) and is_size(num_attention_heads)
        self.head_dim: Any = hidden_size // num_attention_heads if derives else head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.norm_eps = norm_eps
        self.use_cache = use_cache
        self.use_streaming = use_streaming
        self.sliding_window = sliding_window
        self.attention_dropout = attention_dropout
        self.layer_scale_initial_scale = layer_scale_initial_scale
        self.attention_bias = attention_bias
        rope_theta = kwargs.pop("rope_theta", None)
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": DEFAULT_ROPE_THETA if rope_theta is None else rope_theta,
            **(rope_parameters or {}),
        }

        frame_rate = kwargs.pop("frame_rate", None)
        self._frame_rate = kwargs.pop("_frame_rate", frame_rate) if frame_rate is None else frame_rate
        dropped = [half for half in ("encoder", "decoder") if kwargs.pop(f"{half}_config", self) is None]
        self._has_encoder = self._has_decoder = True
        for half in dropped:
            self._drop(half)
        self.validate_architecture()
        super().__init__(**{**kwargs, "tie_word_embeddings": tie_word_embeddings})

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return self.rope_parameters["rope_theta"]

    @property
    def hop_length(self) -> int:
        """Audio samples per step of the SEANet encoder and of the transformers (960)."""
        return math.prod(self.upsampling_ratios)

    @property
    def encodec_frame_rate(self) -> int:
        """Steps per second of the SEANet encoder, rounded up (25)."""
        return math.ceil(self.sampling_rate / self.hop_length)

    @property
    def latent_stride(self) -> int:
        """Transformer steps per frame (2); 1 where no resampling step is wanted."""
        if self._frame_rate is None:
            return 2
        return max(1, round(self.sampling_rate / self.hop_length / self._frame_rate))

    @property
    def frame_size(self) -> int:
        """Audio samples per frame of codes (1920)."""
        return self.hop_length * self.latent_stride

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second (12.5)."""
        return self.sampling_rate / self.frame_size if self._frame_rate is None else self._frame_rate

    @frame_rate.setter
    def frame_rate(self, value: float | None) -> None:
        self._frame_rate = value

    @property
    def num_codebooks(self) -> int:
        """Another name of `num_quantizers`."""
        return self.num_quantizers

    @property
    def latent_dim(self) -> int:
        """Another name of `hidden_size`."""
        return self.hidden_size

    def has_half(self, half: str) -> bool:
        """Whether the model has its "encoder" (or its "decoder")."""
        return getattr(self, f"_has_{half}")

    @property
    def encoder_config(self) -> "MimiEncoderConfig | None":
        """The configuration of the encoder alone, of the same fields; `None` where it is dropped."""
        return self._half_config(MimiEncoderConfig) if self._has_encoder else None

    @encoder_config.setter
    def encoder_config(self, value: None) -> None:
        self._set_half("encoder", value)

    @property
    def decoder_config(self) -> "MimiDecoderConfig | None":
        """The configuration of the decoder alone, of the same fields; `None` where it is dropped."""
        return self._half_config(MimiDecoderConfig) if self._has_decoder else None

    @decoder_config.setter
    def decoder_config(self, value: None) -> None:
        self._set_half("decoder", value)

    def _half_config(self, kind: type[Half]) -> Half:
        fields = self.to_dict()
        fields.pop("model_type")
        return kind(**fields, attn_implementation=self._attn_implementation)

    def _set_half(self, half: str, value: None) -> None:
        if value is not None:
            raise ValueError(
                f"{half}_config was set to {value!r}, but it is derived from the other fields: it can only be set to"
                f" None, which drops the {half}. Set the field itself on the configuration."
            )
        self._drop(half)

    def _drop(self, half: str) -> None:
        setattr(self, f"_has_{half}", False)
        if not (self._has_encoder or self._has_decoder):
            raise ValueError(
                "encoder_config and decoder_config are both None, but Mimi needs at least one half. Drop only one."
            )

    def validate_architecture(self) -> None:
        """Refuse what the architecture cannot do.

        Raises:
            ValueError: naming the field, its value, the rule, and what to use instead.
        """
        for holds, problem in itertools.chain(self._rules_of_fields(), self._rules_of_combinations()):
            if not holds:
                raise ValueError(f"This is no Mimi configuration: {problem}")

    def _rules_of_fields(self) -> Iterator[tuple[bool, str]]:
        """For each rule about a single field: does it hold, and what to say where it does not."""
        sizes = (
            "sampling_rate hidden_size num_filters kernel_size last_kernel_size residual_kernel_size"
            " dilation_growth_rate compress codebook_size codebook_dim num_quantizers num_semantic_quantizers"
            " vector_quantization_hidden_dimension upsample_groups intermediate_size num_attention_heads"
            " num_key_value_heads head_dim sliding_window num_hidden_layers"
        )
        for name in sizes.split():
            value = getattr(self, name)
            yield is_size(value), f"{name}={value!r} must be a positive integer."
        value = self.num_residual_layers
        yield value == 0 or is_size(value), f"num_residual_layers={value!r} must be 0 or a positive integer."
        yield (
            isinstance(self.upsampling_ratios, list) and all(map(is_size, self.upsampling_ratios)),
            f"upsampling_ratios={self.upsampling_ratios!r} must be a list of positive integers.",
        )
        numbers = {"norm_eps": self.norm_eps, "rope_theta": self.rope_theta}
        if self._frame_rate is not None:
            numbers["frame_rate"] = self._frame_rate
        for name, value in numbers.items():
            yield isinstance(value, int | float) and value > 0, f"{name}={value!r} must be a positive number."
        yield (
            isinstance(self.attention_dropout, int | float) and 0 <= self.attention_dropout < 1,
            f"attention_dropout={self.attention_dropout!r} must be at least 0 and below 1.",
        )
        yield (
            self.use_causal_conv is True,
            f"use_causal_conv={self.use_causal_conv!r}, but Mimi is a causal codec and its streams rely on it."
            " Use True, or EnCodec where a non-causal codec is wanted.",
        )
        yield (
            self.trim_right_ratio == 1.0,
            f"trim_right_ratio={self.trim_right_ratio!r}, but a causal transposed convolution is trimmed on the right"
            " alone. Use 1.0.",
        )
        yield (
            self.pad_mode in ("constant", "replicate"),
            f"pad_mode={self.pad_mode!r}, but before the first sample a causal codec knows only silence ('constant')"
            " or that sample ('replicate').",
        )
        yield (
            is_size(self.audio_channels) and self.audio_channels <= 2,
            f"audio_channels={self.audio_channels!r} must be 1 (mono) or 2 (stereo).",
        )
        yield (
            self.rope_parameters["rope_type"] == "default",
            f"rope_type={self.rope_parameters['rope_type']!r}, but a sliding window never extrapolates. Use 'default'.",
        )

    def _rules_of_combinations(self) -> Iterator[tuple[bool, str]]:
        """The same for what fields must fulfil together, where each is right by itself."""
        yield (
            self.codebook_size & (self.codebook_size - 1) == 0,
            f"codebook_size={self.codebook_size} must be a power of 2, as codes are stored in whole bits.",
        )
        yield (
            self.num_semantic_quantizers < self.num_quantizers,
            f"num_semantic_quantizers={self.num_semantic_quantizers} must be lower than"
            f" num_quantizers={self.num_quantizers}, which counts the semantic ones too.",
        )
        yield (
            self.codebook_dim == self.vector_quantization_hidden_dimension,
            f"codebook_dim={self.codebook_dim} contradicts vector_quantization_hidden_dimension="
            f"{self.vector_quantization_hidden_dimension}: latents are searched in the space that they are projected"
            " to. Give both the same value.",
        )
        yield (
            self.num_filters % self.compress == 0,
            f"compress={self.compress} must divide num_filters={self.num_filters}.",
        )
        yield (
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_key_value_heads={self.num_key_value_heads} must divide"
            f" num_attention_heads={self.num_attention_heads}.",
        )
        yield self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even for a rotary embedding."
        yield (
            self.hidden_size % self.upsample_groups == 0,
            f"upsample_groups={self.upsample_groups} must divide hidden_size={self.hidden_size}.",
        )
        exact = self.sampling_rate / self.hop_length / self.frame_rate
        yield (
            abs(exact - self.latent_stride) < 0.05 * self.latent_stride,
            f"frame_rate={self.frame_rate} does not divide the encoder's rate of"
            f" {self.sampling_rate / self.hop_length:g} steps per second. Leave it out for half that rate.",
        )

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # Under the public name, which every version of transformers reads.
        output.pop("_frame_rate", None)
        output["frame_rate"] = self.frame_rate
        for half in ("encoder", "decoder"):
            if not output.pop(f"_has_{half}", True):
                output[f"{half}_config"] = None
        return output

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MimiConfig) and self.to_dict() == other.to_dict()


class MimiEncoderConfig(MimiConfig):
    """The configuration of [`MimiEncoderModel`]: every field of [`MimiConfig`], and no decoder.

    It loads from the folder of a whole model, too.
    """

    model_type = "mimi_encoder"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_of_half(kwargs, "decoder"))

    def to_dict(self) -> dict[str, Any]:
        return _without_halves(super().to_dict())


class MimiDecoderConfig(MimiConfig):
    """The configuration of [`MimiDecoderModel`]: every field of [`MimiConfig`], and no encoder.

    It loads from the folder of a whole model, too.
    """

    model_type = "mimi_decoder"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_of_half(kwargs, "encoder"))

    def to_dict(self) -> dict[str, Any]:
        return _without_halves(super().to_dict())


def _of_half(fields: dict[str, Any], dropped: str) -> dict[str, Any]:
    """The fields of a half: whatever a file says of halves, it has itself and not the other one."""
    return {**_without_halves(fields), f"{dropped}_config": None}


def _without_halves(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in ("encoder_config", "decoder_config")}


_KINDS: dict[str, type[MimiConfig]] = {
    kind.model_type: kind for kind in (MimiConfig, MimiEncoderConfig, MimiDecoderConfig)
}

__all__ = ["MimiConfig", "MimiDecoderConfig", "MimiEncoderConfig"]
