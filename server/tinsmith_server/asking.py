"""The HTTP request in hand, as the jobs that it submits will tell of it."""

from collections.abc import Callable
from contextvars import ContextVar

from tinsmith.protocol.origin import Origin

ORIGIN: ContextVar[Callable[[], Origin]] = ContextVar("origin", default=Origin)
"""A call, because a span begins with the first thing that its request submits."""
