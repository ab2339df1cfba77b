"""Append-only files of numbered frames, each a line of text followed by bytes.

A frame is a header (`HEADER`, big-endian: magic, number, bytes of the line, bytes of the payload, chain, CRC-32 of
all this), the line, and the payload. The chain of a frame is sha256(chain of the frame before ‖ line), so that no
frame can be changed, left out, exchanged or brought in from another file unnoticed; the line should hold the payload's
sha256.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from dataclasses import dataclass

from editscale.files import write_all

MAGIC = b"\x89edit\r\n\x1a"  # no text, and not what a transfer as text leaves alone
HEADER = struct.Struct(">8sQIQ32sI")


class Broken(ValueError):
    """A frame that is not whole, or not the one that belongs there; the message says in what way."""


@dataclass(frozen=True)
class Frame:
    """A whole frame: its number, line and chain, and where in the file its payload and its end are."""

    number: int
    line: bytes
    chain: bytes
    payload_at: int
    end: int


def next_chain(chain, line):
    """The chain of the frame with this line that follows a frame with that chain, 32 bytes."""
    return hashlib.sha256(chain + line).digest()


def append(fd, end, number, chain, line, payload):
    """Write a frame at the end of an open file and wait until it is on the disk: the `Frame`.

    Args:
        end: how long the file is. chain: of the frame before this one.

    Whatever is raised on the way, the file is cut back to `end` if that is possible. OSError is the system's.
    """
    chain = next_chain(chain, line)
    header = HEADER.pack(MAGIC, number, len(line), len(payload), chain, 0)[:-4]
    try:
        write_all(fd, header + struct.pack(">I", zlib.crc32(header)) + line + payload)
        os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # what stays is found when the file is read
            os.ftruncate(fd, end)
            os.fsync(fd)
        raise
    start = end + HEADER.size + len(line)
    return Frame(number, line, chain, start, start + len(payload))


def read(file, size, start, number, chain):
    """The `Frame` that begins at `start` of an open file of `size` bytes, checked but for its payload.

    Raises `Broken` if it is not whole, not of this number, or not one that follows a frame with this chain.
    """
    file.seek(start)
    header = _header(file.read(HEADER.size))
    if header is None:
        raise Broken("its header is damaged or incomplete")
    found, n_line, n_payload, recorded = header
    payload_at = start + HEADER.size + n_line
    if payload_at + n_payload > size:
        raise Broken(f"{payload_at + n_payload - size:,} of its bytes are missing")
    line = file.read(n_line)
    if found != number or recorded != next_chain(chain, line):
        raise Broken("its row, or what is before it, is not what was recorded")
    return Frame(number, line, recorded, payload_at, payload_at + n_payload)


def later(file, start, number):
    """Whether a header of a later frame than `number` is somewhere after `start`."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(MAGIC, start + 1)
        while at >= 0:
            header = _header(data[at : at + HEADER.size])
            if header and header[0] > number:
                return True
            at = data.find(MAGIC, at + 1)
    return False


def _header(data):
    """[number, bytes of line, bytes of payload, chain], or None where there is no whole header."""
    if len(data) < HEADER.size:
        return None
    magic, *found, checksum = HEADER.unpack(data)
    return found if magic == MAGIC and checksum == zlib.crc32(data[:-4]) else None
