"""Fills in `template.md`."""

import math
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

import mimi_hf
from mimi_hf.configuration_mimi import MimiConfig

_TEMPLATE = Path(__file__).with_name("template.md")


def fill_card(
    config: MimiConfig,
    *,
    source_name: str,
    sha256: str,
    model_id: str,
    base_model: str | None = "kyutai/mimi",
    license: str = "cc-by-4.0",
) -> ModelCard:
    """The card of a checkpoint that was converted from a file in Kyutai's original format.

    Args:
        config: what the card computes sizes and bitrates from.
        source_name: name of the original file.
        sha256: its digest.
        model_id: what the usage example loads: an id on the Hub, or a folder.
        base_model: id of the model that these weights are, or were trained from.
        license: of the weights, as an identifier of the Hub.

    Example:
        >>> from mimi_hf import MimiConfig
        >>> card = fill_card(MimiConfig(), source_name="mimi.safetensors", sha256="0" * 64, model_id="me/mimi")
        >>> card.data.license
        'cc-by-4.0'
    """
    data = ModelCardData(
        license=license,
        library_name="transformers",
        # As the Hub files kyutai/mimi itself: its "audio-to-audio" is for enhancement and separation.
        pipeline_tag="feature-extraction",
        base_model=base_model,
        tags=["mimi", "audio", "speech", "audio-codec", "audio-tokenizer", "streaming"],
    )
    bits = int(math.log2(config.codebook_size))
    # bitrates: rows of codebooks, bits per frame, and bits per second as text.
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        config=config,
        bitrates=[(k, bits * k, f"{bits * k * config.frame_rate:,.6g}") for k in range(1, config.num_quantizers + 1)],
        few=min(8, config.num_quantizers),
        source_name=source_name,
        sha256=sha256,
        model_id=model_id,
        license_name=license.upper(),
        version=mimi_hf.__version__,
    )
