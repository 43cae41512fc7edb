"""The package on disk: `manifest.json` and the files it lists. The reader owns the format.

package/
├── manifest.json        this dataclass: every fact the runtime needs
├── decoder.onnx         token rows, decoder layers, head       decoder.onnx.data   its weights
├── decoder.uint8.onnx   where decoder.onnx unpacks 4-bit weights: the same for processors without VNNI, same weights
├── vision.onnx          patches to visual tokens, DeepStack    vision.onnx.data    its weights
├── vision.uint8.onnx    where vision.onnx has int8 products: the same for processors without VNNI, same weights
├── tokenizer.json       the checkpoint's own tokenizer, untouched
├── golden.json          optional: a few inputs and what they give (runtime/golden.py)
└── verify.json          optional: what `python -m export --verify` measured
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from runtime.errors import PackageError
from runtime.json_text import read_json
from runtime.replacing import set_aside, take_back
from runtime.typed_json import decoded

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
DECODER, VISION, TOKENIZER, VERIFY = "decoder.onnx", "vision.onnx", "tokenizer.json", "verify.json"
GOLDEN = "golden.json"
# In packages whose DECODER unpacks 4-bit weights: the same on uint8 products, for processors that saturate int8 ones.
DECODER_UINT8 = "decoder.uint8.onnx"
# In packages whose VISION multiplies uint8 by int8 in pieces of rows: the same with all rows at once.
VISION_UINT8 = "vision.uint8.onnx"
HASH_CHUNK = 4 * 2**20
# Graphs are small and decide what is computed: they are hashed at every load; weights only by `check`.
HASHED_AT_LOAD = (DECODER, DECODER_UINT8, VISION, VISION_UINT8)

Task = Literal["embedding", "reranker"]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the language backbone, named as in `config.json` under `text_config`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder, named as in `config.json` under `vision_config`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]


@dataclass(frozen=True)
class TokenIds:
    """Token ids the runtime meets: the pad, the visual markers and everything that truncation must keep."""

    pad: int
    image: int
    video: int
    vision_start: int
    vision_end: int
    special: tuple[int, ...]


@dataclass(frozen=True)
class Defaults:
    """What the reference class of this task uses when the caller says nothing (pixels, frames a second, tokens)."""

    max_length: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    fps: float
    max_frames: int
    default_instruction: str


@dataclass(frozen=True)
class PackageFile:
    """One file of the package: name, bytes and SHA-256 of its content."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The checkpoint a package was made from; `sha256` is `Checkpoint.fingerprint()`."""

    checkpoint: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class CalibrationRecord:
    """What a quantised package was calibrated on: `builtin` or the name of a folder, and how much of it."""

    source: str
    samples: int
    tokens: int
    visual_tokens: int


@dataclass(frozen=True)
class Loss:
    """What quantisation cost on the calibration samples, against float32 (quant/agreement.py says what each is)."""

    cosine_mean: float
    cosine_minimum: float
    overlap: float
    kendall: float
    largest: float


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime knows about a package; `matrices` maps each stored matrix to its scheme."""

    format_version: int
    generator: str
    name: str
    task: Task
    precision: str
    target: str
    text: TextConfig
    vision: VisionConfig
    tokens: TokenIds
    defaults: Defaults
    matrices: dict[str, str]
    source: Source
    files: tuple[PackageFile, ...]
    calibration: CalibrationRecord | None = None
    loss: Loss | None = None
    golden: str = "none"
    fingerprint: str = ""

    def sealed(self) -> Self:
        """This manifest with its identity: a SHA-256 over every other field."""
        return replace(self, fingerprint=self._identity())

    def _identity(self) -> str:
        facts = asdict(replace(self, fingerprint=""))
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of `folder`, sizes of its files and hashes of its graphs checked. Raises PackageError."""
        path = folder / MANIFEST_NAME
        take_back(folder)
        try:
            content = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise PackageError(_not_a_package(folder)) from None
        except (OSError, ValueError) as error:
            raise PackageError(f"{path} cannot be read ({error}); export the package again.") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise PackageError(
                f"{path} has package format {version}, this runtime reads format {FORMAT_VERSION}; "
                "export the package again with the installed version."
            )
        manifest: Self = decoded(cls, content, str(path))
        if manifest.fingerprint != manifest._identity():
            raise PackageError(
                f"{path} was changed after the export (its fingerprint does not fit); export the package again."
            )
        for file in manifest.files:
            _require_size(folder / file.name, file.size)
        for file in manifest.files:
            if file.name in HASHED_AT_LOAD:
                _require_hash(folder / file.name, file.sha256)
        return manifest

    def check(self, folder: Path) -> None:
        """Compare every file's SHA-256 with the manifest. Raises PackageError at the first that differs."""
        for file in self.files:
            _require_hash(folder / file.name, file.sha256)


def describe_file(path: Path) -> PackageFile:
    """Size and SHA-256 of a written file."""
    return PackageFile(path.name, path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _not_a_package(folder: Path) -> str:
    if not folder.exists() and set_aside(folder).exists():
        return (
            f"{folder} was being replaced by an export that ended too early, and what was there before cannot be put "
            f"back from here; rename {set_aside(folder)} to {folder}, or export the package again."
        )
    if not folder.exists():
        return f"{folder} does not exist; pass the folder that `python -m export --model ...` wrote."
    if folder.is_file():
        return f"{folder} is a file; pass the folder that `python -m export --model ...` wrote."
    if (folder / "config.json").exists():
        return (
            f"{folder} is a checkpoint, not a package (no {MANIFEST_NAME}); "
            f"make a package of it first: python -m export --model {folder}"
        )
    return f"{folder} has no {MANIFEST_NAME}; pass the folder that `python -m export --model ...` wrote."


def _require_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise PackageError(f"{path} is missing from the package; copy it again or export the package again.")
    found = path.stat().st_size
    if found != size:
        raise PackageError(
            f"{path} has {found} bytes where the manifest says {size}: truncated or from another package; "
            "copy it again or export the package again."
        )


def _require_hash(path: Path, sha256: str) -> None:
    found = sha256_of(path)
    if found != sha256:
        raise PackageError(
            f"{path} has SHA-256 {found[:12]} where the manifest says {sha256[:12]}: damaged or from another "
            "package; copy it again or export the package again."
        )
