"""What a PNG file says of itself."""

from __future__ import annotations

import struct
import zlib


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG of one byte a pixel, all of whose chunks are checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds, pixels = 8, [], b""
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        kinds.append(kind)
        pixels += data if kind == b"IDAT" else b""
        at += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    width, height, depth, color = struct.unpack(">IIBB", content[16:26])
    assert (depth, color) == (8, 3)
    assert len(zlib.decompress(pixels)) == height * (width + 1)
    return width, height
