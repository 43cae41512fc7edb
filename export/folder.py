"""The folder a package is written to: a hidden sibling first, renamed when whole, never half there.

Siblings of `NAME`: `.NAME.partial` holds nothing of worth, `.NAME.old` a whole package that is being replaced
(runtime/replacing.py), `.NAME.lock` is locked by the export that writes. An export that is killed leaves them to the
next one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.errors import CheckpointError
from runtime.manifest import MANIFEST_NAME
from runtime.replacing import patiently, set_aside, sync_folder, take_back

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
    """A hidden sibling of `output` to write into; what a killed export left there is put right first.

    Raises CheckpointError for a full disk, a folder that cannot be written and a second export to the same place.
    """
    partial = _partial(output)
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                take_back(output)
                _discard_old(output)
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


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _discard_old(output: Path) -> None:
    """Remove the partial folder, and what was set aside if the new package stands.

    The old one takes the partial one's name before it is removed file by file: nobody takes half of it back.
    """
    partial, old = _partial(output), set_aside(output)
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        patiently(lambda: old.rename(partial))
        shutil.rmtree(partial, ignore_errors=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free and the package needs {needed / 1e9:.1f} GB; "
            "free some space or choose another --output."
        )


def put_in_place(partial: Path, output: Path) -> None:
    """Rename into place; a package that is replaced goes only after the new one is there."""
    _flush(partial)
    while not _renamed(partial, output):
        pass
    sync_folder(output.parent)
    _discard_old(output)


def _renamed(partial: Path, output: Path) -> bool:
    """Try it; False where a reader, who found no package for a moment, took the old one back."""
    replaces = output.exists()
    if replaces:
        patiently(lambda: output.rename(set_aside(output)))
    try:
        patiently(lambda: partial.rename(output))
    except OSError:
        if replaces and not set_aside(output).exists():
            return False
        take_back(output)
        raise
    return True


def _flush(folder: Path) -> None:
    """Have every file on the disk: a disk that is full only now says so, and a power cut finds them whole."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDWR)  # Windows flushes nothing that is open for reading alone
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
