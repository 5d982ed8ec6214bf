"""What the rows of the table are written with: one client library, whichever SDK_MODULE names.

The modules `rows_*` and `exercise` run inside an SDK's own environment, so they import nothing else of
this repository.
"""

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

MODULE = os.environ.get("SDK_MODULE", "tinker")
"""`tinker`, in the version that is installed, or `tinsmith`, the thin client."""
client_library: Any = importlib.import_module(MODULE)
types: Any = importlib.import_module(f"{MODULE}.types")

MODEL, SECONDS = "tiny/llama", 120
TOKENS = [5, 9, 14, 3, 22, 41, 8, 17]
Row = Callable[["Made"], object]
ROWS: dict[str, Row] = {}


class Made:
    """What earlier rows made for later ones."""

    service: Any
    run: Any
    state: str
    sampler_path: str
    external: str
    sampler: Any
    rest: Any
    admin: Any
    names: int = 0

    def name(self) -> str:
        """Of a checkpoint: one that no row has used, as each may run twice."""
        self.names += 1
        return f"checkpoint-{self.names}"


def row(name: str) -> Callable[[Row], Row]:
    def put(function: Row) -> Row:
        ROWS[name] = function
        return function

    return put


def done(value: Any) -> Any:
    """What a future holds: newer versions give one where older ones wait themselves."""
    return value.result(SECONDS) if hasattr(value, "result") else value


def ours(name: str) -> Any:
    """A class of the library by name, wherever this version keeps it; or None."""
    places = [MODULE, f"{MODULE}.lib.public_interfaces"]
    places.append(f"{places[1]}.{name.replace('Client', '_client').lower()}")
    for place in places:
        with contextlib.suppress(ImportError):
            if (found := getattr(importlib.import_module(place), name, None)) is not None:
                return found
    return None


def datum(**more: Any) -> Any:
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 7} | more
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def prompt() -> Any:
    return types.ModelInput.from_ints(TOKENS)


def check(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def run_id(made: Made) -> str:
    """The oldest version gives no other way to learn it than a checkpoint's path."""
    return str(made.state.removeprefix("tinker://").split("/")[0])


def session_id(made: Made) -> str:
    return run_id(made).split(":")[0]


def copied(answer: Any) -> str:
    """The new checkpoint's path: what copy_weights gives, or a field of it."""
    found = done(answer)
    return str(getattr(found, "tinker_path", found))
