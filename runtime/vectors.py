"""What is done to embeddings after the graph: Matryoshka cut, then L2 norm."""

import numpy as np

from runtime.errors import InputError, NotFiniteError

EPSILON = 1e-12  # torch.nn.functional.normalize's


def require_dimensions(dimensions: int | None, hidden_size: int) -> int:
    """`dimensions`, or all of them for None. Raises InputError outside 1 … hidden_size."""
    if dimensions is None:
        return hidden_size
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= hidden_size:
        raise InputError(f"dimensions is {dimensions!r}, expected a whole number from 1 to {hidden_size}.")
    return dimensions


def finish(embeddings: np.ndarray, dimensions: int, normalize: bool) -> np.ndarray:
    """Cut float32 [N, D] to `dimensions`, then divide each row by its L2 norm if asked."""
    cut = embeddings[:, :dimensions]
    if not normalize:
        return cut
    norms = np.sqrt(np.sum(np.square(cut, dtype=np.float64), axis=1, keepdims=True))
    unit: np.ndarray = (cut / np.maximum(norms, EPSILON)).astype(np.float32)
    return unit


def require_finite(values: np.ndarray, what: str) -> None:
    """Raise NotFiniteError where there is NaN or infinity."""
    if not np.isfinite(values).all():
        raise NotFiniteError(f"{what} is not finite; check the package with python -m runtime check.")
