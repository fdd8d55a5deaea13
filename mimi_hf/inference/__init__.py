"""Recordings through a model, one way for all: files, batches, round trips."""

from .file_options import DecodeOptions, DecodeReport, EncodeOptions, EncodeReport
from .mimi_files import decode_file, encode_file
from .recordings import decode_codes, encode_blocks
from .round_trip import RoundtripReport, roundtrip

__all__ = [
    "DecodeOptions",
    "DecodeReport",
    "EncodeOptions",
    "EncodeReport",
    "RoundtripReport",
    "decode_codes",
    "decode_file",
    "encode_blocks",
    "encode_file",
    "roundtrip",
]
