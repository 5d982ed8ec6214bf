"""Runs a program of the worker's package for a job, and passes on what it says of its progress."""

import subprocess
import sys
from typing import Any, BinaryIO, cast

import msgspec

from tinsmith_server.background.process import report

_PROGRAM = (sys.executable, "-m", "tinsmith_worker.carrying")


def run_tool(asked: dict[str, Any]) -> dict[str, Any]:
    """The program's last line: {"result"} or {"error"}. Raises when it ended without one."""
    with subprocess.Popen(_PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        stdin, stdout = cast(BinaryIO, program.stdin), cast(BinaryIO, program.stdout)
        stdin.write(msgspec.json.encode(asked))
        stdin.close()
        told: dict[str, Any] = {}
        reported = 0.0
        for line in stdout:
            told = msgspec.json.decode(line)
            if told.get("progress", 0.0) >= reported + 0.005:
                reported = told["progress"]
                report(reported, told["note"])
    if not ("result" in told or "error" in told):
        raise RuntimeError(f"{asked['do']} ended with status {program.returncode} and no answer")
    return told
