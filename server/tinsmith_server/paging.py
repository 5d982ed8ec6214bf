"""The two numbers of every paged list."""

from typing import Annotated, Literal

from fastapi import Query
from tinsmith.protocol.bodies import Cursor

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=1 << 40)]
AccessScope = Annotated[Literal["owned", "accessible"], Query()]


def cursor(limit: int, offset: int, total: int) -> Cursor:
    return Cursor(offset=offset, limit=limit, total_count=total)
