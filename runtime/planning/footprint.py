"""The peak memory of a call, as a sum of parts that follow from the sizes in the manifest.

A call goes through phases: a visual is read, the vision graph runs, the decoder runs. What each of them holds at its
widest is added up; the peak is that of the largest phase. The figures are of a process that has run the like before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.graphs.memory import MemoryPolicy, Resident
from runtime.graphs.model import graph_file
from runtime.graphs.vision import pieces_of
from runtime.manifest import DECODER, VISION, Manifest
from runtime.planning.weights import FLOAT_BYTES, graph_weights, table_bytes, unpacking_bytes
from runtime.planning.work import Work, decoder_calls, vision_calls

# Where the system does not tell: Python, the libraries, and tokenizer.json, whose reading takes most.
PROCESS = Resident(anonymous=125_000_000, mapped=50_000_000)
PILLOW_BYTES = 4  # a pixel
# Linux maps this much of a file around a row of the token table that is read.
MAPPED_AROUND = 2**16


@dataclass(frozen=True)
class Part:
    """Bytes with the reason for them."""

    name: str
    anonymous: int
    mapped: int = 0


@dataclass(frozen=True)
class Phase:
    """What is held at the same time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def anonymous(self) -> int:
        """Bytes of the process's own."""
        return sum(part.anonymous for part in self.parts)

    @property
    def mapped(self) -> int:
        """Bytes of files, which the system may drop and read again."""
        return sum(part.mapped for part in self.parts)

    @property
    def resident(self) -> int:
        """Both."""
        return self.anonymous + self.mapped


class Footprint:
    """The memory of one package under one policy; `process` is what a process holds before a graph is opened.

    `copied` as in `runtime.planning.weights.graph_weights`.
    """

    def __init__(self, manifest: Manifest, policy: MemoryPolicy, batch_tokens: int, process: Resident, copied: bool):
        self._text, self._vision, self._batch_tokens = manifest.text, manifest.vision, batch_tokens
        self._keep_vision, self._keep_buffers = policy.keep_vision, not policy.graphs[DECODER].shrink
        decoder, vision = (graph_weights(manifest, name, policy.graphs[name], copied) for name in (DECODER, VISION))
        self._always = (
            Part("process, libraries, tokenizer", process.anonymous, process.mapped),
            Part("weights of the decoder", decoder.anonymous, decoder.mapped),
        )
        self._in_pieces = graph_file(manifest, VISION) == VISION
        self._vision_weights = Part("weights of the vision encoder", vision.anonymous, vision.mapped)
        self._table, self._unpacking = table_bytes(manifest), unpacking_bytes(manifest)

    def phases(self, work: Work) -> list[Phase]:
        """Reading and vision where there are visuals, then the decoder."""
        decoder = Phase("decoder", (*self._always, *self._kept(work), *self._decoder(work)))
        if not work.visuals:
            return [decoder]
        reading = Phase("reading", (*self._always, *self._left(work), *self._kept(work), *self._reading(work)))
        vision = Phase("vision", (*self._always, *self._left(work), self._vision_weights, *self._encoding(work)))
        return [reading, vision, decoder]

    def peak(self, work: Work) -> Resident:
        """The largest of each kind over the phases; they need not be of the same moment."""
        phases = self.phases(work)
        return Resident(max(each.anonymous for each in phases), max(each.mapped for each in phases))

    def largest(self, work: Work) -> Phase:
        """The phase that decides how much memory a machine must have."""
        return max(self.phases(work), key=lambda phase: phase.resident)

    def _kept(self, work: Work) -> Sequence[Part]:
        return [self._vision_weights] if work.visuals and self._keep_vision else []

    def _reading(self, work: Work) -> list[Part]:
        patches = self._patches(work)
        # The frames as uint8, and once more in the order of the patches.
        copies = 2 * patches // FLOAT_BYTES
        pixels = 2 * PILLOW_BYTES * work.source_pixels
        return [Part("picture or frame, and as RGB", pixels), Part("patches, and their bytes", patches + copies)]

    def _encoding(self, work: Work) -> list[Part]:
        vision, levels = self._vision, len(self._vision.deepstack_visual_indexes)
        together = max(call.frames * call.patches for call in vision_calls(work))
        piece = together // pieces_of(together) if self._in_pieces else together
        # In attention q, k and v, the same by heads, what comes out and the hidden state; in the MLP what goes into
        # Gelu, what comes out and its scratch, and of all rows what attention gave and the hidden states beside it.
        attention = together * 8 * vision.hidden_size
        mlp = piece * 3 * vision.intermediate_size + together * (3 if self._in_pieces else 1) * vision.hidden_size
        deepstack = together * levels * vision.out_hidden_size // vision.spatial_merge_size**2
        return [
            Part("patches", self._patches(work)),
            Part("buffers of the vision encoder", FLOAT_BYTES * (max(attention, mlp) + deepstack)),
            Part("features, and as outputs", 2 * work.rows * work.visual_tokens * self._feature()),
        ]

    def _decoder(self, work: Work) -> list[Part]:
        text, calls = self._text, decoder_calls(work, self._batch_tokens)
        held = max(call.rows * (call.past + call.tokens) for call in calls)
        together = max(call.rows * call.tokens for call in calls)
        layer = 2 * FLOAT_BYTES * text.num_key_value_heads * text.head_dim
        # At its widest in the MLP: gate, up and their product, three hidden states beside them.
        widest = together * FLOAT_BYTES * 3 * (text.intermediate_size + text.hidden_size)
        # The last layer's keys and values grow by copies, when the MLP's buffers are free again.
        joined = 2 * layer * held if len(calls) > work.rows else 0
        visual, rows = work.rows * work.visual_tokens, work.rows * work.text_tokens
        return [
            Part("rows of the token table", 0, min(self._table, rows * MAPPED_AROUND)),
            Part("keys and values", held * layer * text.num_hidden_layers),
            Part("buffers of the decoder", self._unpacking + max(widest, joined)),
            Part("features, and those of a call", (visual + min(visual, together)) * self._feature()),
        ]

    def _left(self, work: Work) -> Sequence[Part]:
        """What the decoder keeps from the call before, unless its buffers are given back."""
        parts = {part.name: part.anonymous for part in self._decoder(work)}
        return [Part("buffers that the decoder keeps", parts["buffers of the decoder"])] if self._keep_buffers else []

    def _patches(self, work: Work) -> int:
        vision = self._vision
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return FLOAT_BYTES * numbers * sum(frames * patches for frames, patches in work.visuals * work.rows)

    def _feature(self) -> int:
        """Bytes of one visual token: the token itself and its DeepStack levels."""
        return FLOAT_BYTES * self._vision.out_hidden_size * (1 + len(self._vision.deepstack_visual_indexes))
