"""One API process: it listens, and it leaves without keeping anybody waiting."""

import gc
import socket
import sys

import uvicorn
from fastapi import FastAPI

from tinsmith_server.app import create_app
from tinsmith_server.exposure import check_exposure
from tinsmith_server.settings import Settings
from tinsmith_server.storage import check_store

_LEAVE_WITHIN_SECONDS = 10


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """What is here by now stays, and need not be searched for garbage again and again."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Held polls are answered first, or leaving would wait for the longest of them."""
        self._app.state.service.bus.stop_holding()
        await super().shutdown(sockets)


def run_api(settings: Settings, host: str, port: int) -> None:
    check_exposure(settings)
    app = create_app(settings)
    check_store(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_keep_alive=120,  # the SDK keeps idle connections for 90 s
        timeout_graceful_shutdown=_LEAVE_WITHIN_SECONDS,
        backlog=4096,
        access_log=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_level="warning",
    )
    server = _Server(app, config)
    server.run()
    if not server.started:
        sys.exit(3)  # uvicorn has said why
