"""Reading safetensors files in blocks, so that no step holds more than a block of an update."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from contracts.errors import ConsiliumError

BLOCK = 1 << 18  # float32 values: 1 MiB, which stays in the processor's cache


class TensorFile:
    """A safetensors file of float32 tensors.

    Raises:
        ConsiliumError: E501, not a safetensors file or a tensor that is not float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._offsets: dict[str, tuple[int, int]] = {}
        try:
            # The library checks that header, offsets and file length agree; only then are offsets used.
            with safe_open(path, framework="numpy") as checked:
                names = set(checked.keys())
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
        except (OSError, SafetensorError, ValueError, struct.error) as error:
            raise ConsiliumError("E501", f"not a safetensors file: {error}") from error
        for name in sorted(names):
            if header[name]["dtype"] != "F32":
                raise ConsiliumError("E501", f"tensor {name!r} is {header[name]['dtype']}, expected F32")
            begin, end = header[name]["data_offsets"]
            self.shapes[name] = tuple(header[name]["shape"])
            self._offsets[name] = (8 + length + begin, 8 + length + end)

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (range in the flattened tensor, values); the array is reused for the next block."""
        begin, end = self._offsets[name]
        buffer = np.empty(min(BLOCK, (end - begin) // 4), dtype="<f4")
        with open(self.path, "rb", buffering=0) as file:
            file.seek(begin)
            position, size = 0, (end - begin) // 4
            while position < size:
                part = buffer[: min(BLOCK, size - position)]
                view, filled = memoryview(part.data).cast("B"), 0
                while filled < len(view):
                    filled += file.readinto(view[filled:]) or 0
                yield slice(position, position + len(part)), part
                position += len(part)

    def whole(self, name: str) -> np.ndarray:
        """Read one tensor."""
        array = np.empty(int(np.prod(self.shapes[name], dtype=np.int64)), dtype=np.float32)
        for span, values in self.blocks(name):
            array[span] = values
        return array.reshape(self.shapes[name])
