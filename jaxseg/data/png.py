"""Reading the top of a PNG: its rows are compressed one after the other, so the rest can be left.

PNG (ISO/IEC 15948): a signature, then chunks of u32 length, name, content and u32 CRC-32 of both.
The first chunk, IHDR, holds width and height; a decoder stops after that many rows.
"""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = slice(12, 29)  # IHDR's name, width, height, depth, colour, compression, filter, interlace


def first_rows(data: bytes, rows: int) -> bytes:
    """The same PNG with a header of fewer rows: what decodes it stops there.

    Returns:
      `data` itself where that would not save anything, or would hide something: an interlaced or
      animated file, one that is cut or whose checksums are wrong. A decoder then sees all of it and
      says what is the matter.
    """
    header = data[_HEADER]
    if data[:8] != _SIGNATURE or header[:4] != b"IHDR" or not is_whole(data) or header[16]:
        return data
    width, height = struct.unpack_from(">II", header, 4)
    if rows >= height:
        return data
    header = header[:4] + struct.pack(">II", width, rows) + header[12:]
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"".join((data[: _HEADER.start], header, checksum, memoryview(data)[33:]))


def is_whole(data: bytes) -> bool:
    """Whether every chunk is there and as it was written, and none is of an animation."""
    view, position, name = memoryview(data), 8, b""
    while name != b"IEND":
        if position + 12 > len(data):
            return False
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        name = data[position + 4 : position + 8]
        if name == b"acTL" or end + 4 > len(data):
            return False
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        position = end + 4
    return True
