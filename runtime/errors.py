"""Every error a user can meet. Each message says what, where, what was expected and what to do.

Qwen3VLError
├── InputError        an input item is wrong: type, unknown key, too long, special tokens in a text
│   └── MediaError    a picture or video cannot be read, fetched or used
├── PackageError      a package folder is missing, incomplete, foreign or for another provider
├── OutOfMemoryError  there is not enough memory to open a package or to compute an input
├── NotFiniteError    an input's result holds NaN or infinity
├── CheckpointError   a checkpoint cannot be found, read or exported
├── SearchIndexError  an index folder is foreign, damaged, in use or made with another package
└── MissingExtraError an optional library is not installed
"""


class Qwen3VLError(Exception):
    """Base of all errors of this project; its message is written for the user."""


class InputError(Qwen3VLError, ValueError):
    """An input item cannot be used as it is."""


class MediaError(InputError):
    """A picture or a video cannot be read, fetched or used."""


class PackageError(Qwen3VLError):
    """A package folder cannot be opened as it is."""


class OutOfMemoryError(Qwen3VLError, MemoryError):
    """Numpy or onnxruntime could not allocate what a package or an input needs."""


class NotFiniteError(Qwen3VLError, ArithmeticError):
    """A graph gave NaN or infinity: the package is damaged."""


class CheckpointError(Qwen3VLError):
    """A checkpoint cannot be found, read or exported."""


class SearchIndexError(Qwen3VLError):
    """An index folder of `python -m runtime search` cannot be used as it is."""


class MissingExtraError(Qwen3VLError, ImportError):
    """An optional library is needed and not installed; the message holds the pip command."""
