"""Files of codes, `.mimi`: pure bytes and numpy. The format is described in [`mimi_hf.bitstream.reader`]."""

from .header import BitstreamError, Header
from .reader import BitstreamReader, BitstreamWriter, Facts, read_mimi, write_mimi

__all__ = ["BitstreamError", "BitstreamReader", "BitstreamWriter", "Facts", "Header", "read_mimi", "write_mimi"]
