"""Models of transformers that embed Mimi, tiny."""

from collections.abc import Callable
from typing import Any

import torch

from .tiny import TINY, make_audio

CODEC = {**TINY, "upsampling_ratios": [8, 6, 5, 4], "num_quantizers": 8, "sliding_window": 250, "model_type": "mimi"}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
AUDIO = make_audio(6 * 1920)
CSM_TEXT = torch.tensor([[1, 5, 7, 2]])


def make_csm() -> tuple[type, Any, Callable[[Any], Any]]:
    """The class of the model, a config, and a call that encodes audio."""
    from transformers import CsmConfig, CsmForConditionalGeneration

    depth = {**_SMALL, "intermediate_size": 32, "backbone_hidden_size": 32, "vocab_size": 67, "num_codebooks": 8}
    config = CsmConfig(
        **_SMALL,
        intermediate_size=32,
        vocab_size=67,
        text_vocab_size=99,
        num_codebooks=8,
        audio_token_id=90,
        audio_eos_token_id=91,
        depth_decoder_config={**depth, "max_position_embeddings": 9},
        codec_config=dict(CODEC),
    )
    ids = torch.tensor([[1, *[90] * 6, 91, 2]])
    cutoffs = torch.tensor([[AUDIO.shape[2]]])
    return (
        CsmForConditionalGeneration,
        config,
        lambda model: model(ids, input_values=AUDIO, input_values_cutoffs=cutoffs)[0],
    )


def make_moshi() -> tuple[type, Any, Callable[[Any], Any]]:
    """As [`make_csm`]."""
    from transformers import MoshiConfig, MoshiForConditionalGeneration

    config = MoshiConfig(
        **_SMALL,
        ffn_dim=64,
        vocab_size=99,
        audio_vocab_size=65,
        num_codebooks=8,
        audio_encoder_config=dict(CODEC),  # some versions of transformers take `model_type` out of it
        depth_decoder_config={**_SMALL, "ffn_dim": 64, "vocab_size": 99, "audio_vocab_size": 65, "num_codebooks": 8},
    )
    ids = torch.zeros(1, 6, dtype=torch.int64)
    return (
        MoshiForConditionalGeneration,
        config,
        lambda model: model(ids, user_input_values=AUDIO, moshi_input_values=-AUDIO)[0],
    )


def make_speech_to_text() -> tuple[type, Any, Callable[[Any], Any]]:
    """As [`make_csm`]."""
    from transformers import KyutaiSpeechToTextConfig, KyutaiSpeechToTextForConditionalGeneration

    config = KyutaiSpeechToTextConfig(
        **_SMALL,
        ffn_dim=64,
        codebook_vocab_size=65,
        vocab_size=99,
        num_codebooks=8,
        frame_size=1920,
        codec_config=dict(CODEC),
        audio_bos_token_id=64,
        audio_pad_token_id=63,
        pad_token_id=3,
        bos_token_id=98,
        eos_token_id=None,
    )
    return (
        KyutaiSpeechToTextForConditionalGeneration,
        config,
        lambda model: model.generate(input_values=AUDIO, max_new_tokens=5, do_sample=False),
    )


COMPOSITES = {"csm": make_csm, "moshi": make_moshi, "speech to text": make_speech_to_text}
