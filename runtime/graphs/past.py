"""Keys and values of tokens already seen, so that what follows them need not run them again.

Shapes: B rows, C capacity, P tokens held, H key/value heads, h head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from runtime.manifest import TextConfig

KINDS = ("key", "value")
KEPT = 4  # an embedder's instructions for queries and documents, and some more


@dataclass(eq=False)
class Past:
    """The past of B rows that all hold the same P tokens.

    `buffers[kind][layer]` float32 [B, H, C, h], for every layer but the last: the graph appends to them in place, what
    lies behind P is left over from before. `last[kind]` float32 [B, H, P, h]: the last layer's grow by concatenation.
    """

    length: int
    buffers: dict[str, list[np.ndarray]]
    last: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.last["key"])

    @property
    def capacity(self) -> int:
        """C: no row may grow longer."""
        return int(self.buffers["key"][0].shape[2])

    def last_with_room(self, kind: str) -> np.ndarray:
        """`last[kind]` with zeros up to the capacity, float32 [B, H, C, h]."""
        return np.pad(self.last[kind], [(0, 0), (0, 0), (0, self.capacity - self.length), (0, 0)])

    def repeated(self, rows: int, capacity: int) -> "Past":
        """The tokens of the first row in each of `rows` new ones, with room for `capacity` tokens."""
        _, heads, _, width = self.buffers["key"][0].shape
        buffers = _buffers(len(self.buffers["key"]), (rows, heads, capacity, width))
        for kind in KINDS:
            for new, old in zip(buffers[kind], self.buffers[kind], strict=True):
                new[:, :, : self.length] = old[:1, :, : self.length]
        last = {kind: np.repeat(self.last[kind][:1], rows, axis=0) for kind in KINDS}
        return Past(self.length, buffers, last)

    def first(self, rows: int) -> "Past":
        """A view of the first `rows` rows."""
        buffers = {kind: [array[:rows] for array in self.buffers[kind]] for kind in KINDS}
        return Past(self.length, buffers, {kind: self.last[kind][:rows] for kind in KINDS})

    def cut(self, length: int) -> "Past":
        """A view that holds the first `length` tokens only: what came later never changed them."""
        last = {kind: np.ascontiguousarray(self.last[kind][:, :, :length]) for kind in KINDS}
        return Past(length, self.buffers, last)


class KeptPasts:
    """The pasts of what prompts began with lately, by their token ids. May be used from several threads."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Past | None] = {}  # replaced as a whole, what was used last comes first

    def get(self, ids: np.ndarray, compute: Callable[[], Past]) -> Past | None:
        """The past of `ids` int64 [P], to be read only; computed the second time that it is asked for, None before."""
        key, kept = ids.tobytes(), self._kept
        past = kept[key] or compute() if key in kept else None
        latest = {key: past} | {other: kept[other] for other in kept if other != key}
        self._kept = dict(islice(latest.items(), KEPT))
        return past


def empty_past(text: TextConfig, rows: int, capacity: int) -> Past:
    """A past of no tokens. Memory is taken as it fills: 8 · H · h bytes a token, row and layer."""
    heads, width = text.num_key_value_heads, text.head_dim
    buffers = _buffers(text.num_hidden_layers - 1, (rows, heads, capacity, width))
    return Past(0, buffers, {kind: np.zeros((rows, heads, 0, width), np.float32) for kind in KINDS})


def _buffers(layers: int, shape: tuple[int, ...]) -> dict[str, list[np.ndarray]]:
    """Zeros of that shape for every kind and layer."""
    # In one piece, which Linux gives in large pages: touching it first takes a quarter of the time of many small ones.
    whole = np.zeros((len(KINDS), layers, *shape), np.float32)
    return {kind: list(each) for kind, each in zip(KINDS, whole, strict=True)}
