"""The outer layers, called as transformers' own are: with one tensor, channels first, for a whole recording.

Our steps call a layer with its state, `y, state = layer(x, state)`. Code written for transformers' own class passes `x`
alone. Up to transformers 5.20 such a layer was a single network; from 5.21 on `encoder` and `decoder` are whole halves.
Both meanings hold here: the call returns the tensor of the network, whose attributes are what the half returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .causal_conv import CausalConv1d, CausalConvTranspose1d
from .graphs import is_captured
from .outputs import MimiDecoderOutput, MimiTransformerOutput
from .recorder import Recorder, outputs_of
from .seanet import SEANetDecoder, SEANetEncoder
from .transformer import Transformer, TransformerState, window_mask

if TYPE_CHECKING:
    from mimi_hf.configuration_mimi import MimiConfig

_WHOLE: Any = object()  # in place of a state: the caller is not a step of ours


class NetworkOutput(Tensor):
    """The output of a network, with that of the half around it, which is computed when it is asked for.

    What is computed from it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _half: Callable[[], Tensor]

    @classmethod
    def of(cls, output: Tensor, half: Callable[[], Tensor]) -> Tensor:
        """`output`, channels first in memory, too, and a function that computes the output of the half."""
        output = output.contiguous()
        if is_captured():
            return output  # a graph has no attributes
        tensor = output.as_subclass(cls)
        tensor._half = half
        return tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> Tensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    @property
    def latents(self) -> Tensor:
        """Of the encoder: Tensor, shape = (B, D, F)."""
        return self._half()

    @property
    def audio_values(self) -> Tensor:
        """Of the decoder, where its input was latents: Tensor, shape = (B, audio_channels, N)."""
        return self._half()

    cache = past_key_values = padding_cache = decoder_cache = decoder_past_key_values = None


