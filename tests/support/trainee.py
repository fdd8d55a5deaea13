"""A tiny model in training mode."""

from mimi_hf import QuantizerTraining

from .tiny import make_model

PLAIN = {"quantizer_dropout": 0.0, "unquantized": 0.0, "dead_threshold": 0.0}


def make_trainee(**options):
    model = make_model().train()
    model.quantizer.training_options = QuantizerTraining(**{**PLAIN, **options})
    return model
