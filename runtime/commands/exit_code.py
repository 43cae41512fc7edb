"""How a command ends: its own exit code, or that of an error, with one sentence on stderr."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from runtime.commands.results import give_up_standard_output
from runtime.errors import Qwen3VLError


def exit_code(run: Callable[[], int], interrupted: str = "") -> int:
    """What `run` returns; 2 for an error, 130 after Ctrl-C, 141 where nobody reads standard output any more.

    `interrupted` is what Ctrl-C leaves behind, in words; a KeyboardInterrupt may bring its own.
    """
    if sys.stderr is None:  # closed, as by 2>&-: words go nowhere, and no file gets its number
        sys.stderr = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115 (stays open)
    try:
        return run()
    except Qwen3VLError as error:
        _say(f"{error}")
        return 2
    except MemoryError:
        _say("there is not enough memory; give fewer inputs at a time.")
        return 2
    except FileNotFoundError:
        if not _is_nowhere():
            raise
        _say("the working folder was deleted; change to one that is there.")
        return 2
    except BrokenPipeError:  # the reader went away, as `head` does
        give_up_standard_output()
        return 141
    except KeyboardInterrupt as error:
        _say(f"interrupted{error if str(error) else interrupted}.")
        return 130


def _say(sentence: str) -> None:
    with suppress(OSError):  # a full disk, where the exit code is all that is left to tell the truth
        print(f"error: {sentence}", file=sys.stderr, flush=True)


def _is_nowhere() -> bool:
    """Whether the working folder is gone; a relative path leads nowhere then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
