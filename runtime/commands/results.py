"""Results on their way out of a command: lines on standard output, or a file that is whole or not there."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runtime.errors import InputError
from runtime.replacing import patiently


def require_writable(output: Path, option: str = "--output", suffixes: Sequence[str] = (".npy", ".jsonl")) -> None:
    """InputError where `output`, given as `option`, cannot be written: found before the work, not after it."""
    if output.suffix not in suffixes:
        ending = f"does not end in {suffixes[0]}" if len(suffixes) == 1 else f"ends in neither {' nor '.join(suffixes)}"
        raise InputError(f"{option} {output} {ending}; {'rename it' if len(suffixes) == 1 else 'choose one of them'}.")
    if not output.parent.is_dir():
        raise InputError(f"{option} {output}: there is no folder {output.parent}; create it or choose another.")
    if output.exists() and not output.is_file():
        raise InputError(f"{option} {output} is there and is no file that can be replaced; choose another name.")
    with replacing(output, option, keep=False):
        pass


def write_vectors(output: Path, rows: np.ndarray, errors: Mapping[int, str]) -> None:
    """float32 [N, D] as a .npy or .jsonl file, what is wrong with a row in its place. InputError."""
    with replacing(output) as file:
        if output.suffix == ".npy":
            np.save(file, rows)
        else:
            file.writelines(f"{line}\n".encode() for line in vector_lines(rows, errors))


def vector_lines(rows: np.ndarray, errors: Mapping[int, str]) -> Iterator[str]:
    """One JSON line a row; float32's shortest decimal form, so that reading it back gives the same number."""
    for index, row in enumerate(rows):
        if index in errors:
            yield json.dumps({"index": index, "embedding": None, "error": errors[index]})
        else:
            numbers = ", ".join(str(number) for number in row)
            yield f'{{"index": {index}, "embedding": [{numbers}]}}'


def print_line(line: str) -> None:
    """A line on standard output, and out of Python's buffer. InputError where it cannot be written."""
    if sys.stdout is None:
        raise InputError("standard output is closed; leave it open, or give embed an --output.")
    try:
        # A path may hold what a terminal's encoding, or any, has no character for.
        text = line.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # how Windows says it
            raise BrokenPipeError(*error.args) from error
        give_up_standard_output()
        raise InputError(f"standard output cannot be written ({error.strerror}); send it elsewhere.") from error


def give_up_standard_output() -> None:
    """Let Python, which empties its buffer at the end, write it to nowhere instead of failing once more."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def replacing(output: Path, option: str = "--output", keep: bool = True) -> Iterator[BinaryIO]:
    """A hidden file beside `output`, of this process alone, that takes its place in the end or goes away."""
    target = output.resolve()  # what a link leads to is replaced, not the link
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                yield file
            if keep:
                patiently(lambda: partial.replace(target))
            elif target.exists():
                patiently(lambda: target.replace(target))  # Windows refuses what another program has open
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{option} {output} cannot be written ({reason}); choose another place.") from error
