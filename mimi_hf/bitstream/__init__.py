"""Files of codes, `.mimi`: pure bytes and numpy. This is the description of the format, version 1.

A file holds codes of C channels and K codebooks with V entries each: a header, blocks of frames, and an end mark.
Numbers are unsigned and little-endian: u8 has 8 bits, u16 has 16, and so on. Every crc is the CRC-32 (as in zip and
png) of the header's bytes before the header's crc, followed by the bytes that are named.

Header:

    7 bytes   89 "MIMI" 0D 0A
    u8        version: 1
    u8        coding of the payloads: 0 packed, 1 entropy
    u8        C, 1 to 255
    u16       K, 1 to 1024
    u32       V, 2 to 2^24
    u32       sampling rate, samples per second, not 0
    u32       frame size, samples per frame, 1 to 2^24
    u64       samples per channel that are real, at most 2^63; 2^64 - 1 where that is not known
    32 bytes  SHA-256 that names the codebooks; zeros where that is not known
    u16       bytes of metadata
    ...       metadata: a JSON object in UTF-8, no longer than that; keys are unique, numbers finite, at most 32 deep
    u32       crc, of the header alone

Where the coding is entropy, K is at most 256, and K * V at most 2^17.

Block:

    u16       frames f, 1 to 65535, where f * C * K is at most 2^20
    u32       bytes of payload, only where the coding is entropy
    ...       payload
    u32       crc, of: the number of frames before this block as u64, the fields above

A packed payload is a string of bits, the lowest bit of each byte first. Each code takes b = ceil(log2 V) bits, the
lowest first. Frames follow each other; a frame holds channel after channel, a channel codebook after codebook. Zeros
fill the last byte, so there are ceil(f * C * K * b / 8) bytes. Where the coding is entropy, a payload of that length is
packed; all others are shorter, and [`mimi_hf.bitstream.entropy`] describes them.

End mark:

    u16       0
    u64       frames in the file
    u64       samples per channel that are real, at most frames * frame size; 2^64 - 1 where that is not known
    u32       crc, of: the number of frames as u64, the fields above

A block does not refer to later ones, so a file can be written and read as it comes. A file without an end mark was cut
short: it holds the frames of its whole blocks.
"""

from .header import BitstreamError, Header
from .reader import BitstreamReader, Facts, read_mimi
from .writer import BitstreamWriter, write_mimi

__all__ = ["BitstreamError", "BitstreamReader", "BitstreamWriter", "Facts", "Header", "read_mimi", "write_mimi"]
