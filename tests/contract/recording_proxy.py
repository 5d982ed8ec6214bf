"""Stands between a client and the service, passes everything on, and remembers what came in which order."""

import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_PASSED_ON = ("content-type", "content-encoding", "accept", "x-api-key")


@contextmanager
def recording_proxy(
    url: str, without: Container[str] = ()
) -> Iterator[tuple[str, list[tuple[str, httpx.Request]]]]:
    """Its own address, and (path, request) of everything so far, in order of arrival.

    Paths in `without` answer 404 with a page of HTML, as a service that never heard of them.
    """
    arrived: list[tuple[str, httpx.Request]] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
            request = service.build_request(self.command, self.path, content=body, headers=headers)
            arrived.append((self.path.removeprefix("/api/v1"), request))
            if arrived[-1][0] in without:
                self.send_error(404)
                return
            answer = service.send(request)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", ""))
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_DELETE = do_PUT = pass_on  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    with (
        httpx.Client(base_url=url, timeout=60) as service,
        ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", arrived
        finally:
            server.shutdown()
            thread.join()
