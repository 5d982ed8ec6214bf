"""What can be wrong with a machine, in one sentence each."""

import errno
import shutil
import socket
from pathlib import Path

_LEAST_MB = 16


class Problem(Exception):
    """Stops a command; the message is all that the user sees."""


def describe_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}. Free some space and try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to write{where}. Choose another folder with --data-dir."
    return f"{error.strerror or error}{where}."


def check_space(folder: Path) -> None:
    """Before anything is started there: what finds no room would die of it, each in its own words."""
    free_mb = shutil.disk_usage(folder).free >> 20
    if free_mb < _LEAST_MB:
        raise Problem(
            f"The disk is full: {folder} has {free_mb} MB left, and {_LEAST_MB} are needed."
        )


def check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Problem(f"Port {port} is taken. Choose another with --port.") from None
            raise Problem(f"Cannot listen on {host}:{port}: {error.strerror}.") from None


def check_model_folder(name: str, folder: Path) -> None:
    """Missing pieces are told before a worker dies of them."""
    if not folder.is_dir():
        raise Problem(f"Model {name}: there is no folder {folder}.")
    if not (folder / "config.json").is_file():
        raise Problem(f"Model {name}: {folder} holds no config.json; is it a model's folder?")
    if not any(folder.glob("*.safetensors")):
        raise Problem(f"Model {name}: {folder} holds no .safetensors file.")
