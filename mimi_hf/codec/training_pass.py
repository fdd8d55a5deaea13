"""The forward pass in training mode: encoder, quantizer and decoder in one, with gradients."""

from typing import Any

from torch import Tensor

from .losses import padded_reconstruction_loss
from .outputs import MimiTrainingOutput
from .ragged import Ragged, frame_mask

COMMITMENT = 0.25  # its weight in the sum, as in VQ-VAE (arXiv:1711.00937, section 3.2)


def training_pass(
    model: Any, input_values: Tensor, padding_mask: Tensor | None, num_quantizers: int | None, return_loss: bool
) -> MimiTrainingOutput:
    """One training step's forward pass. The codebooks learn from it where `model.codebooks_learn`.

    Args:
        model: a [`MimiModel`] with both halves.
        input_values: Tensor, shape = (B, audio_channels, N).
        padding_mask, num_quantizers: as for [`MimiModel.encode`].
        return_loss: compute the reconstruction loss and the sum as well.
    """
    num_quantizers = model.check_num_quantizers(num_quantizers)
    rows = Ragged.of_audio(input_values, padding_mask, model.config.frame_size)
    audio = rows.samples.cut(input_values, 0, rows.frames.length * rows.frame_size)
    mask = frame_mask(rows.frames.counts, rows.frames.length)
    latents, _ = model.encode_tile(audio.transpose(1, 2).to(model.dtype), None)
    quantized = model.quantizer.quantize(latents, mask, num_quantizers, model.codebooks_learn)
    decoded, _ = model.decode_tile(quantized.latents.to(model.dtype), None)
    audio_values = rows.samples.place(decoded.transpose(1, 2))
    output = MimiTrainingOutput(
        commitment_loss=quantized.commitment,
        audio_values=audio_values,
        audio_codes=quantized.codes,
        latents=latents,
        semantic_latents=quantized.semantic,
        audio_codes_mask=mask,
    )
    if return_loss:
        rate = model.config.sampling_rate
        loss = padded_reconstruction_loss(input_values, padding_mask, audio_values, rate)
        output.reconstruction_loss = loss
        output.loss = loss + COMMITMENT * quantized.commitment
    return output
