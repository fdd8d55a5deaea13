"""Small random checkpoints in Kyutai's original format."""

from pathlib import Path

import torch

from mimi_hf import MimiConfig, MimiModel
from mimi_hf.conversion.keys import to_original

SCRIPT = Path(__file__).parents[2] / "conversion" / "convert_mimi_checkpoint.py"
SMALL = {
    "hidden_size": 32,
    "num_filters": 4,
    "upsampling_ratios": [3, 2],
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
CONFIGS = {
    "small": {},
    "every size": {
        "audio_channels": 2,
        "num_filters": 8,
        "num_residual_layers": 2,
        "upsampling_ratios": [4, 3, 2],
        "compress": 4,
        "kernel_size": 5,
        "last_kernel_size": 4,
        "residual_kernel_size": 2,
        "use_conv_shortcut": True,
        "num_semantic_quantizers": 2,
        "num_key_value_heads": 2,
        "upsample_groups": 4,
    },
    "one step, no residual blocks": {"num_residual_layers": 0, "upsampling_ratios": [5]},
    "not resampled": {"frame_rate": 4000, "upsample_groups": 1},
    "resampled by 5": {"frame_rate": 800},
}
CANNOT_BE_READ_OFF = {"num_attention_heads": 4, "sampling_rate": 240, "sliding_window": 7, "dilation_growth_rate": 3}


def config_of(**changes):
    return MimiConfig(**{**SMALL, **changes})


def original_of(config, seed=0):
    """A random checkpoint in the original format."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = MimiModel(config).state_dict()
    state = {name: torch.randn(value.shape, generator=generator) / 4 for name, value in state.items()}
    for name, value in state.items():
        if name.endswith((".initialized", ".cluster_usage")):
            value.abs_().add_(1)
        elif ".codebook." not in name and value.dim() > 1:
            value.mul_(4 / value[0].numel() ** 0.5)  # of the size that keeps signals at theirs
    return {name: value.contiguous() for name, value in to_original(state, config).items()}


def bits(state):
    return {name: (tuple(value.shape), value.contiguous().numpy().tobytes()) for name, value in state.items()}


def listing(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}
