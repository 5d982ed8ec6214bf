"""Times that came from outside, as UTC, within the years that can be reckoned with."""

from datetime import UTC, datetime

from tinsmith.protocol.errors import BadRequest


def in_utc(moment: datetime, field: str) -> datetime:
    if moment.tzinfo is None:
        raise BadRequest(f"{field}: give the time with its offset, as in 2026-07-13T00:00:00Z.")
    check_year(moment.year, field)
    return moment.astimezone(UTC)


def check_year(year: int, field: str) -> None:
    """At either end of the calendar, adding an hour would leave it."""
    if not 2000 <= year < 3000:
        raise BadRequest(f"{field}: {year} is not a year from 2000 to 2999.")
