"""A Hub cache as a download leaves it."""

import torch

import mimi_hf

from .tiny import TINY, randomize


def fill_cache(home):
    """A Hub cache in which `kyutai/mimi` is a model of small width and the published frame."""
    commit = "4" * 40
    repository = home / "hub" / "models--kyutai--mimi"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    torch.manual_seed(0)
    config = mimi_hf.MimiConfig(**{**TINY, "upsampling_ratios": [8, 6, 5, 4], "num_quantizers": 8})
    randomize(mimi_hf.MimiModel(config)).save_pretrained(repository / "snapshots" / commit)
    mimi_hf.MimiFeatureExtractor().save_pretrained(repository / "snapshots" / commit)
