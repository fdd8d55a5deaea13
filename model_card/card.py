"""Fills in `template.md`."""

import math
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

import mimi_hf

_TEMPLATE = Path(__file__).with_name("template.md")


def fill_card(config, *, source_name, sha256, model_id, base_model="kyutai/mimi", license="cc-by-4.0") -> ModelCard:
    """The card of a checkpoint that was converted from a file in Kyutai's original format.

    Args:
        config (MimiConfig): what the card computes sizes and bitrates from.
        source_name (str): name of the original file.
        sha256 (str): its digest.
        model_id (str): what the usage example loads: an id on the Hub, or a folder.
        base_model (str, optional): id of the model that these weights are, or were trained from.
        license (str): of the weights, as an identifier of the Hub.

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
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        config=config,
        bitrates=_bitrates(config),
        few=min(8, config.num_quantizers),
        source_name=source_name,
        sha256=sha256,
        model_id=model_id,
        license_name=license.upper(),
        version=mimi_hf.__version__,
    )


def _bitrates(config):
    """Rows of (codebooks, bits a frame, bits a second as text), for 1 to K codebooks."""
    bits = int(math.log2(config.codebook_size))
    return [(k, bits * k, f"{bits * k * config.frame_rate:,.6g}") for k in range(1, config.num_quantizers + 1)]
