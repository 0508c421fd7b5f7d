"""What is kept until there is no room: by key, bounded in bytes, the least used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastUsedTable(Generic[K, V]):
    """At most ``limit`` bytes, as ``weigh`` counts a value's, and one value in any case. Whoever shares one between
    threads holds a lock."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self.limit, self._weigh = limit, weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[V]:
        return iter(self._values.values())

    def find(self, key: K) -> V | None:
        if (known := self._values.get(key)) is not None:
            self._values.move_to_end(key)
        return known

    def keep(self, key: K, value: V) -> V:
        """What is kept under the key: what was there already, if somebody else was as quick."""
        if (known := self.find(key)) is not None:
            return known
        self._values[key] = value
        self.nbytes += self._weigh(value)
        while self.nbytes > self.limit and len(self._values) > 1:
            self.nbytes -= self._weigh(self._values.popitem(last=False)[1])
        return value

    def clear(self) -> None:
        self._values.clear()
        self.nbytes = 0
