"""The Mimi codec in PyTorch: its layers, composed into the two steps of a [`TiledCodec`]."""

import hashlib
import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from . import quantization as quantization  # registers 8-bit weights with transformers
from .codec.adapters import LEFT_OUT, leave_out_codebooks
from .codec.causal_conv import CausalConv1d, CausalConvTranspose1d, ConvState
from .codec.checks import check_latents
from .codec.codebook import Codebook
from .codec.graphs import is_captured
from .codec.native_calls import NativeDecoder, NativeDownsample, NativeEncoder, NativeTransformer, NativeUpsample
from .codec.outputs import MimiTrainingOutput
from .codec.quantizer import SplitResidualVectorQuantizer
from .codec.ragged import Ragged
from .codec.recorder import Recorder
from .codec.state import State
from .codec.streaming import LatentDecoderStream, LatentEncoderStream
from .codec.tiles import TiledCodec
from .codec.training_pass import training_pass
from .codec.transformer import LayerScale, TransformerState, ring_slots
from .configuration_mimi import MimiConfig


class EncoderState(NamedTuple):
    """What the encoder remembers between tiles."""

    seanet: tuple
    transformer: TransformerState
    downsample: ConvState | None


class DecoderState(NamedTuple):
    """What the decoder remembers between tiles."""

    upsample: ConvState | None
    transformer: TransformerState
    seanet: tuple


