"""Seconds predicted from few timed runs: the fit, and the choice of sizes, against machines whose cost is known."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B

from runtime.graphs.decoder import Span
from runtime.graphs.past import Past, empty_past
from runtime.graphs.target import TARGETS
from runtime.graphs.vision import VisualFeatures
from runtime.manifest import Manifest
from runtime.media.image import PatchGrid, Visual
from runtime.planning.pace import PAST, Cost, Pace, Point, decoder_cost, fit, vision_cost
from runtime.planning.work import (
    DecoderCall,
    VisionCall,
    Work,
    decoder_attention,
    decoder_calls,
    vision_attention,
    vision_calls,
)


@pytest.fixture
def manifest(package: Callable[..., Path]) -> Manifest:
    return Manifest.read(package(TINY_2B, "embedding"))


class Machine:
    """A clock, and graphs that move it by a known cost instead of running."""

    def __init__(self, manifest: Manifest, cost: Cost):
        self.manifest, self.cost, self.now = manifest, cost, 0.0
        self.calls: list[tuple[int, int]] = []

    def clock(self) -> float:
        return self.now

    def pooled(self, batch: Sequence[Span], past: Past | None = None) -> None:
        call = DecoderCall(len(batch), len(batch[0]), past.length if past else 0)
        self.calls.append((call.tokens, call.past))
        self.now += self.cost.seconds(call.rows * call.tokens, decoder_attention(self.manifest.text, call))

    def empty_past(self, capacity: int) -> Past:
        return empty_past(self.manifest.text, 1, capacity)

    def features(self, visuals: Sequence[Visual]) -> list[VisualFeatures]:
        (visual,) = visuals
        call = VisionCall(1, visual.patches.shape[1])
        self.calls.append((call.patches, 0))
        self.now += self.cost.seconds(call.patches, vision_attention(self.manifest.vision, call))
        return [VisualFeatures(np.zeros((visual.num_tokens, 1), np.float32), np.zeros((0, 0, 0), np.float32))]


def as_list(cost: Cost) -> list[float]:
    return [cost.call, cost.unit, cost.operation]


def test_three_points_give_the_cost_that_they_come_from() -> None:
    cost = Cost(0.05, 0.002, 5e-12)
    points = [Point(units, flop, cost.seconds(units, flop)) for units, flop in ((32, 1e8), (256, 1e10), (256, 6e10))]
    assert as_list(fit(points)) == pytest.approx(as_list(cost))


def test_no_part_of_a_cost_is_negative() -> None:
    # Noise: the longer run took less than its share, and the past made it faster.
    noisy = fit([Point(32, 1e6, 0.10), Point(64, 2e6, 0.25), Point(64, 9e6, 0.24)])
    assert min(as_list(noisy)) >= 0
    assert noisy.seconds(64, 2e6) == pytest.approx(0.24, rel=0.3)


@pytest.mark.parametrize("unit", [1e-5, 2e-3, 2e-2], ids=["tiny", "2b", "slow"])
def test_the_decoders_cost_is_found_whatever_the_machine(manifest: Manifest, unit: float) -> None:
    machine = Machine(manifest, Cost(0.01, unit, 1e-11))
    found = decoder_cost(machine, manifest, 1024, machine.clock)  # type: ignore[arg-type]
    assert as_list(found) == pytest.approx(as_list(machine.cost), rel=1e-3)
    assert {past for _, past in machine.calls} == {0, PAST}


def test_sizes_follow_the_pace_of_the_machine(manifest: Manifest) -> None:
    longest = {}
    for name, unit in (("fast", 1e-4), ("2b", 2e-3), ("slow", 2e-2)):
        machine = Machine(manifest, Cost(0.01, unit, 0))
        decoder_cost(machine, manifest, 1024, machine.clock)  # type: ignore[arg-type]
        longest[name] = max(tokens for tokens, _ in machine.calls)
        assert machine.now < 20
    assert longest["fast"] == 1024 > longest["2b"] > longest["slow"] >= 32


def test_no_call_is_longer_than_those_of_the_package(manifest: Manifest) -> None:
    machine = Machine(manifest, Cost(0, 1e-6, 0))
    decoder_cost(machine, manifest, 16, machine.clock)  # type: ignore[arg-type]
    assert max(tokens for tokens, _ in machine.calls) == 16


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e-1], ids=["tiny", "2b", "slow"])
def test_the_vision_encoders_cost_is_found(manifest: Manifest, unit: float) -> None:
    machine = Machine(manifest, Cost(0.02, unit, 1e-9 * unit))
    found = vision_cost(machine, manifest, PatchGrid(), machine.clock)  # type: ignore[arg-type]
    assert as_list(found) == pytest.approx(as_list(machine.cost), rel=1e-3)
    largest = max(patches for patches, _ in machine.calls)
    assert largest == (64**2 if unit == 1e-6 else 24**2 if unit == 1e-1 else largest)


def test_long_texts_are_the_sum_of_their_pieces(manifest: Manifest) -> None:
    pace = Pace(Cost(1, 0.01, 0))
    assert pace.seconds(Work(1, 1000, 1000), manifest, 1024) == pytest.approx(1 + 10)
    assert pace.seconds(Work(1, 2500, 2500), manifest, 1000) == pytest.approx(3 + 25)
    assert pace.seconds(Work(4, 128, 128), manifest, 1024) == pytest.approx(1 + 5.12)
    assert pace.seconds(Work(4, 512, 512), manifest, 1024) == pytest.approx(2 + 20.48)


def test_attention_grows_with_the_square_and_pieces_add_up(manifest: Manifest) -> None:
    def operations(length: int, batch_tokens: int) -> float:
        return sum(
            decoder_attention(manifest.text, call) for call in decoder_calls(Work(1, length, length), batch_tokens)
        )

    assert operations(4000, 10_000) == pytest.approx(4 * operations(2000, 10_000), rel=1e-3)
    assert operations(4000, 1000) == pytest.approx(operations(4000, 10_000), rel=1e-3)
    text = manifest.text
    width = text.num_attention_heads * text.head_dim * (text.num_hidden_layers - 1)
    assert operations(4000, 10_000) == pytest.approx(4 * width * 4000**2 / 2, rel=1e-3)


def test_frames_attend_to_themselves_only(manifest: Manifest) -> None:
    def operations(*visuals: tuple[int, int]) -> float:
        work = Work(1, 100, 0, visuals)
        return sum(vision_attention(manifest.vision, call) for call in vision_calls(work))

    assert operations((8, 1000)) == operations(*[(1, 1000)] * 8)
    assert operations((1, 2000)) == 2 * operations((2, 1000))
    assert [call.frames for call in vision_calls(Work(1, 100, 0, ((20, 1000),)))] == [2] * 10
    on_cuda = vision_calls(Work(1, 100, 0, ((20, 1000),)), TARGETS["cuda"])
    assert [call.frames for call in on_cuda] == [8, 8, 4]


def test_the_vision_encoder_must_have_been_timed_for_a_picture(manifest: Manifest) -> None:
    picture = Work(1, 300, 44, ((1, 1024),))
    both = Pace(Cost(0, 0, 0), Cost(0.5, 0.001, 0))
    assert both.seconds(picture, manifest, 1024) == pytest.approx(0.5 + 1.024)
    with pytest.raises(AssertionError, match="not timed"):
        Pace(Cost(0, 0, 0)).seconds(picture, manifest, 1024)
