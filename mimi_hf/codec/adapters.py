"""Adapters of peft around a model: whether their files hold its codebooks."""

import sys

from torch import nn

from .codebook import Codebook

LEFT_OUT = (
    "The codebooks learn while the model has adapters of peft, and an adapter file holds no codebooks: codes will"
    " differ after loading it. Save them with the adapter, modules_to_save=['codebook'] in its config; or merge the"
    " adapter and save the whole model; or keep the codebooks as they are with QuantizerTraining(update=False)."
)


def leave_out_codebooks(model: nn.Module) -> bool:
    """Whether a model has adapters of peft whose file would hold none of its codebooks, or not all."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None or not any(isinstance(module, tuners.BaseTunerLayer) for module in model.modules()):
        return False
    # peft saves copies of its `modules_to_save`, which it uses in the place of the originals. It cannot load a copy
    # within a copy.
    paths = (name.split(".") for name, module in model.named_modules() if isinstance(module, Codebook))
    return any("original_module" not in path and path.count("modules_to_save") != 1 for path in paths)