class MimiModel(TiledCodec, PreTrainedAudioTokenizerBase):
    """Kyutai's Mimi codec (arXiv:2410.00037, section 3.3).

    Audio is encoded, and codes are decoded, as a stream that is pushed through in tiles: the result does not depend on
    how the input is cut, and memory does not grow with its length. The model keeps no stream state;
    one model serves many streams.

    Example:
        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> audio = torch.randn(1, 1, 48_000)
        >>> codes = model.encode(audio, num_quantizers=8).audio_codes
        >>> codes.shape
        torch.Size([1, 8, 25])
        >>> with torch.no_grad():
        ...     model.decode(codes).audio_values.shape
        torch.Size([1, 1, 48000])
    """

    config: MimiConfig
    config_class = MimiConfig
    base_model_prefix = "mimi"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    records = True
    _no_split_modules: ClassVar = [
        "NativeEncoder",
        "NativeDecoder",
        "NativeTransformer",
        "SplitResidualVectorQuantizer",
    ]
    # A regular expression, searched for in the names of weights. Models that embed Mimi inherit it, so it must match
    # none of theirs: CSM has a `codebooks_head`.
    _keep_in_fp32_modules_strict: ClassVar = [r"layers\.\d+\.codebook"]
    _supports_sdpa = True
    _quantizes = True

    # None in the half that was left out, and the resampling where a latent is a frame.
    encoder: NativeEncoder | Any
    encoder_transformer: NativeTransformer | Any
    downsample: NativeDownsample | Any
    quantizer: SplitResidualVectorQuantizer | Any
    upsample: NativeUpsample | Any
    decoder_transformer: NativeTransformer | Any
    decoder: NativeDecoder | Any

    def __init__(self, config: MimiConfig) -> None:
        config = MimiConfig.of(config)
        super().__init__(config)
        config.validate_architecture()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={config.hidden_act!r} is none of {', '.join(ACT2FN)}.")
        width, stride = config.hidden_size, config.latent_stride
        self.encoder = self.encoder_transformer = self.downsample = None
        self.decoder = self.decoder_transformer = self.upsample = None
        if config.has_half("encoder"):
            self.encoder = NativeEncoder(config)
            self.encoder_transformer = NativeTransformer(config)
            if stride > 1:
                self.downsample = NativeDownsample(width, width, 2 * stride, stride, pad_mode="replicate", bias=False)
            self.encoder.name_neighbours(self.encoder_transformer, self.downsample)
        self.quantizer = SplitResidualVectorQuantizer(config) if self._quantizes else None
        if config.has_half("decoder"):
            if stride > 1:
                groups = config.upsample_groups
                self.upsample = NativeUpsample(width, width, 2 * stride, stride, groups=groups, bias=False)
            self.decoder_transformer = NativeTransformer(config)
            self.decoder = NativeDecoder(config)
            self.decoder.name_neighbours(self.decoder_transformer, self.upsample)
        self._weights_arranged = False
        self._learnt_under_adapters = False
        self.post_init()
        self._ignore_dropped_weights()

    def _ignore_dropped_weights(self) -> None:
        """A full checkpoint holds what this model lacks, too."""
        dropped = [] if self._quantizes else ["quantizer"]
        for half, resampling in (("encoder", "downsample"), ("decoder", "upsample")):
            if getattr(self, half) is None:
                dropped += [half, f"{half}_transformer", resampling]
        ignored = self._keys_to_ignore_on_load_unexpected
        kind = list if ignored is None else type(ignored)  # transformers takes a list up to 5.8, and a set since
        self._keys_to_ignore_on_load_unexpected = kind([*(ignored or ()), *(rf"^{name}\." for name in dropped)])

    def __getstate__(self) -> dict:
        # Compiled steps belong to this very model, where it is now.
        return {**self.__dict__, "compiled_steps": None if self.compiled_steps is None else {}}

    def _apply(self, fn: Any, recurse: bool = True) -> "MimiModel":
        self.compiled_steps = None if self.compiled_steps is None else {}
        self._weights_arranged = False
        return super()._apply(fn, recurse)

    if TYPE_CHECKING:  # transformers' decorator hides the arguments from type checkers

        def to(self, *args: Any, **kwargs: Any) -> "MimiModel": ...

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                init.uniform_(module.bias, a=-bound, b=bound)
        elif isinstance(module, LayerScale):
            init.constant_(module.scale, self.config.layer_scale_initial_scale)
        elif isinstance(module, Codebook):
            init.ones_(module.initialized)
            init.ones_(module.cluster_usage)
            init.normal_(module.embed_sum)

    @property
    def codebook_digest(self) -> str:
        """The hex SHA-256 of the codebooks: what a code means.

        Models of one digest read each other's codes, whatever their precision and however else they were trained.
        Computing it reads all entries, which takes tenths of a second at full size.
        """
        digest = hashlib.sha256()
        for module in self.modules():
            if isinstance(module, Codebook):
                digest.update(module.embed.detach().cpu().contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    # Encoder

    def encode_step(
        self, audio: Tensor, state: EncoderState | None, num_quantizers: int, recorder: Recorder | None = None
    ) -> tuple[Tensor, State]:
        latents, state = self.encode_finite_tile(audio, state, recorder)
        return self.quantizer.search(latents, num_quantizers), state

    def encode_tile(
        self, audio: Tensor, state: EncoderState | None, recorder: Recorder | None = None
    ) -> tuple[Tensor, EncoderState]:
        """One step of the encoder without its quantizer.

        Args:
            audio: Tensor, shape = (B, F * frame_size, audio_channels), of the model's dtype.
            state: as for [`encode_step`].
            recorder: shows the transformer's hidden states and attentions, of a first step alone.

        Returns:
            Tensor, shape = (B, F, D), the latents, and the state for the next tile.
        """
        self.arrange_weights()
        seanet, transformer, downsample = (None, None, None) if state is None else state
        x, seanet = self.encoder(audio, seanet)
        x, transformer = self.encoder_transformer(x, transformer, recorder)
        if self.downsample is not None:
            x, downsample = self.downsample(x, downsample)
        return x, EncoderState(seanet, transformer, downsample)

    def encode_finite_tile(
        self, audio: Tensor, state: EncoderState | None, recorder: Recorder | None = None
    ) -> tuple[Tensor, EncoderState]:
        """[`encode_tile`], but it raises a `ValueError` if the latents overflow the dtype."""
        latents, state = self.encode_tile(audio, state, recorder)
        if not is_captured() and not torch.isfinite(latents).all():
            raise ValueError(
                f"The latents overflow {self.dtype}. Scale the audio to about -1 to 1 (its peak here is"
                f" {float(audio.abs().max()):g}), or load the model with dtype=torch.float32."
            )
        return latents, state

    def encode_latents(
        self, input_values: Tensor, padding_mask: Tensor | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """The latents that `encode` quantizes. Gradients flow through.

        Args:
            input_values, padding_mask: as for [`encode`].
            recorder: shows the transformer's hidden states and attentions; the audio is one step then.

        Returns:
            Tensor, shape = (B, D, F); zero where a row has no frame.

        Raises:
            TypeError, ValueError: as [`encode`].
        """
        self.require_half("encoder")
        self.check_audio(input_values)
        rows = Ragged.of_audio(input_values, padding_mask, self.config.frame_size)

        def step(audio: Tensor, state: EncoderState | None) -> tuple[Tensor, EncoderState]:
            return self.encode_finite_tile(audio, state, recorder)

        tiles = [latents for *_, latents in self.encode_tiles(input_values, rows, step, recorder is not None)]
        return rows.frames.place(torch.cat(tiles, dim=1).transpose(1, 2))

    # Decoder

    def decode_step(
        self, codes: Tensor, state: DecoderState | None, recorder: Recorder | None = None
    ) -> tuple[Tensor, DecoderState]:
        return self.decode_tile(self.quantizer.lookup(codes).to(self.dtype), state, recorder)

    def decode_tile(
        self, latents: Tensor, state: DecoderState | None, recorder: Recorder | None = None
    ) -> tuple[Tensor, DecoderState]:
        """One step of the decoder without its quantizer.

        Args:
            latents: Tensor, shape = (B, F, D), of the model's dtype.
            state: as for [`decode_step`].
            recorder: as for [`encode_tile`].

        Returns:
            Tensor, shape = (B, F * frame_size, audio_channels), and the state for the next tile.
        """
        self.arrange_weights()
        upsample, transformer, seanet = (None, None, None) if state is None else state
        x = latents
        if self.upsample is not None:
            x, upsample = self.upsample(x, upsample)
        x, transformer = self.decoder_transformer(x, transformer, recorder)
        x, seanet = self.decoder(x, seanet)
        return x, DecoderState(upsample, transformer, seanet)

    def decode_latents(
        self, latents: Tensor, padding_mask: Tensor | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """Decode latents, quantized (`model.quantizer.decode(codes)`) or not. Gradients flow through.

        Args:
            latents: Tensor, shape = (B, D, F).
            padding_mask: as for [`decode`].
            recorder: as for [`encode_latents`].

        Returns:
            Tensor, shape = (B, audio_channels, N).

        Raises:
            TypeError, ValueError: for latents of another type or shape.
        """
        self.require_half("decoder")
        check_latents(latents, self.config.hidden_size)
        rows = Ragged.of_codes(latents, padding_mask, None, self.config.frame_size)

        def step(tile: Tensor, state: DecoderState | None) -> tuple[Tensor, DecoderState]:
            return self.decode_tile(tile.transpose(1, 2).to(self.dtype), state, recorder)

        return self.decode_tiles(latents, rows, step, recorder is not None)

    # Both

    def latent_encoder_stream(self, batch_size: int = 1) -> LatentEncoderStream:
        """A stream that turns audio into latents as it comes; see [`LatentEncoderStream`]."""
        self.require_half("encoder")
        self.prepare()
        return LatentEncoderStream(self, batch_size, self.config.num_quantizers)

    def latent_decoder_stream(self, batch_size: int = 1) -> LatentDecoderStream:
        """A stream that turns latents into audio as they come; see [`LatentDecoderStream`]."""
        self.require_half("decoder")
        self.prepare()
        return LatentDecoderStream(self, batch_size)

    def training_output(
        self, input_values: Tensor | None, padding_mask: Tensor | None, num_quantizers: int | None, return_loss: bool
    ) -> MimiTrainingOutput:
        """Audio through encoder, quantizer and decoder with gradients: what a call in training mode does.

        The codebooks learn where [`codebooks_learn`].
        """
        self.require_half("encoder")
        self.require_half("decoder")
        audio: Any = input_values  # None is refused
        self.check_audio(audio)
        if not self._learnt_under_adapters and self.codebooks_learn and leave_out_codebooks(self):
            self._learnt_under_adapters = True
            warnings.warn(LEFT_OUT, stacklevel=2)
        return training_pass(self, audio, padding_mask, num_quantizers, return_loss)

    @property
    def codebooks_learn(self) -> bool:
        """Whether a call in training mode would move the codebooks now: `model.quantizer.training_options` say when.

        Never where no gradients are recorded, nor where the quantizer is in evaluation mode. See [`QuantizerTraining`].
        """
        parts = (self.encoder, self.encoder_transformer, self.downsample)
        return self.quantizer.learns(weight for part in parts if part is not None for weight in part.parameters())

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        # Whatever saves begins here, peft too.
        if self._learnt_under_adapters and leave_out_codebooks(self):
            warnings.warn(LEFT_OUT, stacklevel=2)
        return super().state_dict(*arguments, **options)

    # Readiness

    def prepare(self) -> None:
        self.arrange_weights()
        if self.quantizer is not None:
            self.quantizer.prepare()

    def arrange_weights(self) -> None:
        """Lay the weights out in memory as the products read them; their shapes and values stay.

        Steps do this by themselves when they first run after the model was made, loaded, moved or converted. Call it
        before something takes note of strides, such as `DistributedDataParallel`.

        Raises:
            ValueError: the weights lie on more than one device.
        """
        if self._weights_arranged or is_captured():
            return
        places = {tensor.device for tensor in (*self.parameters(), *self.buffers())}
        if len(places) > 1 or torch.device("meta") in places:
            raise ValueError(
                f"The weights lie on {', '.join(sorted(map(str, places)))}, but Mimi runs on one device, and is small"
                " enough for any. Load it with device_map={'': device}, without offloading."
            )
        for module in self.modules():
            if isinstance(module, CausalConv1d | CausalConvTranspose1d):
                module.arrange_weight()
        for parameter in self.parameters():
            # A file that is mapped into memory holds them at any address.
            if parameter.dtype == torch.int8 and parameter.data_ptr() % 32:
                parameter.data = parameter.clone()
        self._weights_arranged = True

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._weights_arranged = False
        return super().load_state_dict(*arguments, **options)

    def is_settled(self, state: EncoderState | DecoderState) -> bool:
        return state.transformer.count_slots() == ring_slots(self.config.sliding_window, self.config.latent_stride)

    def compile_for_streaming(self) -> "MimiModel":
        """Compile what a stream does for a frame, which then takes less time for each frame.

        From here on, streams of this model compile the step that they need when it is first needed: tens of seconds for
        the first batch size, and once more for all others. Longer pushes are not compiled. On CUDA each stream
        also records its step as a graph. Move, convert and load the model first, and add or merge its adapters: what is
        compiled does not see later changes.

        Returns:
            The model.
        """
        self.prepare()
        self.compiled_steps = {}
        return self


__all__ = ["MimiModel"]
