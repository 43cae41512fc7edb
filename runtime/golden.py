"""Golden inputs of a package: what they gave when it was made, and what they give here.

golden.json
├── instructions   of the processor it was made on, as `machine_facts` names them
├── inputs         as `process` takes them: items of an embedder, requests of one document of a reranker
├── float32        what the float32 graph gives: unit vectors [N, D] or scores [N]
└── package        what this package gave; null where it was made for a provider that the export did not have
Arrays are float32, little endian, in base64; pictures are data: URIs.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import PackageError
from runtime.json_text import read_json
from runtime.manifest import GOLDEN, Manifest
from runtime.reranker import Qwen3VLReranker

# Cosines of vectors and differences of scores, where the same kernels run as when the package was made, and elsewhere:
# others add float32 in another order, and int8 activations that lie between two codes then take the other one. Wrong
# weights or a wrong product are far below. Float packages keep the first everywhere.
SAME, ELSEWHERE = 0.99999, 0.99
SAME_SCORE, ELSEWHERE_SCORE = 1e-4, 5e-2
FLOAT = "fp32"


@dataclass(frozen=True, eq=False)
class Golden:
    """Shapes: N inputs, D hidden."""

    instructions: str
    inputs: tuple[dict[str, Any], ...]
    float32: np.ndarray
    package: np.ndarray | None

    def write(self, folder: Path) -> None:
        """Write golden.json."""
        content = asdict(self) | {"float32": _packed(self.float32)}
        content["package"] = None if self.package is None else _packed(self.package)
        (folder / GOLDEN).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> Self:
        """The golden inputs of a package. Raises PackageError where it has none or they cannot be read."""
        if GOLDEN not in {file.name for file in manifest.files}:
            raise PackageError(
                f"{folder} has no golden inputs (it was exported with --golden none); export it again without that."
            )
        path = folder / GOLDEN
        try:
            content = read_json(path)
            size = manifest.text.hidden_size if manifest.task == "embedding" else None
            own, inputs = content["package"], tuple(content["inputs"])
            float32 = _unpacked(content["float32"], size)
            package = None if own is None else _unpacked(own, size)
            if not inputs or any(len(each) != len(inputs) for each in (float32, package) if each is not None):
                raise ValueError(f"{len(inputs)} inputs and {len(float32)} results")
            return cls(content["instructions"], inputs, float32, package)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PackageError(f"{path} cannot be read ({error}); export the package again.") from error


def golden_results(model: Qwen3VLEmbedder | Qwen3VLReranker, golden: Golden) -> np.ndarray:
    """What a package gives here, an input at a time: unit vectors [N, D] or scores [N], float32."""
    if isinstance(model, Qwen3VLEmbedder):
        return np.concatenate([model.process([item]) for item in golden.inputs])
    return np.array([model.process(request)[0] for request in golden.inputs], np.float32)


@dataclass(frozen=True)
class Agreement:
    """One input: cosine of two vectors, or the difference of two scores, and the bound it has to keep."""

    name: str
    against: str
    value: float
    bound: float
    is_cosine: bool

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.value >= self.bound if self.is_cosine else self.value <= self.bound


def agreements(golden: Golden, found: np.ndarray, precision: str, same_kernels: bool) -> list[Agreement]:
    """Against what the package gave when it was made, or, where that is not known, against float32."""
    against, expected = ("float32", golden.float32) if golden.package is None else ("this package", golden.package)
    same = golden.package is not None and (same_kernels or precision == FLOAT)
    cosine, score = (SAME, SAME_SCORE) if same else (ELSEWHERE, ELSEWHERE_SCORE)
    is_cosine = found.ndim == 2
    values = (found * expected).sum(axis=1) if is_cosine else np.abs(found - expected)
    return [
        Agreement(f"input {n}: {describe(item)}", against, float(value), cosine if is_cosine else score, is_cosine)
        for n, (item, value) in enumerate(zip(golden.inputs, values, strict=True))
    ]


def describe(item: dict[str, Any]) -> str:
    """A few words about an input."""
    content = item["documents"][0] if "documents" in item else item
    words = [repr(content["text"])] if "text" in content else []
    return " and ".join([*(["a picture"] if "image" in content else []), *words])


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _unpacked(text: str, size: int | None) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    return array if size is None else array.reshape(-1, size)
