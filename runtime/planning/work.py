"""What inputs of known sizes make the graphs do: the calls they take, and the arithmetic of attention in each."""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.graphs.batching import packs, pieces
from runtime.graphs.target import TARGETS, Target
from runtime.graphs.vision import frames_per_call
from runtime.manifest import TextConfig, VisionConfig
from runtime.planning.workload import Workload
from runtime.prompts.encode import TokenSequence

MULTIPLY_AND_ADD = 2


@dataclass(frozen=True)
class Work:
    """`rows` prompts of `length` tokens each, `text_tokens` of them no visual ones, with these visuals in each.

    `visuals`: (frame pairs or 1, patches of each); `source_pixels`: of the largest picture or frame before resizing.
    """

    rows: int
    length: int
    text_tokens: int
    visuals: tuple[tuple[int, int], ...] = ()
    source_pixels: int = 0

    @property
    def visual_tokens(self) -> int:
        """Of each prompt."""
        return self.length - self.text_tokens


@dataclass(frozen=True)
class DecoderCall:
    """`rows` of `tokens` new tokens each, padding included, after a past of `past` tokens."""

    rows: int
    tokens: int
    past: int = 0


@dataclass(frozen=True)
class VisionCall:
    """`frames` pictures or frame pairs of `patches` each."""

    frames: int
    patches: int


def work_of(workload: Workload, sequence: TokenSequence) -> Work:
    """The work of a workload whose prompts are like `sequence`."""
    length, visual = len(sequence.input_ids), int(sequence.is_visual.sum())
    visuals = tuple((each.grid[0], each.grid[1] * each.grid[2]) for each in workload.loaded.visuals)
    height, width = workload.source
    return Work(workload.count, length, length - visual, visuals, height * width)


def decoder_calls(work: Work, batch_tokens: int, target: Target = TARGETS["cpu"]) -> list[DecoderCall]:
    """The calls of `runtime.graphs.batching.Batches`, nothing shared between the rows."""
    if target.padded(work.length) <= batch_tokens:
        found = packs([work.length] * work.rows, batch_tokens, target=target)
        return [DecoderCall(len(pack), target.padded(work.length)) for pack in found]
    cuts = pieces(0, work.length, batch_tokens, target)
    return [DecoderCall(1, target.padded(stop - start), start) for _ in range(work.rows) for start, stop in cuts]


def vision_calls(work: Work, target: Target = TARGETS["cpu"]) -> Iterator[VisionCall]:
    """The calls of `runtime.graphs.vision.VisionEncoder`."""
    for frames, patches in work.visuals * work.rows:
        step = frames_per_call(patches, target.batch_patches)
        for start in range(0, frames, step):
            yield VisionCall(min(step, frames - start), patches)


def decoder_attention(text: TextConfig, call: DecoderCall) -> float:
    """Operations of attention: two products a pair of tokens, causal; the last layer's one token is left out."""
    pairs = call.rows * call.tokens * (call.past + (call.tokens + 1) / 2)
    layers = text.num_hidden_layers - 1
    return 2.0 * MULTIPLY_AND_ADD * text.num_attention_heads * text.head_dim * layers * pairs


def vision_attention(vision: VisionConfig, call: VisionCall) -> float:
    """Operations of attention: two products a pair of patches of one picture or frame pair."""
    return 2.0 * MULTIPLY_AND_ADD * vision.hidden_size * vision.depth * call.frames * call.patches**2
