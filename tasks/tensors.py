"""Reading safetensors files in blocks, so that no step holds more than a block of an update."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from contracts.errors import ConsiliumError
from strategies.interface import BLOCK


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

    def read(self, name: str, span: slice) -> np.ndarray:
        """Read values [span.start, span.stop) of the flattened tensor as float32."""
        begin, _ = self._offsets[name]
        values = np.empty(span.stop - span.start, dtype="<f4")
        view, filled = memoryview(values.data).cast("B"), 0
        with open(self.path, "rb", buffering=0) as file:
            file.seek(begin + 4 * span.start)
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise ConsiliumError("E501", f"tensor {name!r} ends early")
                filled += count
        return values

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yield the flattened tensor in pieces."""
        size = math.prod(self.shapes[name])
        for start in range(0, size, BLOCK):
            yield self.read(name, slice(start, min(start + BLOCK, size)))

    def whole(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.read(name, slice(0, math.prod(self.shapes[name]))).reshape(self.shapes[name])
