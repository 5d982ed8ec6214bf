"""A service as the command line sees it: over HTTP, with the user's own key."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from tinsmith_server.problems import Problem

BaseUrl = Annotated[
    str, typer.Option(envvar="TINKER_BASE_URL", help="Address of the service.", show_default=False)
]
ApiKey = Annotated[
    str, typer.Option(envvar="TINKER_API_KEY", help="Your API key.", show_default=False)
]
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")
_JOB_LOOK_SECONDS = 0.3
console = Console(stderr=True)


class Remote:
    """Every refusal is a Problem, in the service's own sentence."""

    def __init__(self, base_url: str, api_key: str) -> None:
        if not base_url or not api_key:
            raise Problem(
                "Set TINKER_BASE_URL and TINKER_API_KEY, or give --base-url and --api-key."
            )
        self.base_url, self.api_key = base_url.rstrip("/"), api_key
        self._http = httpx.Client(
            base_url=f"{self.base_url}/api/v1", headers={"X-API-Key": api_key}, timeout=120
        )

    def call(self, method: str, path: str, **of: Any) -> Any:
        try:
            answer = self._http.request(method, path, **of)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Problem(f"Cannot reach {self.base_url} ({type(error).__name__}).") from None
        if not answer.is_success:
            raise Problem(_detail(answer))
        return answer.json()

    def pages(self, path: str, field: str) -> Iterator[dict[str, Any]]:
        """Every row of a list, however many pages it has."""
        offset = 0
        while True:
            found = self.call("GET", path, params={"limit": 100, "offset": offset})[field]
            yield from found
            if len(found) < 100:
                return
            offset += len(found)

    def wait(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's result; its progress as a bar."""
        with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as bar:
            shown = bar.add_task(job["kind"], total=1.0)
            while job["state"] in ("queued", "running"):
                time.sleep(_JOB_LOOK_SECONDS)
                job = self.call("GET", f"/jobs/{job['job_id']}")
                title = f"{job['kind']}: {job['note'] or job['state']}"
                bar.update(shown, completed=job["progress"], description=title)
        if job["state"] == "failed":
            raise Problem(job["error"])
        result: dict[str, Any] = job["result"]
        return result

    def fetch(self, urls: dict[str, str], folder: Path) -> None:
        """Each file by its link; none is there under its name before it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in urls:
            if not _PLAIN_NAME.fullmatch(name):
                raise Problem(f"The service names a file {name[:80]!r}; it is not fetched.")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(*columns, console=console) as bar:
            for name, url in urls.items():
                self._fetch_one(url, folder / name, bar)

    def _fetch_one(self, url: str, target: Path, bar: Progress) -> None:
        partial = target.with_name(target.name + ".part")
        try:
            with httpx.stream("GET", url, timeout=120) as answer, partial.open("wb") as file:
                if not answer.is_success:
                    answer.read()
                    raise Problem(_detail(answer))
                size = int(answer.headers["content-length"])
                shown = bar.add_task(target.name, total=size)
                for piece in answer.iter_bytes(1 << 20):
                    file.write(piece)
                    bar.update(shown, advance=len(piece))
        except httpx.HTTPError as error:
            raise Problem(f"{target.name} could not be fetched ({type(error).__name__}).") from None
        if partial.stat().st_size != size:
            raise Problem(f"{target.name} came with {partial.stat().st_size} of {size} bytes.")
        partial.rename(target)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered {answer.status_code}."
