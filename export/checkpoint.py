"""A checkpoint folder in, its tensors by name out, and an account of which were used."""

import contextlib
import difflib
import hashlib
import json
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from export.adapter import require_no_adapter
from export.safetensors_file import PIECE_BYTES, Tensor, open_tensors, read_into, unique_keys
from runtime.errors import CheckpointError
from runtime.json_text import parse_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The published names begin with MODEL; sentence-transformers and Qwen3VLModel.save_pretrained leave it out.
MODEL = "model."
WITHOUT_MODEL = ("language_model.", "visual.")


class Checkpoint:
    """The tensors of a checkpoint folder, each handed out by its published name; gaps and leftovers are errors.

    Raises CheckpointError when a file is missing, cut, unreadable or holds a type other than BF16, F16, F32.
    Holds its files open until `close` or the end of the `with` block; for one thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.ignored: dict[str, str] = {}  # name -> reason
        self._tensors: dict[str, Tensor] = {}
        self._used: set[str] = set()
        weight_map = read_weight_map(self.folder)
        with contextlib.ExitStack() as stack:
            for shard in sorted(set(weight_map.values())) or [SINGLE_FILE]:
                for tensor in open_tensors(stack.enter_context(_open_shard(self.folder / shard))):
                    if tensor.name in self._tensors:
                        raise CheckpointError(
                            f"{self.folder} holds tensor {tensor.name} twice, the second time in {shard}: "
                            "files of two checkpoints are mixed, download it again into an empty folder."
                        )
                    self._tensors[tensor.name] = tensor
            for name, shard in weight_map.items():
                if name not in self._tensors or Path(self._tensors[name].file.name).name != shard:
                    raise CheckpointError(
                        f"{self.folder / INDEX_FILE} names tensor {name} in {shard}, which does not hold it: "
                        "index and shards differ, download the checkpoint again into an empty folder."
                    )
            self._tensors = _by_published_name(self._tensors, self.folder)
            self._files = stack.pop_all()

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._tensors)

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which this does not mark as used."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """Stored type of a tensor: BF16, F16 or F32."""
        return self._find(name).dtype

    def nbytes(self, name: str) -> int:
        """Stored bytes of a tensor."""
        return self._find(name).nbytes

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, now counted as used; CheckpointError unless it is there in exactly this shape."""
        found = self._find(name)
        if found.shape != tuple(shape):
            raise CheckpointError(
                f"Tensor {name} in {self.folder} has shape {list(found.shape)} where config.json leads to "
                f"{list(shape)}: use the config.json that belongs to these weights."
            )
        self._used.add(name)
        return found

    def ignore(self, name_or_prefix: str, reason: str) -> None:
        """Leave out a tensor, or with a final dot all below it, on purpose; it need not be there."""
        for name in self._tensors:
            if name == name_or_prefix or (name_or_prefix.endswith(".") and name.startswith(name_or_prefix)):
                self.ignored[name] = reason

    def unused(self) -> list[str]:
        """Sorted names of tensors neither asked for nor ignored."""
        return sorted(self.names - self._used - self.ignored.keys())

    def require_all_used(self) -> None:
        """Raise CheckpointError if a tensor was neither asked for nor ignored."""
        if unused := self.unused():
            shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
            raise CheckpointError(
                f"{self.folder} holds {len(unused)} tensors that this model does not have ({shown}): "
                "use a plain Qwen3-VL-Embedding or Qwen3-VL-Reranker checkpoint with its own config.json."
            )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of config.json's bytes and every tensor's name, type, shape and stored bytes.

        Resharding does not change it. Reads the whole checkpoint (about ten seconds for 4 GB): call it once.
        """
        digest = hashlib.sha256()
        config = _read_file(self.folder / "config.json")
        digest.update(len(config).to_bytes(8, "little") + config)
        for name, tensor in sorted(self._tensors.items()):
            head = json.dumps([name, tensor.dtype, tensor.shape]).encode()
            digest.update(len(head).to_bytes(8, "little") + head)
            tensor.file.seek(tensor.offset)
            for start in range(0, tensor.nbytes, PIECE_BYTES):
                piece = np.empty(min(PIECE_BYTES, tensor.nbytes - start), np.uint8)
                read_into(tensor.file, piece)
                digest.update(piece.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files; tensors handed out cannot be read any more."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            close = difflib.get_close_matches(name, self._tensors, n=1)
            hint = f" (the closest name there is {close[0]})" if close else ""
            raise CheckpointError(
                f"{self.folder} has no tensor {name}{hint}: use a complete Qwen3-VL-Embedding or "
                "Qwen3-VL-Reranker checkpoint with its own config.json."
            )
        return self._tensors[name]


def read_weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to shard name out of the index; empty where the weights are the single file.

    Raises CheckpointError when the folder has neither, an adapter, or an index that cannot be used.
    """
    require_no_adapter(folder)
    if (folder / SINGLE_FILE).is_file():  # preferred over an index, as transformers does
        return {}
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(_no_weights(folder))
    try:
        weight_map = parse_json(_read_file(folder / INDEX_FILE), unique_keys)["weight_map"]
        if not weight_map or any(Path(shard).name != shard or "\0" in shard for shard in weight_map.values()):
            raise ValueError("weight_map must lead from tensor names to file names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX_FILE} is not a safetensors index ({error}): download this file again."
        ) from error
    return dict(weight_map)


def _by_published_name(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    bare = [name for name in tensors if name.startswith(WITHOUT_MODEL)]
    published = [name for name in tensors if name.startswith(MODEL)]
    if bare and published:
        raise CheckpointError(
            f"{folder} names some tensors like {published[0]} and some like {bare[0]}, without {MODEL!r}: "
            "files of two checkpoints are mixed, save or download it again into an empty folder."
        )
    return {MODEL + name if name.startswith(WITHOUT_MODEL) else name: tensor for name, tensor in tensors.items()}


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder: give the folder that holds config.json and {SINGLE_FILE}."
    names = sorted(path.name for path in folder.iterdir())
    if SINGLE_FILE in names:
        return (
            f"{folder / SINGLE_FILE} is a folder or a link to nothing: put the weights there, "
            "out of a hub's cache with its links followed (cp -L)."
        )
    if shards := [name for name in names if name.endswith(".safetensors")]:
        return f"{folder} holds {shards[0]} but no {INDEX_FILE}: download that file beside it."
    pickles = [name for name in names if name.endswith((".bin", ".pth", ".pt"))]
    found = f"only {pickles[0]}" if pickles else "none, nor a .bin or .pth file"
    return (
        f"{folder} must hold {SINGLE_FILE} or {INDEX_FILE} and holds {found}: "
        "pickled weights (.bin, .pth) are refused because reading them runs code, "
        "convert them with transformers' save_pretrained."
    )


def _open_shard(path: Path) -> FileIO:
    try:
        return FileIO(path, "rb")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing though {INDEX_FILE} names it: run the same download "
            f"(hf download or modelscope download into {path.parent}) again, which adds what is missing."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror}): make it readable.") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): put a complete file there.") from error
