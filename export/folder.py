"""The folder a package is written to: a hidden sibling first, renamed when whole, never half there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.errors import CheckpointError
from runtime.manifest import MANIFEST_NAME

# Model files, tokenizer and manifest beside the weights.
SPARE_BYTES = 64 * 2**20


def require_free_output(output: Path, force: bool) -> None:
    """CheckpointError where `output` exists and must not, or is something other than a package."""
    if not output.exists():
        return
    if not (output / MANIFEST_NAME).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not a package; choose another --output.")
    if not force:
        raise CheckpointError(f"{output} exists already; pass --force to replace it or choose another --output.")


@contextmanager
def partial_folder(output: Path, data_bytes: int) -> Iterator[Path]:
    """A hidden sibling of `output` to write into; what a killed export left there is removed first.

    Raises CheckpointError for a full disk, a folder that cannot be written and a second export to the same place.
    """
    partial = output.with_name(f".{output.name}.partial")
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                _require_space(output.parent, data_bytes + SPARE_BYTES)
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                with suppress(PermissionError):  # Windows deletes no open file; filelock itself does it there
                    Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise CheckpointError(f"another export is writing {output}; wait for it or choose another --output.") from None
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written ({error}); nothing was left behind.") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free and the package needs {needed / 1e9:.1f} GB; "
            "free some space or choose another --output."
        )


def put_in_place(partial: Path, output: Path) -> None:
    """Rename into place; a package that is replaced goes only after the new one is there."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaces = output.exists()
    if replaces:
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if replaces:
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
