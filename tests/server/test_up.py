"""`tinsmith up` as a person meets it: it starts, it stops, and it says in one line what is wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tinsmith
from tinsmith import types

from tests.contract.conftest import BASE_MODEL, save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(data_dir: Path, *more: str) -> list[str]:
    up = [sys.executable, "-m", "tinsmith_server.cli", "up", "--data-dir", str(data_dir)]
    return [*up, *more] if "--port" in more else [*up, "--port", str(free_port()), *more]


def environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if "TINSMITH" not in name or name == "TINSMITH_STORE_URL"
    }
    return kept | {"TINSMITH_TORCH_THREADS": "1", "COLUMNS": "400"}


def refusal(data_dir: Path, *more: str) -> str:
    """What is said by an `up` that does not start: one line, and nothing is left behind."""
    done = subprocess.run(
        command(data_dir, *more), env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1, done.stderr
    assert processes_of(data_dir) == []
    [line] = done.stderr.strip().splitlines()
    return line


@contextmanager
def running(data_dir: Path, model: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The process, and what it told to export."""
    with subprocess.Popen(
        command(data_dir, "--model", f"{BASE_MODEL}={model}"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        try:
            yield process, dict(re.findall(r"export (\w+)=(\S+)", "".join(lines)))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(40)


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of everything that was started for this folder and still lives."""
    mark = f"TINSMITH_DATA_DIR={data_dir}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            started_for = mark in (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        if started_for or (str(data_dir) in words and "valkey" in words):
            found.append(words)
    return found


def test_ctrl_c_leaves_nothing_behind_and_a_second_start_finds_everything(
    tmp_path: Path, model: Path
) -> None:
    with running(tmp_path, model) as (process, told):
        key = told["TINKER_API_KEY"]
        assert processes_of(tmp_path) != []
        with tinsmith.ServiceClient(base_url=told["TINKER_BASE_URL"], api_key=key) as client:
            run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
            saved = run.save_state("kept").result(60).path
    assert process.returncode == 0
    assert processes_of(tmp_path) == []
    assert list(tmp_path.rglob("*.sock")) == []
    with running(tmp_path, model) as (_, told):
        assert not told["TINKER_API_KEY"].startswith("tml-")  # it was shown once
        with tinsmith.ServiceClient(base_url=told["TINKER_BASE_URL"], api_key=key) as client:
            resumed = client.create_training_client_from_state_with_optimizer(saved).result(60)
            assert resumed.optim_step(types.AdamParams()).result(60).metrics is not None


def test_a_second_service_in_the_same_folder_is_refused(tmp_path: Path, model: Path) -> None:
    with running(tmp_path, model):
        done = subprocess.run(
            command(tmp_path), env=environment(), capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 1
    assert "already runs" in done.stderr


def test_a_killed_parent_takes_everything_with_it(tmp_path: Path, model: Path) -> None:
    with running(tmp_path, model) as (process, _):
        children = [os.pidfd_open(pid) for pid in pids_below(process.pid)]
        assert len(children) == 4
        process.kill()
        for child in children:
            signalled = wait_for_end(child)
            assert signalled


def pids_below(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def wait_for_end(pidfd: int) -> bool:
    """A pidfd becomes readable when its process has ended."""
    import select

    readable, _, _ = select.select([pidfd], [], [], 30)
    os.close(pidfd)
    return bool(readable)


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} is taken" in refusal(tmp_path, "--port", port)


def test_a_broken_model_folder_is_told_in_one_line(tmp_path: Path, model: Path) -> None:
    broken = tmp_path / "broken"
    asked = ("--model", f"mine={broken}")
    assert "no folder" in refusal(tmp_path / "data", *asked)
    broken.mkdir()
    assert "config.json" in refusal(tmp_path / "data", *asked)
    (broken / "config.json").write_text((model / "config.json").read_text())
    assert ".safetensors" in refusal(tmp_path / "data", *asked)
    whole = (model / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    line = refusal(tmp_path / "data", *asked)
    assert "mine" in line
    assert "cannot be loaded" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB, where this machine lets a test make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return ballast


def test_a_full_disk_is_told_in_one_line_at_the_start(small_disk: Path, model: Path) -> None:
    fill(small_disk)
    line = refusal(small_disk / "data", "--model", f"{BASE_MODEL}={model}")
    assert "disk is full" in line


def test_a_full_store_fails_the_save_and_nothing_else(
    tmp_path: Path, small_disk: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINSMITH_STORE_URL", str(small_disk / "store"))
    with running(tmp_path / "data", model) as (_, told):
        url, key = told["TINKER_BASE_URL"], told["TINKER_API_KEY"]
        with tinsmith.ServiceClient(base_url=url, api_key=key) as client:
            run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=1).result(60)
            ballast = fill(small_disk)
            with pytest.raises(tinsmith.RequestFailedError, match="stor") as failed:
                run.save_state("full").result(60)
            assert failed.value.category == "server"
            ballast.unlink()
            run.optim_step(types.AdamParams()).result(60)
            assert run.save_state("fits").result(60).path.endswith("/fits")
