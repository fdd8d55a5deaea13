"""Small runs of training: their configuration, recordings and teachers."""

import numpy as np
import torch
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

MODEL = {
    "num_filters": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "sliding_window": 8,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 3,
    "upsample_groups": 16,
}


TEACHER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,  # kernels and strides are those of all: 400 samples every 320
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
KINDS = {
    "wavlm": (WavLMConfig, WavLMModel),
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
}


def save_teacher(folder, kind="wavlm", normalizes=False, **changes):
    config, model = KINDS[kind]
    torch.manual_seed(0)
    model(config(**{**TEACHER, **changes})).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalizes).save_pretrained(folder)
    return str(folder)


def voice(seconds, pitch, seed):
    """Something like a voice: harmonics of a gliding pitch, in syllables."""
    time = np.arange(round(seconds * 24_000)) / 24_000
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time + seed))) / 24_000
    harmonics = sum(np.sin(number * phase) / number for number in range(1, 12))
    return (0.1 * harmonics * (0.2 + np.sin(2 * np.pi * 2 * time + seed) ** 2)).astype(np.float32)


def make_config(speech, output, **groups):
    content = {
        "run": {"output": str(output), "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 4},
        "model": {"config": MODEL},
        "data": {"train": [str(speech)], "crop_seconds": 0.48, "batch_size": 2},
        "losses": {},
        "quantizer": {"unquantized_steps": 3},
        "optimizer": {"steps": 8, "warmup_steps": 2},
    }
    for group, fields in groups.items():
        content[group] = {**content[group], **fields}
    return content
