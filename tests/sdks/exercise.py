"""Calls every public method of whichever client library is installed, and prints what came of each as JSON.

A row's answer is "works", "absent" (this version has no such method) or "fails: ...". A method that has an
`_async` form is called by that name as well, and awaited: a row of its own. `untried` are the public methods
that no row calls.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.sdks import rows_of_clients, rows_of_commands, rows_of_rest
from tests.sdks.vocabulary import MODULE, ROWS, SECONDS, Made, Row, client_library, ours

CLIENTS = {
    "ServiceClient": "service",
    "TrainingClient": "run",
    "SamplingClient": "sampler",
    "RestClient": "rest",
    "AdminClient": "admin",
}
"""By class, what it is called in `Made`."""
_INSIDE = {"get_telemetry", "holder", "on_queue_state_change", "create", "base_url", "api_key"}
"""The library's own: callbacks, seams between its classes, attributes."""
_LAST = "ServiceClient.close"
rows_of_clients, rows_of_rest, rows_of_commands  # noqa: B018 - each fills ROWS where it is imported


class Awaited:
    """A client whose methods are called by their `_async` names, to the end."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, f"{name}_async", None)
        if method is None:
            return getattr(self.client, name)
        return lambda *values, **named: asyncio.run(_to_the_end(method(*values, **named)))


async def _to_the_end(value: Any) -> Any:
    """Older versions give a future where newer ones give the result."""
    found = await value
    return await found.result_async() if hasattr(found, "result_async") else found


@contextmanager
def called_asynchronously(made: Made, owner: str) -> Iterator[None]:
    """Meanwhile, the row's client is an Awaited one."""
    name = CLIENTS[owner]
    if owner == "AdminClient":
        made.admin = ours(owner)()
    client = getattr(made, name)
    setattr(made, name, Awaited(client))
    try:
        yield
    finally:
        setattr(made, name, client)


def has(name: str) -> bool:
    owner, _, method = name.partition(".")
    return name.startswith("tinker ") or hasattr(ours(owner), method)


def attempt(name: str, call: Callable[[], object]) -> str:
    if not has(name):
        return "absent"
    try:
        signal.alarm(SECONDS + 60)
        call()
    except NotImplementedError:
        return "absent"
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return f"fails: {type(error).__name__}: {str(error)[:160]}"
    finally:
        signal.alarm(0)
    return "works"


def attempts(name: str, function: Row, made: Made) -> dict[str, str]:
    """By row: the method, and its `_async` form where any version has one."""
    found = {name: attempt(name, lambda: function(made))}
    if name.partition(".")[0] in CLIENTS:

        def awaiting() -> None:
            with called_asynchronously(made, name.partition(".")[0]):
                function(made)

        found[f"{name}_async"] = attempt(f"{name}_async", awaiting)
    return found


def untried() -> list[str]:
    named = {f"{owner}.{one}" for owner in CLIENTS for one in dir(ours(owner)) if one[0] != "_"}
    rows = set(ROWS) | {f"{name}_async" for name in ROWS}
    inside = {f"{owner}.{one}" for owner in CLIENTS for one in _INSIDE}
    return sorted(name for name in named - rows - inside if has(name))


def _too_long(*_: object) -> None:
    raise TimeoutError("no answer")


def main() -> None:
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("ignore")
    made, found = Made(), dict[str, str]()
    order = [name for name in ROWS if name != _LAST] + [_LAST]
    with contextlib.redirect_stdout(io.StringIO()):
        made.service = client_library.ServiceClient()
        for name in order:
            found |= attempts(name, ROWS[name], made)
    answer = {"module": MODULE, "rows": found, "untried": untried()}
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # old versions leave threads that do not end


if __name__ == "__main__":
    main()
