"""The model of a run: how it is made, which parts are trained, and how it is exported."""

import copy
from pathlib import Path
from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel

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

    model: the model, in single precision.
    scale: multiply audio by this before the model, and divide by it after.

    Args:
        config: of the run.
        device: where the run takes place.

    Raises:
        OSError, ValueError: the model to start from cannot be loaded.
        ImportError: adapters are wanted, but peft is not installed.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str) -> None:
        self._options, self._quantizer = config.model, config.quantizer
        start = config.model.start
        if start:
            self.model = ModelChoice(start).load("cpu")
        else:
            self.model = MimiModel(MimiConfig(**config.model.config))
            self.model.quantizer.reset_codebooks()
        self.scale = 1.0 if start else config.model.audio_scale
        self._learns_codebooks = "quantizer" in config.model.train and not config.model.lora_rank
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
        """Whether the codebooks have been made."""
        return self.model.quantizer.initialized

    def _add_adapters(self) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("model.lora_rank needs peft: pip install 'mimi_hf[train]'.") from error
        halves = "|".join(f"{part}_transformer" for part in self._options.train if part != "quantizer")
        names = rf"({halves})\..*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
        rank = self._options.lora_rank
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), self.model)

    def prepare_step(self, quantized: bool) -> None:
        """Set whether the next step quantizes latents, or leaves them as they are."""
        self.model.quantizer.training_options = self._quantizer.training_options(quantized, self._learns_codebooks)

    def export(self, average: AveragedModel) -> MimiModel:
        """Make a model with averaged weights, for audio as loud as the data, on the CPU.

        Args:
            average: of this model.
        """
        model = cast(MimiModel, copy.deepcopy(average.module)).cpu()
        if self._options.lora_rank:
            from peft.tuners.lora import LoraLayer

            for name, layer in [*model.named_modules()]:
                if isinstance(layer, LoraLayer):
                    layer.merge()
                    model.set_submodule(name, layer.get_base_layer())
        fold_scale(model, self.scale)
        return model.eval()

    def save(self, folder: str | Path, average: AveragedModel) -> None:
        """Save what [`export`] makes, with its feature extractor."""
        model = self.export(average)
        model.save_pretrained(folder)
        config = model.config
        MimiFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate).save_pretrained(
            folder
        )
