"""What a copy and a pickle of an open embedder or reranker are."""

from typing import NoReturn, Self, SupportsIndex


class SharesPackage:
    """Copies share the open package: it is read only, and a second one would take its memory again."""

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self.__copy__()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        refuse_pickling(self)


def refuse_pickling(thing: object) -> NoReturn:
    """TypeError, as for everything else that cannot be pickled."""
    raise TypeError(
        f"a {type(thing).__name__} holds an open package and cannot be pickled; "
        "send the package's path and open it in the other process."
    )
