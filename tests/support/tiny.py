"""Tiny seeded models that leave no part of the architecture idle."""

import numpy as np
import torch

TINY = {
    "num_filters": 4,
    "hidden_size": 32,
    "upsampling_ratios": [3, 2, 2],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 6,
    "upsample_groups": 32,
    "sliding_window": 10,
}
FRAME = 24  # samples per frame of TINY


def randomize(model):
    """Fill what a fresh model leaves flat: layer scales that let the transformers speak, usage counts, biases."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        elif name.endswith("cluster_usage"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.3)
        elif name.endswith("bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def make_model(**changes):
    """A model of TINY with some fields changed."""
    from mimi_hf import MimiConfig, MimiModel

    torch.manual_seed(0)
    return randomize(MimiModel(MimiConfig(**{**TINY, **changes})))


def make_audio(samples, batch=1, channels=1, seed=0):
    """Tones and noise that rise and fall: Tensor, shape = (batch, channels, samples)."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 240
    tones = np.sin(time * random.uniform(1, 60, (batch, channels, 1))) * np.sin(time / 7)
    return torch.tensor(0.5 * tones + 0.2 * random.standard_normal(tones.shape), dtype=torch.float32)


def assert_same_audio(actual, expected):
    """Equal within 1e-5 of the peak: what rounding in another order may do."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def snr(signal, other):
    """Signal-to-noise ratio of `other` as an approximation of `signal`, in dB."""
    return float(10 * torch.log10(signal.square().sum() / (signal - other).float().square().sum()))
