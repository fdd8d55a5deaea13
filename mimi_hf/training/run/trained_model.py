"""The model of a run: how it begins, which parts learn, and what is saved of it."""

import re
from pathlib import Path

import torch
from torch import Tensor

from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.feature_extraction_mimi import MimiFeatureExtractor
from mimi_hf.loading import ModelChoice
from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.training.config import TrainingConfig

from .initialization import fold_scale

_MODULES = {
    "encoder": ("encoder", "encoder_transformer", "downsample"),
    "quantizer": ("quantizer",),
    "decoder": ("upsample", "decoder_transformer", "decoder"),
}


class TrainedModel:
    """A [`MimiModel`] in training.

    model: in single precision; its audio is `scale` times as loud as the data.
    """

    def __init__(self, config: TrainingConfig, device):
        self._options, self._quantizer = config.model, config.quantizer
        start = config.model.start
        if start:
            self.model = ModelChoice(start).load("cpu")
        else:
            self.model = MimiModel(MimiConfig(**config.model.config))
            self.model.quantizer.reset_codebooks()
        self.scale = 1.0 if start else config.model.audio_scale
        self.updates = "quantizer" in config.model.train and not config.model.lora_rank
        for part, modules in _MODULES.items():
            for name in modules:
                module = getattr(self.model, name)
                if module is not None:
                    module.requires_grad_(part in config.model.train)
        if config.model.lora_rank:
            self._add_adapters()
        self.model.to(device)

    @property
    def quantizes(self) -> bool:
        """Whether its codebooks have been made."""
        return self.model.quantizer.initialized

    def _add_adapters(self):
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("model.lora_rank needs peft: pip install 'mimi_hf[train]'.") from error
        halves = "|".join(f"{part}_transformer" for part in self._options.train if part != "quantizer")
        names = rf"({halves})\..*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
        rank = self._options.lora_rank
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), self.model)

    def prepare_step(self, quantized: bool):
        """Have the quantizer take part in the next step, or leave latents as they are."""
        self.model.quantizer.training_options = self._quantizer.training_options(quantized, self.updates)

    def export(self, average) -> MimiModel:
        """A model of its own with the averaged weights, for audio at the level of the data, on the CPU.

        Args:
            average: [`WeightAverage`] of this model.
        """
        state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        state |= {name: tensor.cpu() for name, tensor in average.average.items()}
        if self._options.lora_rank:
            state = _merge_adapters(state, 2.0)
        with torch.random.fork_rng(devices=[]):
            model = MimiModel(self.model.config)
        model.load_state_dict(state)
        fold_scale(model, self.scale)
        return model.eval()

    def save(self, folder: str | Path, average):
        """Save what [`export`] gives, with its feature extractor."""
        model = self.export(average)
        model.save_pretrained(folder)
        config = model.config
        MimiFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate).save_pretrained(
            folder
        )


def _merge_adapters(state: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The weights that adapters amount to: W + scaling * B @ A."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        if plain != name:
            layer = re.sub(r"\.base_layer\..*$", "", name)
            down, up = (state[f"{layer}.lora_{end}.default.weight"] for end in "AB")
            tensor = tensor + scaling * up @ down
        merged[plain] = tensor
    return merged
