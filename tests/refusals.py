"""What the tests of bad input have in common."""

from collections.abc import Callable

import pytest

from runtime import InputError


def refusal(run: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The message that `run` raises, one sentence on one line."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message
