"""A page of a long list, newest first. The next one begins after the last row of this one.

So the thousandth page costs what the first does: nothing is counted, and nothing is skipped over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.times import in_utc

T = TypeVar("T")
PAGE = 50
After = Annotated[str, Query(max_length=300)]
"""`<time>~<id>` of the last row that was seen; nothing for the first page."""


@dataclass(frozen=True)
class Page(Generic[T]):
    rows: Sequence[T]
    newest: str | None
    """The address of the first page, unless this is it."""
    older: str | None


def window(query: Any, created_at: Any, row_id: Any, after: str) -> Any:
    """One row more than fits says whether there is another page."""
    found = query.where(_beyond(created_at, row_id, after)) if after else query
    return found.order_by(created_at.desc(), row_id).limit(PAGE + 1)


def turned(
    request: Request, after: str, found: Sequence[T], place: Callable[[T], tuple[datetime, str]]
) -> Page[T]:
    rows = found[:PAGE]
    older = None
    if len(found) > PAGE:
        at, row_id = place(rows[-1])
        older = _address(request, f"{at.isoformat()}~{row_id}")
    return Page(rows, _address(request, "") if after else None, older)


def _beyond(created_at: Any, row_id: Any, after: str) -> Any:
    text, _, last = after.partition("~")
    try:
        at = in_utc(datetime.fromisoformat(text), "after")
    except ValueError:
        raise BadRequest("after: it is not the end of a page.") from None
    # The first condition is for the index; the second one for rows of the same moment.
    return (created_at <= at) & ((created_at < at) | (row_id > last))


def _address(request: Request, after: str) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f"?{urlencode([*kept, ('after', after)] if after else kept)}"
