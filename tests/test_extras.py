"""The sentence about a library of an extra: what is missing, what is there and of no use."""

import pytest

from runtime import MissingExtraError
from runtime.extras import needing_extra


@pytest.mark.parametrize(
    ("error", "what", "said"),
    [
        (ModuleNotFoundError(name="av"), "video files need PyAV", "video files need PyAV, which is not installed"),
        (ModuleNotFoundError(name="onnx"), "", "this needs onnx, which is not installed"),
        (ImportError("too old", name="onnx"), "", "this needs onnx, which cannot be imported (too old)"),
        (ImportError("no DLL"), "", "this needs a library, which cannot be imported (no DLL)"),
    ],
)
def test_a_library_that_is_broken_is_not_called_missing(error: ImportError, what: str, said: str) -> None:
    with pytest.raises(MissingExtraError) as caught, needing_extra("video", what):
        raise error
    assert str(caught.value) == f'{said}; run pip install "qwen3vl-edge[video]".'
