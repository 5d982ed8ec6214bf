"""How an API process logs: one JSON object a line, tracebacks without the values of variables.

Values are where keys, passwords and peppers would be. What looks like a key all the same is struck out.
"""

import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_KEY = re.compile(r"(tml-[0-9a-f]{4,})-[0-9a-f]+")


def configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # plain: the pretty one shows local variables
            strike_out_keys,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def strike_out_keys(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and "tml-" in value:
            event[name] = _KEY.sub(r"\1-***", value)
    return event
