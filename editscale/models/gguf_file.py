"""What a GGUF file holds, read with bounds: a truncated or hostile file gives an error, never much memory.

Every length that the file states is held against the bytes that are there before anything is made of it.

Source: the GGUF specification, version 3 (ggml-org/ggml `docs/gguf.md`).
"""

import math
import mmap
import struct
from dataclasses import dataclass

# Type number of a value ↦ its struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Tensor:
    """One tensor as stored: its GGML type, its shape as rows come first, and its bytes (rows, bytes per row)."""

    kind: int
    shape: tuple
    data: object


def read(path):
    """(facts, tensors) of a GGUF file: metadata by name, and `Tensor`s by name, which read the file when used.

    Raises ValueError that names the file, what is wrong, and where; FileNotFoundError if it is not there.
    """
    import gguf
    import numpy as np

    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            raise ValueError(f"{path} is not a GGUF file: it is empty") from None
    header = _Header(data, path)
    if bytes(header.take(4, "the magic")) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it does not begin with GGUF")
    version = header.number("I", "the version")
    if version not in (2, 3):
        raise ValueError(f"{path} has GGUF version {version}; versions 2 and 3 are read")
    n_tensors, n_facts = header.count(24, "tensors"), header.count(13, "facts")
    facts = {}
    for _ in range(n_facts):
        name = header.string("the name of a fact")
        if name in facts:
            raise header.error(f"fact {name!r} comes twice")
        facts[name] = header.value(header.number("I", f"the type of {name}"), name)
    stated = {}
    for _ in range(n_tensors):
        name = header.string("the name of a tensor")
        if name in stated:
            raise header.error(f"tensor {name!r} comes twice")
        n_dims = header.number("I", f"the dimensions of {name}")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise header.error(f"tensor {name!r} has {n_dims} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(header.number("Q", f"the shape of {name}") for _ in range(n_dims))[::-1]
        stated[name] = shape, header.number("I", f"the type of {name}"), header.number("Q", f"the place of {name}")
    alignment = facts.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.error(f"general.alignment is {alignment!r}, not a power of two")

    start, total, tensors = header.at + -header.at % alignment, 0, {}
    for name, (shape, kind, offset) in stated.items():
        try:
            n_values, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise header.error(f"tensor {name!r} has the unknown type {kind}") from None
        if not all(shape) or shape[-1] % n_values:
            raise header.error(f"tensor {name!r} has shape {shape}; rows of its type hold a multiple of {n_values}")
        row = shape[-1] // n_values * n_bytes
        size = math.prod(shape[:-1]) * row
        if offset % alignment or start + offset + size > len(data):
            raise header.error(
                f"tensor {name!r} of {size:,} bytes at {start + offset:,} is not within the file's {len(data):,} bytes"
            )
        total += size
        if total > len(data):
            raise header.error(f"tensor {name!r} lies over others")
        stored = np.frombuffer(data, np.uint8, size, start + offset)
        tensors[name] = Tensor(kind, shape, stored.reshape(*shape[:-1], row))
    return facts, tensors


class _Header:
    """Reads a header from its beginning; nothing is read beyond the end of the file."""

    def __init__(self, data, path):
        self.data, self.path, self.at = memoryview(data), path, 0

    def error(self, what):
        return ValueError(f"{self.path} is damaged or no model: {what} (near byte {self.at:,}); get the file again")

    def take(self, n, what):
        if n > len(self.data) - self.at:
            raise self.error(f"{what} takes {n:,} bytes, and {len(self.data) - self.at:,} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, kind, what):
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind), what))[0]

    def count(self, least, what):
        """A number of things of at least so many bytes each, which must have room in the file."""
        n = self.number("Q", f"the number of {what}")
        if n * least > len(self.data) - self.at:
            raise self.error(f"it states {n:,} {what}, more than fit into the {len(self.data) - self.at:,} bytes left")
        return n

    def string(self, what):
        raw = bytes(self.take(self.number("Q", f"the length of {what}"), what))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def value(self, kind, name):
        if kind == STRING:
            return self.string(name)
        if kind in SCALARS:
            return self.number(SCALARS[kind], name)
        if kind != ARRAY:
            raise self.error(f"fact {name!r} has the unknown type {kind}")
        kind = self.number("I", f"the item type of {name}")
        if kind in SCALARS:
            size = struct.calcsize("<" + SCALARS[kind])
            n = self.count(size, f"items of {name}")
            return list(struct.unpack(f"<{n}{SCALARS[kind]}", self.take(n * size, name)))
        if kind != STRING:
            raise self.error(f"fact {name!r} is an array of type {kind}; arrays hold numbers or strings")
        return [self.string(f"an item of {name}") for _ in range(self.count(8, f"items of {name}"))]
