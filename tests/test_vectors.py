"""Matryoshka cut and L2 norm, against torch."""

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.vectors import finish, require_dimensions


def test_cut_comes_before_the_norm() -> None:
    rows = np.array([[3, 4, 12], [0, -2, 5]], np.float32)
    assert finish(rows, 2, True).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, -1]]
    assert finish(rows, 2, False).tolist() == [[3, 4], [0, -2]]
    assert rows.tolist() == [[3, 4, 12], [0, -2, 5]]


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e-3, 1, 1e6, 1e30])
def test_equals_torch(scale: float) -> None:
    torch = pytest.importorskip("torch")
    rows = (np.random.default_rng(0).standard_normal((50, 256)) * scale).astype(np.float32)
    rows[7] = 0
    for dimensions in (1, 64, 256):
        expected = torch.from_numpy(rows[:, :dimensions])
        if scale == 1e30:  # torch's float32 sum of squares overflows there, ours does not
            expected = expected.double()
        expected = torch.nn.functional.normalize(expected, p=2, dim=-1).numpy()
        found = finish(rows, dimensions, True)
        assert found.dtype == np.float32
        # torch sums the squares in float32, and those of 1e-30 vanish there: both norms are then below epsilon.
        assert np.abs(found - expected).max() <= 1.2e-7
        assert not found[7].any()


def test_no_rows() -> None:
    assert finish(np.zeros((0, 8), np.float32), 4, True).shape == (0, 4)


def test_dimensions() -> None:
    assert require_dimensions(None, 2048) == 2048
    assert require_dimensions(1, 2048) == 1
    assert require_dimensions(2048, 2048) == 2048


@pytest.mark.parametrize("dimensions", [0, -1, 2049, 64.0, True, "64"])
def test_dimensions_refused(dimensions: object) -> None:
    with pytest.raises(InputError) as caught:
        require_dimensions(dimensions, 2048)  # type: ignore[arg-type]
    assert str(caught.value) == f"dimensions is {dimensions!r}, expected a whole number from 1 to 2048."
