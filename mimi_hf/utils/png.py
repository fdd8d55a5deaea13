"""Pictures as PNG files with numpy alone, for use where matplotlib is not installed."""

import struct
import zlib

import numpy as np

# Black over violet and orange to a pale yellow: lightness grows evenly.
_ANCHORS = np.array([(0, 0, 4), (60, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)])


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode a picture as the bytes of a PNG file. Pixels: shape = (height, width, 3), uint8, the top row first."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Map values from 0 (dark) to 1 (bright) to colours: shape (…) -> (…, 3), uint8."""
    places = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, places, channel) for channel in _ANCHORS.T], axis=-1).astype(np.uint8)


def wheel_colors(values: np.ndarray) -> np.ndarray:
    """Map values from 0 to 1 to colours, once around the colour wheel: shape (…) -> (…, 3), uint8."""
    thirds = np.asarray(values)[..., None] + np.array([0, 1 / 3, 2 / 3])
    return np.rint(127.5 + 100 * np.cos(2 * np.pi * thirds)).astype(np.uint8)


def enlarge(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw each pixel as a rectangle of `height` times `width` pixels."""
    return pixels.repeat(height, axis=0).repeat(width, axis=1)
