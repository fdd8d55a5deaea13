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


def kyutais_config(config):
    """What Kyutai's own loader takes for a model of these sizes."""
    seanet = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "causal": True,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "activation": "ELU",
        "compress": config.compress,
        "dilation_base": config.dilation_growth_rate,
        "kernel_size": config.kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "norm": "none",
        "pad_mode": config.pad_mode,
        "ratios": config.upsampling_ratios,
        "true_skip": not config.use_conv_shortcut,
    }
    transformer = {
        "d_model": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "kv_repeat": config.num_attention_heads // config.num_key_value_heads,
        "num_layers": config.num_hidden_layers,
        "causal": True,
        "layer_scale": 0.01,
        "context": config.sliding_window,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": config.intermediate_size,
        "input_dimension": config.hidden_size,
        "output_dimensions": [config.hidden_size],
    }
    quantizer = {
        "dimension": config.codebook_dim,
        "n_q": config.num_quantizers,
        "n_q_semantic": config.num_semantic_quantizers,
        "bins": config.codebook_size,
        "input_dimension": config.hidden_size,
        "output_dimension": config.hidden_size,
    }
    return {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "frame_rate": config.frame_rate,
        "seanet": seanet,
        "transformer": transformer,
        "quantizer": quantizer,
    }


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
