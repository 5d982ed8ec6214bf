"""Everything an API process can be told, read once from the environment."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tinsmith_server.accounts.oidc_settings import OidcSettings
from tinsmith_server.limits import DEFAULT_CAPS, Limits, QueueCaps, queue_limits
from tinsmith_server.usage.prices import UNPRICED, Prices


class SettingsError(Exception):
    """A setting that is missing or does not parse; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    data_dir: Path
    database_url: str
    redis_url: str
    store_url: str
    key_pepper: bytes
    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 128 << 20
    """Of a request as it is read, and of a compressed one when unpacked."""
    max_upload_bytes: int = 4 << 30
    """Of an adapter that is taken in from outside."""
    poll_seconds: float = 25.0
    """How long retrieve_future holds a poll; the SDK gives up at 45."""
    fwdbwd_max_chunk_len: int = 100_000
    fwdbwd_max_chunk_bytes: int = 32 << 20
    """Where the SDK cuts a batch. A chunk is one request, so it must fit max_body_bytes."""
    public_url: str | None = None
    """Where clients reach the API, for links; without it, where the request for a link came to."""
    queued_per_run: Limits = DEFAULT_CAPS.run
    queued_per_project: Limits = DEFAULT_CAPS.project
    queued_per_organization: Limits = DEFAULT_CAPS.organization
    queued_per_server: Limits = DEFAULT_CAPS.server
    """Requests, bytes and tokens that may wait or run; more are told to come again later."""
    session_silent_seconds: int = 300
    """How long a session may go unheard before its queued work is cancelled."""
    session_kept_seconds: int = 24 * 3600
    """How long the state of its runs is kept after that, should its client come back."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    metrics_token: str | None = None
    """What a scraper on another machine sends as a bearer token; without it, none is served."""
    allow_http: bool = False
    """Whether the API and the console may be reached in the clear over a network that is trusted."""
    oidc: OidcSettings | None = None
    """The provider that people may sign in at, if there is one."""
    prices: Prices = UNPRICED
    model_aliases: Mapping[str, str] = field(default_factory=dict)
    """Short names of the OpenAI-compatible endpoint, for base models and checkpoints."""
    stable_reinforce: bool = True
    """Whether that loss, whose rule is not published, runs a rule of our own or is refused."""

    @property
    def queue_caps(self) -> QueueCaps:
        return QueueCaps(
            run=self.queued_per_run,
            project=self.queued_per_project,
            organization=self.queued_per_organization,
            server=self.queued_per_server,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        data_dir = Path(environment.get("TINSMITH_DATA_DIR") or default_data_dir(environment))
        data_dir.mkdir(parents=True, exist_ok=True)
        redis_url = environment.get("TINSMITH_REDIS_URL")
        if not redis_url:
            raise SettingsError("TINSMITH_REDIS_URL is not set (`tinsmith up` brings its own).")
        return cls(
            data_dir=data_dir,
            database_url=environment.get("TINSMITH_DATABASE_URL")
            or f"sqlite+aiosqlite:///{data_dir / 'tinsmith.db'}",
            redis_url=redis_url,
            store_url=environment.get("TINSMITH_STORE_URL") or str(data_dir / "store"),
            key_pepper=_pepper(environment, data_dir),
            host=environment.get("TINSMITH_HOST", cls.host),
            port=_whole(environment, "PORT", cls.port),
            max_body_bytes=_whole(environment, "MAX_BODY_BYTES", cls.max_body_bytes),
            max_upload_bytes=_whole(environment, "MAX_UPLOAD_BYTES", cls.max_upload_bytes),
            poll_seconds=_whole(environment, "POLL_SECONDS", int(cls.poll_seconds)),
            fwdbwd_max_chunk_len=_whole(
                environment, "FWDBWD_MAX_CHUNK_LEN", cls.fwdbwd_max_chunk_len
            ),
            fwdbwd_max_chunk_bytes=_whole(
                environment, "FWDBWD_MAX_CHUNK_BYTES", cls.fwdbwd_max_chunk_bytes
            ),
            public_url=environment.get("TINSMITH_PUBLIC_URL") or None,
            queued_per_run=_queued(environment, "RUN", cls.queued_per_run),
            queued_per_project=_queued(environment, "PROJECT", cls.queued_per_project),
            queued_per_organization=_queued(
                environment, "ORGANIZATION", cls.queued_per_organization
            ),
            queued_per_server=_queued(environment, "SERVER", cls.queued_per_server),
            session_silent_seconds=_whole(
                environment, "SESSION_SILENT_SECONDS", cls.session_silent_seconds
            ),
            session_kept_seconds=_whole(
                environment, "SESSION_KEPT_SECONDS", cls.session_kept_seconds
            ),
            tls_cert=_file(environment, "TLS_CERT"),
            tls_key=_file(environment, "TLS_KEY"),
            metrics_token=environment.get("TINSMITH_METRICS_TOKEN") or None,
            allow_http=bool(_whole(environment, "ALLOW_HTTP", 0)),
            oidc=_oidc(environment),
            prices=_prices(environment),
            model_aliases=_aliases(environment.get("TINSMITH_MODEL_ALIASES", "")),
            stable_reinforce=bool(_whole(environment, "STABLE_REINFORCE", 1)),
        )


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    base = environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "tinsmith"


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(f"TINSMITH_{name}")
    if not text:
        return None
    if not Path(text).is_file():
        raise SettingsError(f"TINSMITH_{name}: there is no file {text}.")
    return Path(text)


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(f"TINSMITH_{name}") or str(default)
    if not text.isdigit():
        raise SettingsError(f"TINSMITH_{name}: {text!r} is not a whole number.")
    return int(text)


def _queued(environment: Mapping[str, str], scope: str, default: Limits) -> Limits:
    name = f"TINSMITH_QUEUED_PER_{scope}"
    if name not in environment:
        return default
    try:
        return queue_limits(environment[name])
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _prices(environment: Mapping[str, str]) -> Prices:
    try:
        return Prices.parse(environment.get("TINSMITH_PRICES", ""))
    except ValueError as error:
        raise SettingsError(f"TINSMITH_PRICES: {error}") from None


def _oidc(environment: Mapping[str, str]) -> OidcSettings | None:
    try:
        return OidcSettings.parse(environment)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _aliases(text: str) -> dict[str, str]:
    """`short=model,short=model`."""
    aliases = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        short, separator, model = part.partition("=")
        if not (short and separator and model):
            raise SettingsError(f"TINSMITH_MODEL_ALIASES: {part!r} is not short=model.")
        aliases[short] = model
    return aliases


def _pepper(environment: Mapping[str, str], data_dir: Path) -> bytes:
    """What stolen hashes of keys are worthless without; kept outside the database."""
    if given := environment.get("TINSMITH_KEY_PEPPER"):
        return given.encode()
    path = data_dir / "key_pepper"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode())
    return path.read_bytes()
