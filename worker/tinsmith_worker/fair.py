"""Whose turn it is: deficit round-robin (Shreedhar and Varghese 1995), charged after each turn.

Charging after needs no look ahead: who has anything left may take its next thing whole, and waits the
longer for it later. Nobody gets further ahead than a quantum and one thing. Knows nothing of jobs.
"""

from collections.abc import Collection


class Round:
    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._left: dict[str, int] = {}
        """What each may still take in its turn; who is next stands first."""

    def next(self, wanting: Collection[str]) -> str:
        """One of these; there must be one. Who wants nothing saves nothing up."""
        for name in [name for name in self._left if name not in wanting]:
            del self._left[name]
        for name in wanting:
            self._left.setdefault(name, self._quantum)
        self._skip_idle_rounds()
        while True:
            name = next(iter(self._left))
            left = self._left[name]
            if left > 0:
                return name
            del self._left[name]
            self._left[name] = left + self._quantum

    def _skip_idle_rounds(self) -> None:
        """Rounds in which nobody would have anything left yet."""
        idle = -max(self._left.values()) // self._quantum
        if idle > 0:
            self._left = {name: left + idle * self._quantum for name, left in self._left.items()}

    def charge(self, name: str, cost: int) -> None:
        self._left[name] -= max(cost, 1)