class NativeEncoder(SEANetEncoder):
    """The SEANet encoder. `encoder_transformer` and `downsample` are those of its model."""

    encoder_transformer: NativeTransformer
    downsample: NativeDownsample | None

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.hop = config.hop_length
        convolutions = [name for name, layer in self.named_modules() if isinstance(layer, CausalConv1d)]
        # Kyutai's speech-to-text model in transformers builds its padding cache from these: up to 5.20, and since.
        self._mimiconv1d_layer_names = self._conv1d_layer_names = convolutions

    def name_neighbours(self, transformer: NativeTransformer, downsample: NativeDownsample | None) -> None:
        """Offer the rest of the half where transformers 5.21 has it, without a second name for any parameter."""
        self.__dict__.update(encoder_seanet=self, encoder_transformer=transformer, downsample=downsample)

    def forward(self, x: Tensor, state: Any = _WHOLE, **options: Any) -> Any:
        """Tensor, shape = (B, audio_channels, N) -> Tensor, shape = (B, D, T), which has the `latents`, too."""
        if state is not _WHOLE:
            return super().forward(x, state)
        _refuse_caches("encoder", "model.encoder_stream()", options)
        steps = -(-x.shape[2] // self.hop)
        whole, _ = super().forward(F.pad(x, (0, -x.shape[2] % self.frame)).transpose(1, 2), None)

        def half() -> Tensor:
            latents, _ = self.encoder_transformer(whole, None)
            return (latents if self.downsample is None else self.downsample(latents, None)[0]).transpose(1, 2)

        return NetworkOutput.of(whole[:, :steps].transpose(1, 2), half)


class NativeDecoder(SEANetDecoder):
    """The SEANet decoder. `decoder_transformer` and `upsample` are those of its model."""

    decoder_transformer: NativeTransformer
    upsample: NativeUpsample | None

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.hop = config.hop_length

    def name_neighbours(self, transformer: NativeTransformer, upsample: NativeUpsample | None) -> None:
        """Offer the rest of the half where transformers 5.21 has it, without a second name for any parameter."""
        self.__dict__.update(decoder_seanet=self, decoder_transformer=transformer, upsample=upsample)

    def forward(self, x: Any = None, state: Any = _WHOLE, latents: Tensor | None = None, **options: Any) -> Any:
        """Tensor, shape = (B, D, T) -> Tensor, shape = (B, audio_channels, T * hop).

        Its attribute `audio_values` is what the half makes of x, shape = (B, D, F), if these are latents; with
        `latents=` the call returns that alone.
        """
        if state is not _WHOLE:
            return super().forward(x, state)
        _refuse_caches("decoder", "model.decoder_stream()", options)
        if latents is not None:
            return MimiDecoderOutput(self._half(latents))
        steps = x.shape[2]
        audio, _ = super().forward(F.pad(x, (0, -steps % self.frame)).transpose(1, 2), None)
        return NetworkOutput.of(audio[:, : steps * self.hop].transpose(1, 2), lambda: self._half(x))

    def _half(self, latents: Tensor) -> Tensor:
        x = latents.transpose(1, 2)
        x = x if self.upsample is None else self.upsample(x, None)[0]
        x, _ = self.decoder_transformer(x, None)
        return super().forward(x, None)[0].transpose(1, 2)


class NativeTransformer(Transformer):
    """A transformer whose state may be passed on as `past_key_values`, or `cache`."""

    def forward(
        self,
        hidden_states: Tensor,
        state: Any = _WHOLE,
        recorder: Recorder | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: TransformerState | None = None,
        cache: TransformerState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Tensor, shape = (B, T, D) -> [`MimiTransformerOutput`].

        Raises:
            TypeError, ValueError: for a cache that another class made, a mask that is not causal over the window, or
                hidden states of a stream that has begun.
        """
        if state is not _WHOLE and not isinstance(state, Tensor):
            return super().forward(hidden_states, state, recorder)
        attention_mask = state if isinstance(state, Tensor) else attention_mask  # the second argument of native's
        before = past_key_values if cache is None else cache
        if before is not None and not isinstance(before, TransformerState):
            raise TypeError(
                f"A {type(before).__name__} was passed, but this transformer goes on from the cache that its own last"
                " call returned (use_cache=True begins one). Whole streams: model.encoder_stream()."
            )
        if attention_mask is not None and (before is not None or not self._is_causal(attention_mask)):
            raise ValueError(
                "attention_mask must be causal over the window: each step attends to itself and the"
                f" {self.config.sliding_window - 1} before it, and padding is on the right. Leave it out."
            )
        shown = Recorder([] if output_hidden_states else None, [] if output_attentions else None)
        if before is not None and (output_hidden_states or output_attentions):
            raise ValueError(
                "Hidden states and attentions are shown of whole recordings. Ask for them without a cache."
            )
        y, after = super().forward(hidden_states, before, shown)
        keeps = use_cache or (use_cache is None and (before is not None or self.config.use_cache))
        output = MimiTransformerOutput(y, after if keeps else None, *outputs_of(shown))
        return output if return_dict is not False else output.to_tuple()

    def _is_causal(self, mask: Tensor) -> bool:
        """Whether a mask, shape = (B, T) or (B, 1, T, T), lets each real step see what it sees without one."""
        allowed = mask if mask.dtype == torch.bool else (mask > -1 if mask.dim() == 4 else mask != 0)
        if mask.dim() == 2:
            return bool((allowed[:, 1:] <= allowed[:, :-1]).all())
        steps = mask.shape[-1]
        start = torch.zeros(1, dtype=torch.int64, device=mask.device)
        seen = window_mask(start, steps, steps, self.config.sliding_window, torch.float32) == 0
        return mask.dim() == 4 and mask.shape[-2] == steps and bool((allowed == seen).all())


class NativeDownsample(CausalConv1d):
    """The convolution that halves the rate; an odd step at the end is repeated."""

    def forward(self, x: Tensor, state: Any = _WHOLE, **options: Any) -> Any:
        """Tensor, shape = (B, D, T) -> Tensor, shape = (B, D, F)."""
        if state is not _WHOLE:
            return super().forward(x, state)
        _refuse_caches("downsample", "model.encoder_stream()", options)
        x = F.pad(x, (0, -x.shape[2] % self.stride), mode="replicate") if x.shape[2] % self.stride else x
        return super().forward(x.transpose(1, 2), None)[0].transpose(1, 2).contiguous()


class NativeUpsample(CausalConvTranspose1d):
    """The transposed convolution that doubles the rate."""

    def forward(self, x: Tensor, state: Any = _WHOLE) -> Any:
        """Tensor, shape = (B, D, F) -> Tensor, shape = (B, D, T)."""
        if state is not _WHOLE:
            return super().forward(x, state)
        return super().forward(x.transpose(1, 2), None)[0].transpose(1, 2).contiguous()


def _refuse_caches(name: str, remedy: str, options: dict[str, Any]) -> None:
    """Refuse to restart silently where a caller means to go on."""
    wanted = [key for key, value in options.items() if value is not None and value is not False and key in _CACHES]
    if wanted:
        raise ValueError(f"model.{name} takes whole recordings, but got {', '.join(wanted)}. Streams: {remedy}.")


_CACHES = ("cache", "past_key_values", "padding_cache", "use_streaming", "use_cache")
