"""Where a corpus comes from: a folder, a manifest, parquet files, WebDataset tars, or a data set of the Hub."""

from .base import Example, Source, resolve_audio
from .recognise import KINDS, open_source

__all__ = ["KINDS", "Example", "Source", "open_source", "resolve_audio"]
