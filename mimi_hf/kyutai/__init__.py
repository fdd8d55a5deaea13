"""Kyutai's own interfaces to Mimi, on our codec: that of `moshi`, and that of `rustymimi`.

Change the import of a program that was written for one of them, and it runs on `mimi_hf`:

    from mimi_hf import kyutai as loaders    # was: from moshi.models import loaders
    mimi = loaders.get_mimi(path, device="cuda", num_codebooks=8)

    from mimi_hf import kyutai as rustymimi  # was: import rustymimi
    tokenizer = rustymimi.Tokenizer(path, num_codebooks=8)

It takes Kyutai's checkpoint files, folders and ids of the Hub. The guide `docs/guides/kyutai.md` says what differs.
"""

from typing import TYPE_CHECKING

from mimi_hf.utils.lazy import import_on_use

if TYPE_CHECKING:
    from .moshi import KyutaiMimi, get_mimi
    from .moshi_quantizer import QuantizedResult
    from .rustymimi import StreamTokenizer, Tokenizer, write_wav

# What programs take from `moshi.models.loaders` to find the checkpoint.
SAMPLE_RATE = 24_000
FRAME_RATE = 12.5
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
DEFAULT_REPO = "kyutai/moshiko-pytorch-bf16"

_EXPORTS = {
    "KyutaiMimi": "moshi",
    "QuantizedResult": "moshi_quantizer",
    "get_mimi": "moshi",
    "StreamTokenizer": "rustymimi",
    "Tokenizer": "rustymimi",
    "write_wav": "rustymimi",
}

__all__ = [
    "DEFAULT_REPO",
    "FRAME_RATE",
    "MIMI_NAME",
    "SAMPLE_RATE",
    "KyutaiMimi",
    "QuantizedResult",
    "StreamTokenizer",
    "Tokenizer",
    "get_mimi",
    "write_wav",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = import_on_use(__name__, _EXPORTS)
