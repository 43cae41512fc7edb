"""One safetensors file: its header in, tensors that read themselves as float32 out.

Data is read by offset, never mapped: a mapped file grows the resident set by all that was touched, and an
exporter touches everything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CheckpointError
from runtime.json_text import parse_json

BLOCK_BYTES = 64 * 2**20
MAX_READ_BYTES = 256 * 2**20
PIECE_BYTES = 4 * 2**20  # of one read

_STORED: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk; `dtype` is its stored type (BF16, F16 or F32), what is read is always float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # of the first element in the file
    file: FileIO

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return math.prod(self.shape) * _STORED[self.dtype].itemsize

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start:stop` of axis 0, float32 [stop - start, ...]; a scalar is one row, shape []."""
        count, row_elements = self._layout()
        if not 0 <= start <= stop <= count:
            raise ValueError(f"rows {start}:{stop} of {self.name}, which has {count}")
        stored = _STORED[self.dtype]
        values = np.empty((stop - start) * row_elements, np.float32)
        # Piece by piece, so that the stored bytes never stand in memory beside their float32 copy.
        piece = np.empty(min(values.size, PIECE_BYTES // stored.itemsize), stored)
        self.file.seek(self.offset + start * row_elements * stored.itemsize)
        for first in range(0, values.size, max(piece.size, 1)):
            target = values[first : first + piece.size]
            source = piece[: target.size]
            read_into(self.file, source)
            if self.dtype == "BF16":
                bits = target.view(np.uint32)
                bits[:] = source
                bits <<= 16
            else:
                target[:] = source
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[NDArray[np.float32]]:
        """All rows in order, as many at a time as fit in `max_bytes` of float32."""
        count, row_elements = self._layout()
        if 4 * row_elements > max_bytes:
            raise ValueError(f"one row of {self.name} is {4 * row_elements} bytes, over max_bytes={max_bytes}")
        step = max_bytes // max(4 * row_elements, 1)
        for start in range(0, count, step):
            yield self.rows(start, min(start + step, count))

    def read(self) -> NDArray[np.float32]:
        """The whole tensor, float32 [*shape]; ValueError over 256 MiB, where `blocks` is meant."""
        count, row_elements = self._layout()
        if 4 * count * row_elements > MAX_READ_BYTES:
            raise ValueError(f"{self.name} is over {MAX_READ_BYTES} bytes of float32, read it by blocks()")
        return self.rows(0, count)

    def _layout(self) -> tuple[int, int]:
        """(rows, elements per row)."""
        return (self.shape[0], math.prod(self.shape[1:])) if self.shape else (1, 1)


def open_tensors(file: FileIO) -> list[Tensor]:
    """The tensors of an open safetensors file, which stays open for them.

    Raises CheckpointError when the header cannot be read, when it and the file's size disagree, or when a
    tensor is of a type other than BF16, F16 and F32.
    """
    path = Path(str(file.name))
    file_bytes = path.stat().st_size
    length_field = file.read(8)
    if length_field == b"version ":
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights: run git lfs pull in its folder.")
    header_bytes = int.from_bytes(length_field, "little")
    try:
        if len(length_field) < 8 or header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise ValueError(f"{file_bytes} bytes cannot hold it")
        raw = np.empty(header_bytes, np.uint8)
        read_into(file, raw)
        header = parse_json(raw.tobytes(), unique_keys)
        header.pop("__metadata__", None)
        tensors = [_tensor(name, entry, 8 + header_bytes, file) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has no readable safetensors header ({error}): the file is cut or damaged, download it again."
        ) from error
    end = 8 + header_bytes
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise CheckpointError(
                f"{path} has tensor {tensor.name} at byte {tensor.offset} where {end} was expected: "
                "its header is damaged, download the file again."
            )
        end += tensor.nbytes
    if end != file_bytes:
        raise CheckpointError(
            f"{path} has {file_bytes} bytes where its header leads to {end}: "
            "the file is cut or damaged, run the download again."
        )
    return tensors


def read_into(file: FileIO, target: NDArray[Any]) -> None:
    """Fill a contiguous array from the file's position; CheckpointError where the file ends before or fails."""
    view = target.data.cast("B")
    done = 0
    while done < len(view):  # one raw read may bring less than asked
        try:
            count = file.readinto(view[done:])
        except OSError as error:
            raise CheckpointError(
                f"{file.name} cannot be read ({error.strerror}): check the disk it is on and run again."
            ) from error
        if not count:
            raise CheckpointError(f"{file.name} ended while being read: leave it alone and run again.")
        done += count


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError where a key stands twice, which json would let pass."""
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} stands in it twice")
    return keys


def _tensor(name: str, entry: dict[str, Any], data_start: int, file: FileIO) -> Tensor:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in _STORED:
        raise CheckpointError(
            f"Tensor {name} in {file.name} is {entry['dtype']} where BF16, F16 or F32 was expected: "
            "use the checkpoint as published, not a quantised copy."
        )
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start, stop)):
        raise ValueError(f"{name} has shape {list(shape)} at {start}:{stop}")
    tensor = Tensor(name, shape, entry["dtype"], data_start + start, file)
    if tensor.nbytes != stop - start:
        raise ValueError(f"{name} is {tensor.nbytes} bytes by its shape and {stop - start} by its place")
    return tensor
