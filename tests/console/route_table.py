"""Every route of the app and who may use it, read off the app itself.

`python -m tests.console.route_table` writes the table of docs/security.md anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from tinsmith_server.accounts.scopes import ALL, wanted_by
from tinsmith_server.app import create_app
from tinsmith_server.auth import authenticated
from tinsmith_server.console.security import REQUIRED
from tinsmith_server.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- routes -->\n", "<!-- end of routes -->\n"
SIGNED = "whoever holds the signed link"
ANYBODY = {
    "GET /healthz": "anybody",
    "GET /api/v1/healthz": "anybody",
    "POST /api/v1/telemetry": "anybody; dropped unread",
    "GET /setup": "anybody; the form alone",
    "POST /setup": "whoever holds the link, while nobody is there",
    "GET /invitation": "whoever holds the link",
    "POST /invitation": "whoever holds the link",
    "GET /sign-in": "anybody",
    "POST /sign-in": "whoever knows the password",
    "GET /sign-in/provider": "anybody; leads to the provider of TINSMITH_OIDC_ISSUER",
    "GET /sign-in/provider/callback": "the browser that left for the provider, once",
    "GET /static/{digest}/{name}": "anybody; scripts and styles",
    "GET /openapi.json": "anybody; how to call the API",
    "GET /metrics": "the machine itself, or whoever holds TINSMITH_METRICS_TOKEN",
    "GET /readyz": "anybody; which part is down",
}
"""Routes that ask nobody who they are, and why that is right. A new one fails until it stands here."""
_NO_SUCH = "/v1/{rest:path}"


@dataclass(frozen=True)
class Row:
    method: str
    path: str
    guard: str
    """`key`, a role, `operator`, or a sentence for what asks nobody."""
    scopes: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each route with its whole path."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield prefix + route.path, route
        else:
            yield from walk(inner.routes, prefix + route.include_context.prefix)


def rows(app: FastAPI) -> list[Row]:
    found = [
        _row(method, path, route)
        for path, route in walk(app.routes)
        for method in sorted(route.methods - {"HEAD"})
    ]
    return sorted(set(found), key=lambda row: (row.path, row.method))


def _row(method: str, path: str, route: Any) -> Row:
    calls = set(_calls(route.dependant)) if hasattr(route, "dependant") else set()
    if authenticated in calls:
        return Row(method, path, "key", _scopes(method, path))
    roles = [REQUIRED[call] for call in calls if call in REQUIRED]
    if roles:
        [role] = roles
        return Row(method, path, role)
    if "/signed/" in path:
        return Row(method, path, SIGNED)
    if path.endswith(_NO_SUCH):
        return Row(method, path, "anybody; says that there is no such endpoint")
    return Row(method, path, ANYBODY.get(f"{method} {path}", ""))


def _calls(dependant: Dependant) -> Iterator[Any]:
    for one in dependant.dependencies:
        yield one.call
        yield from _calls(one)


def _scopes(method: str, path: str) -> str:
    plain = path.replace(":path}", "}").replace("{", "").replace("}", "")
    wanted = wanted_by(method, plain)
    if wanted is None:
        return "all"
    return "any" if wanted == ALL else " or ".join(sorted(wanted))


def table(found: list[Row]) -> str:
    lines = ["| route | who | scopes, one of |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.guard} | {row.scopes} |" for row in found]
    return "\n".join(lines) + "\n"


def app_of(folder: Path) -> FastAPI:
    return create_app(
        Settings(
            data_dir=folder,
            database_url=f"sqlite+aiosqlite:///{folder / 'tinsmith.db'}",
            redis_url="redis://nowhere",
            store_url=str(folder / "store"),
            key_pepper=b"pepper",
        )
    )


def written() -> str:
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    text = PAGE.read_text()
    PAGE.write_text(text.replace(written(), table(rows(app_of(PAGE.parent)))))


if __name__ == "__main__":
    main()
