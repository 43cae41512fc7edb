"""Evenly spaced float32 numbers, against torch bit by bit."""

import platform

import numpy as np
import pytest

from runtime.media.linspace import linspace

COUNTS = [*range(1, 260), *range(260, 5001, 79), 4096, 5000]
PARALLEL_COUNTS = [32767, 32768, 32769, 100_003]  # torch splits from 32,768 numbers on


def test_by_hand() -> None:
    assert linspace(47, 1).tolist() == [0]
    assert linspace(0, 3).tolist() == [0, 0, 0]
    assert linspace(1, 2).tolist() == [0, 1]
    assert linspace(6, 4).tolist() == [0, 2, 4, 6]
    assert linspace(1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert linspace(47, 9).dtype == np.float32


def test_the_right_half_counts_down_from_the_last() -> None:
    step = np.float32(47) / np.float32(61)
    spaced = linspace(47, 62)
    assert spaced[30] == step * np.float32(30)
    assert spaced[-1] == 47
    assert spaced[-2] == np.float32(47 - np.float64(step))


def test_a_floor_of_numpys_would_differ() -> None:
    """In a picture of 330 patches one column would get another neighbour of the position table."""
    assert not np.array_equal(np.floor(linspace(47, 330)), np.floor(np.linspace(0, 47, 330, dtype=np.float32)))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="repeats the x86 build of torch")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("last", [0, 1, 47, 63, 299, 1799.0, 3.7, 123_457, 2**24 - 1])
def test_equals_torch(last: float, threads: int) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in [*COUNTS, *PARALLEL_COUNTS]:
            expected = torch.linspace(0, last, count).numpy()
            assert np.array_equal(linspace(last, count), expected), count
    finally:
        torch.set_num_threads(before)
