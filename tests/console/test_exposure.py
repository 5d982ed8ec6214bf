"""Nothing listens in the clear where others can reach it, unless somebody answers for it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tinsmith_server.exposure import check_exposure
from tinsmith_server.problems import Problem
from tinsmith_server.settings import Settings

from tests.console.conftest import settings_in


@pytest.fixture
def quiet(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, "redis://nowhere")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.nip.io"]
)
def test_a_public_address_is_refused_and_every_way_out_is_told(quiet: Settings, host: str) -> None:
    with pytest.raises(Problem, match=r"TINSMITH_TLS_CERT.*https.*TINSMITH_ALLOW_HTTP"):
        check_exposure(replace(quiet, host=host))
    file = Path("x.pem")
    for way in (
        {"tls_cert": file, "tls_key": file},
        {"public_url": "https://tinsmith.example"},
        {"allow_http": True},
    ):
        check_exposure(replace(quiet, host=host, **way))  # type: ignore[arg-type]
    with pytest.raises(Problem):
        check_exposure(replace(quiet, host=host, public_url="http://tinsmith.example"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_this_machine_needs_no_tls(quiet: Settings, host: str) -> None:
    check_exposure(replace(quiet, host=host))


def test_half_of_tls_is_refused(quiet: Settings) -> None:
    with pytest.raises(Problem, match="two files"):
        check_exposure(replace(quiet, tls_cert=Path("x.pem")))
