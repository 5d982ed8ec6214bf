"""How numbers, sizes and times read on a page."""

from datetime import datetime

from tinsmith_server.db import now

NOTHING = "\N{EN DASH}"
_SPANS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ago(moment: datetime | None) -> str:
    """Roughly, as in `5 min ago` or `in 3 d`."""
    if moment is None:
        return "never"
    seconds = (now() - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def span(seconds: float) -> str:
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0.0, seconds) * 1000:.0f} ms"


def utc(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "never"


def size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return NOTHING
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def short(number: float | None) -> str:
    """Four digits that matter: 12.3k, 0.0421, 3.2e-05."""
    if number is None:
        return NOTHING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{number / scale:.3g}{unit}"
    if number and abs(number) < 1e-3:
        return f"{number:.2g}"
    return f"{number:.4g}"


def money(dollars: float | None) -> str:
    return NOTHING if dollars is None else f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.4f}"


def ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return NOTHING
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def brief(run_id: str) -> str:
    """A run's id with the middle of its session's left out."""
    session, colon, rest = run_id.partition(":")
    if len(session) <= 16:
        return run_id
    return f"{session[:9]}\N{HORIZONTAL ELLIPSIS}{session[-4:]}{colon}{rest}"


LIMIT_NAMES = {
    "requests_per_second": "requests a second",
    "tokens_per_minute": "tokens a minute",
    "live_runs": "training runs at once",
    "concurrent_samples": "sampling requests at once",
    "stored_bytes": "stored bytes",
    "monthly_tokens": "tokens a month",
    "monthly_budget_usd": "US$ a month",
}


def limit_name(limit: str) -> str:
    return LIMIT_NAMES[limit]


def limit_amount(amount: float, limit: str) -> str:
    """An amount of a limit as it is read beside the limit's name."""
    if limit == "stored_bytes":
        return size(int(amount))
    return f"${amount:,.2f}" if limit == "monthly_budget_usd" else short(amount)


FILTERS = {
    "limit_name": limit_name,
    "limit_amount": limit_amount,
    "brief": brief,
    "ago": ago,
    "span": span,
    "utc": utc,
    "size": size,
    "short": short,
    "money": money,
    "ms": ms,
}
