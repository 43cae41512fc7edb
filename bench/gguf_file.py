"""Reads a GGUF file (version 3): facts, and tensors as float32. Only the types that SmolLM2's file has."""

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

STRING, ARRAY, ALIGNMENT = 8, 9, 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, Q4_1, Q8_0 = 0, 3, 8
# Blocks of 32 values: a scale (and a lowest value), then the codes.
BLOCK = 32
LAYOUTS = {
    Q4_1: np.dtype([("step", "<f2"), ("low", "<f2"), ("codes", "u1", BLOCK // 2)]),
    Q8_0: np.dtype([("step", "<f2"), ("codes", "i1", BLOCK)]),
}


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor; `shape` is the usual one, rows first."""

    content: memoryview
    kind: int
    shape: tuple[int, ...]

    def values(self) -> np.ndarray:
        """float32 [*shape]."""
        if self.kind == F32:
            return np.asarray(np.frombuffer(self.content, "<f4").reshape(self.shape))
        blocks, codes = self._blocks(), self._codes()
        low = blocks["low"].astype(np.float32) if self.kind == Q4_1 else np.zeros(len(blocks), np.float32)
        return np.asarray((codes * self._steps() + low[:, None]).reshape(self.shape))

    def dithered(self, generator: np.random.Generator) -> np.ndarray:
        """float32 [*shape] with uniform noise of ± half a quantisation step: off the file's own grid."""
        values = self.values()
        if self.kind == F32:
            return values
        noise = generator.uniform(-0.5, 0.5, (values.size // BLOCK, BLOCK)).astype(np.float32)
        return np.asarray(values + (noise * self._steps()).reshape(self.shape))

    def _blocks(self) -> np.ndarray:
        return np.frombuffer(self.content, LAYOUTS[self.kind])

    def _steps(self) -> np.ndarray:
        return np.asarray(self._blocks()["step"].astype(np.float32)[:, None])

    def _codes(self) -> np.ndarray:
        codes = self._blocks()["codes"]
        return np.concatenate([codes & 15, codes >> 4], axis=1) if self.kind == Q4_1 else codes


@dataclass
class GGUFFile:
    """`facts` by key; `tensors` by name."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, GGUFTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._content, self._position = memoryview(self.path.read_bytes()), 0
        magic, version, num_tensors, num_facts = self._numbers("4sIQQ")
        if (magic, version) != (b"GGUF", 3):
            raise ValueError(f"{self.path} starts with {magic!r} version {version}, expected b'GGUF' version 3.")
        for _ in range(num_facts):
            key = self._string()
            self.facts[key] = self._value(self._numbers("I")[0])
        headers = [self._header() for _ in range(num_tensors)]
        start = -(-self._position // ALIGNMENT) * ALIGNMENT
        for name, shape, kind, offset in headers:
            size = prod(shape) * 4 if kind == F32 else prod(shape) // BLOCK * LAYOUTS[kind].itemsize
            self.tensors[name] = GGUFTensor(self._content[start + offset : start + offset + size], kind, shape)

    def _numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._content, self._position)
        self._position += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        self._position += length
        return bytes(self._content[self._position - length : self._position]).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, length = self._numbers("IQ")
            return [self._value(inner) for _ in range(length)]
        return self._numbers(NUMBERS[kind])[0]

    def _header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._numbers("I")
        shape = self._numbers(f"{dimensions}Q")[::-1]
        kind, offset = self._numbers("IQ")
        return name, shape, kind, offset
