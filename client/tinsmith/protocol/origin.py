"""Where a job came from: the HTTP request that submitted it, and the trace that it belongs to."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Origin:
    """Rides with a job in one word or two, for the worker's log lines and spans."""

    http_request_id: str = ""
    """X-Request-Id of the answer; it has no blanks. Empty: nobody's request."""
    traceparent: str = ""
    """Of the span that submitted it (W3C Trace Context); empty where nothing is traced."""

    def __str__(self) -> str:
        return f"{self.http_request_id} {self.traceparent}".rstrip()

    @classmethod
    def parse(cls, text: str) -> Self:
        request_id, _, traceparent = text.partition(" ")
        return cls(request_id, traceparent)


NOBODY = Origin()
