"""A page of a long list: one row more than fits says whether there is another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query
from starlette.requests import Request

T = TypeVar("T")
PAGE = 50
PageNumber = Annotated[int, Query(alias="page", ge=1, le=1_000_000)]


@dataclass(frozen=True)
class Page(Generic[T]):
    rows: Sequence[T]
    first: int
    last: int
    before: str | None
    after: str | None


def turned(request: Request, number: int, found: Sequence[T]) -> Page[T]:
    """`found` holds PAGE + 1 rows where there is a next page."""
    rows, begin = found[:PAGE], (number - 1) * PAGE
    before = _address(request, number - 1) if number > 1 else None
    after = _address(request, number + 1) if len(found) > PAGE else None
    return Page(rows, begin + 1, begin + len(rows), before, after)


def window(query: Any, number: int) -> Any:
    return query.limit(PAGE + 1).offset((number - 1) * PAGE)


def _address(request: Request, number: int) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "page"]
    return f"?{urlencode([*kept, ('page', str(number))])}"
