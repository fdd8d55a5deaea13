"""The interface of `moshi.models.compression.MimiModel`: a codec that holds its own stream."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimi_hf.codec.streaming import DecoderStream, EncoderStream
from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.conversion import SUFFIXES, config_from_kyutai, load_original
from mimi_hf.conversion.keys import canonical, key_table, to_original, to_ours
from mimi_hf.loading import ModelChoice
from mimi_hf.modeling_mimi import MimiModel

from .moshi_quantizer import KyutaiQuantizer, QuantizedResult


def get_mimi(
    filename: str | Path | None,
    mimi_config: Mapping[str, Any] | MimiConfig | torch.device | str | None = None,
    device: torch.device | str = "cpu",
    num_codebooks: int = 8,
) -> "KyutaiMimi":
    """Load Mimi with the interface of Kyutai's `moshi`: `moshi.models.loaders.get_mimi`.

    Args:
        filename: a checkpoint file of Kyutai's format, a folder that `MimiModel.from_pretrained` loads, the id of a
            model on the Hub, or `mimi-tiny`. None for random weights, which `load_state_dict` replaces.
        mimi_config: the sizes of a file, as Kyutai's loader takes them or as a [`MimiConfig`]. By default they are
            inferred from its tensors. A device here is taken for `device`: so stood it in older versions of `moshi`.
        device: where to load it to.
        num_codebooks: K, codebooks to encode with. [`KyutaiMimi.set_num_codebooks`] changes it.

    Returns:
        The model, float32, in evaluation mode.

    Raises:
        FileNotFoundError, OSError: there is no such file or model.
        ValueError: it is damaged or another model's, or has fewer codebooks.

    Example:
        >>> import torch
        >>> from mimi_hf.kyutai import get_mimi
        >>> mimi = get_mimi("mimi-tiny", num_codebooks=4)
        >>> with mimi.streaming(batch_size=1):
        ...     codes = mimi.encode(torch.zeros(1, 1, mimi.frame_size))
        ...     audio = mimi.decode(codes)
        >>> codes.shape, audio.shape
        (torch.Size([1, 4, 1]), torch.Size([1, 1, 1920]))
    """
    if isinstance(mimi_config, str | torch.device):
        mimi_config, device = None, mimi_config
    if mimi_config is not None and not isinstance(mimi_config, MimiConfig):
        mimi_config = config_from_kyutai(mimi_config)
    if filename is None:
        model = MimiModel(mimi_config or MimiConfig()).eval()
    elif Path(filename).is_file() or Path(filename).suffix in SUFFIXES:
        model = load_original(filename, mimi_config)
    elif mimi_config is not None:
        raise ValueError(f"{str(filename)!r} brings its own config.json. Leave out mimi_config, which is for files.")
    else:
        model = ModelChoice(str(filename)).load(str(device))
    return KyutaiMimi(model.to(device), num_codebooks)


@dataclass(frozen=True)
class Streams:
    """The stream of a [`KyutaiMimi`].

    encoder, decoder: its two directions.
    exec_mask: Tensor, shape = (B,), bool, the rows that go on.
    """

    encoder: EncoderStream
    decoder: DecoderStream
    exec_mask: Tensor


_STATE = tuple(field.name for field in fields(Streams))


class KyutaiMimi(nn.Module):
    """Mimi with the interface of `moshi.models.MimiModel`. [`get_mimi`] loads it.

    Outside a stream, `encode` and `decode` take whole recordings. Between `streaming(batch_size)` and its end they go
    on from where the last call ended. One stream of both directions belongs to the object, as in `moshi`. For more of
    them on the same weights, make streams of `model`.

    The state dict has the names of Kyutai's checkpoint.

    Args:
        model: the codec that computes. It stays available as the attribute `model`.
        num_codebooks: K, codebooks to encode with.
    """

    def __init__(self, model: MimiModel, num_codebooks: int = 8) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.set_num_codebooks(num_codebooks)
        self.streams: Streams | None = None
        self.register_state_dict_post_hook(_give_original_names)
        self.register_load_state_dict_pre_hook(_take_original_names)

    # What it is

    @property
    def channels(self) -> int:
        """C, channels of the audio."""
        return self.model.config.audio_channels

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.model.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.model.config.frame_rate

    @property
    def encoder_frame_rate(self) -> float:
        """Steps of the transformers per second."""
        return self.sample_rate / self.model.config.hop_length

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return self.model.config.frame_size

    @property
    def dimension(self) -> int:
        """D, width of the latents."""
        return self.model.config.hidden_size

    @property
    def cardinality(self) -> int:
        """V, entries of a codebook."""
        return self.model.config.codebook_size

    @property
    def total_codebooks(self) -> int:
        """How many codebooks there are."""
        return self.model.config.num_quantizers

    @property
    def num_codebooks(self) -> int:
        """K, how many of them are used to encode."""
        return self._num_codebooks

    def set_num_codebooks(self, n: int) -> None:
        """Use `n` codebooks from here on, in a stream too.

        Raises:
            TypeError, ValueError: the model does not encode with that many.
        """
        self._num_codebooks = self.model.check_num_quantizers(n)

    @property
    def quantizer(self) -> KyutaiQuantizer:
        """The quantizer. Its layers are in `model.quantizer`."""
        return KyutaiQuantizer(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.dtype

    # Audio and codes

    def encode(self, x: Tensor) -> Tensor:
        """Encode audio: a recording, its last frame padded with zeros; or in a stream the next chunk.

        Args:
            x: Tensor, shape = (B, C, N). A stream takes any N, and keeps the samples that do not fill a frame.

        Returns:
            Tensor, shape = (B, K, F), int64. In a stream, rows that pause hold 0.

        Raises:
            TypeError, ValueError: for audio of another type, shape or batch, or that is not finite.
        """
        if self.streams is None:
            return self.model.encode(
                x, num_quantizers=self.num_codebooks, use_streaming=False, return_dict=True
            ).audio_codes
        # Programs pass the codes of all rows on, to embeddings too: -1 would be no code.
        return self.streams.encoder.push(x, self.streams.exec_mask, self.num_codebooks).clamp_(min=0)

    def encode_to_latent(self, x: Tensor, quantize: bool = True) -> Tensor:
        """Encode audio into latents, as [`encode`] takes it.

        Args:
            x: Tensor, shape = (B, C, N).
            quantize: the latents that the codes stand for, instead of those that are quantized to codes.

        Returns:
            Tensor, shape = (B, D, F). In a stream, unquantized latents of rows that pause are 0.

        Raises:
            TypeError, ValueError: as [`encode`].
        """
        if quantize:
            return self.decode_latent(self.encode(x))
        if self.streams is None:
            return self.model.encode_latents(x)
        encoder, latents = self.streams.encoder, self.model.latent_encoder_stream(self.streams.encoder.batch_size)
        latents.take_over(encoder)
        try:
            return latents.push(x, self.streams.exec_mask)
        finally:
            encoder.take_over(latents)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes: all of a recording, or in a stream the next frames.

        Args:
            codes: Tensor, shape = (B, K, F), integers, of any number of codebooks.

        Returns:
            Tensor, shape = (B, C, F * frame_size). In a stream, rows that pause are silent.

        Raises:
            TypeError, ValueError: for codes of another type, shape, range or batch.
        """
        if self.streams is None:
            return self.model.decode(codes, use_streaming=False, return_dict=True).audio_values
        return self.streams.decoder.push(codes, self.streams.exec_mask)

    def decode_latent(self, codes: Tensor) -> Tensor:
        """The latents that codes stand for.

        Args:
            codes: Tensor, shape = (B, K, F), integers.

        Returns:
            Tensor, shape = (B, D, F).

        Raises:
            TypeError, ValueError: for codes of another type, shape or range.
        """
        return self.model.quantizer.decode(codes)

    def forward(self, x: Tensor) -> QuantizedResult:
        """Encode audio and decode its codes. The audio that comes back is as long as what was given.

        Args:
            x: Tensor, shape = (B, C, N).

        Raises:
            TypeError, ValueError: as [`encode`]; or the model is in training mode.
        """
        if self.training:
            raise ValueError("mimi is in training mode, but its call does not train. Train mimi.model, or call eval().")
        codes = self.encode(x)
        bandwidth = codes.shape[1] * math.log2(self.cardinality) * self.frame_rate / 1000
        audio = self.decode(codes)[..., : x.shape[-1]]
        return QuantizedResult(audio, codes, audio.new_tensor(bandwidth), penalty=audio.new_zeros(()))

    # Streams

    @property
    def is_streaming(self) -> bool:
        """Whether calls continue a stream."""
        return self.streams is not None

    def streaming(self, batch_size: int) -> ExitStack:
        """Begin a stream at once. The context that this returns ends it.

        Args:
            batch_size: B, rows.

        Raises:
            ValueError: a stream has begun already, or another number of rows.
        """
        if self.streams is not None:
            raise ValueError(
                f"mimi streams already, in {len(self.streams.exec_mask)} rows. Leave the `with` block of that stream"
                " first, call reset_streaming() to begin it again, or load another mimi."
            )
        decoder, encoder = self.model.decoder_stream(batch_size), self.model.encoder_stream(batch_size)
        self.streams = Streams(encoder, decoder, torch.ones(batch_size, dtype=torch.bool, device=self.device))
        context = ExitStack()
        context.callback(setattr, self, "streams", None)
        return context

    def streaming_forever(self, batch_size: int) -> None:
        """Begin a stream that does not end. Arguments and errors are those of [`streaming`]."""
        self.streaming(batch_size)

    def set_exec_mask(self, exec_mask: Tensor) -> None:
        """Say which rows go on from here. The others pause: calls ignore what they hold, and leave their state alone.

        Args:
            exec_mask: Tensor, shape = (B,), True for rows that go on.

        Raises:
            ValueError: there is no stream, or the mask has another shape.
        """
        streams, mask = self._rows_of_stream(exec_mask)
        self.streams = replace(streams, exec_mask=mask.clone())

    def reset_streaming(self, reset_mask: Tensor | None = None) -> None:
        """Begin again, in all rows or some. These rows go on with the next call, also where they paused.

        Args:
            reset_mask: Tensor, shape = (B,), True for rows to restart; None for all.

        Raises:
            ValueError: there is no stream, or the mask has another shape.
        """
        streams, mask = self._rows_of_stream(reset_mask)
        streams.encoder.reset(mask)
        streams.decoder.reset(mask)
        self.streams = replace(streams, exec_mask=streams.exec_mask.to(mask.device) | mask)

    def _rows_of_stream(self, mask: Tensor | None) -> tuple[Streams, Tensor]:
        """The stream, and a mask of its rows as booleans where the model is; None means all rows."""
        if self.streams is None:
            raise ValueError("mimi does not stream. Call streaming(batch_size) or streaming_forever(batch_size) first.")
        rows = len(self.streams.exec_mask)
        mask = torch.ones(rows) if mask is None else torch.as_tensor(mask)
        if mask.shape != (rows,):
            raise ValueError(f"The mask has shape {tuple(mask.shape)}, but the stream has {rows} rows: {(rows,)}.")
        return self.streams, mask.to(self.device, torch.bool)

    def get_streaming_state(self) -> dict[str, Any]:
        """The stream itself, not a copy: it goes on with the next call. `copy.deepcopy` forks it.

        Returns:
            `encoder`, `decoder` and `exec_mask`; all None where there is no stream.
        """
        return dict.fromkeys(_STATE) if self.streams is None else dict(vars(self.streams))

    def set_streaming_state(self, state: Mapping[str, Any]) -> None:
        """Go on with another stream.

        Args:
            state: what [`get_streaming_state`] gave. The stream of an object with other weights is forked.

        Raises:
            ValueError: it is something else.
        """
        if set(state) != set(_STATE):
            raise ValueError(
                f"The state has {', '.join(sorted(state)) or 'nothing'}, but {', '.join(_STATE)} are needed. Pass what"
                " get_streaming_state() gave."
            )
        if state["exec_mask"] is None:
            self.streams = None
            return
        encoder, decoder = (self._own(state[direction]) for direction in ("encoder", "decoder"))
        self.streams = Streams(encoder, decoder, state["exec_mask"])

    def _own(self, stream: Any) -> Any:
        """The stream, or a fork that runs on the weights of this object where it ran on others."""
        if stream.model is not self.model:
            stream = stream.copy()
            stream.model = self.model
        return stream


@torch.no_grad()
def _give_original_names(module: KyutaiMimi, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The names of Kyutai's checkpoint in a state dict that was just made."""
    ours = {name: state.pop(name) for name in list(state) if name.startswith(f"{prefix}model.")}
    ours = {name.removeprefix(f"{prefix}model."): tensor for name, tensor in ours.items()}
    state.update({prefix + name: tensor for name, tensor in to_original(ours, module.model.config).items()})


def _take_original_names(
    module: KyutaiMimi, state: dict[str, Any], prefix: str, _: Any, strict: bool, missing: list[str], *__: Any
) -> None:
    """Our names in a state dict that is about to be loaded. What it lacks stays as it is, or is reported."""
    given = canonical({name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)})
    config = module.model.config
    names = key_table(config)
    missing += [prefix + name for name in names if name not in given]
    state.update({prefix + name: tensor for name, tensor in given.items() if name not in names})  # unexpected
    whole = {**to_original(module.model.state_dict(), config), **given}
    state.update({f"{prefix}model.{name}": tensor for name, tensor in to_ours(whole, config).items()})


__all__ = ["KyutaiMimi", "Streams", "get_mimi"]
