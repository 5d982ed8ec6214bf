"""Rows of the `tinker` command line: each command, run in this process as its entry point would."""

import importlib
import os
from typing import Any

from tests.sdks.rows_of_rest import another, hours
from tests.sdks.vocabulary import MODEL, MODULE, ROWS, Made, Row, check, done, run_id, session_id

COMMANDS = (
    "version",
    "auth status",
    "auth whoami",
    "model list",
    f"model list {MODEL}",
    "run list",
    "run list --limit 0",
    "run info {run}",
    "checkpoint list",
    "checkpoint list --run-id {run}",
    "checkpoint info {state}",
    "checkpoint publish {another}",
    "checkpoint unpublish {public}",
    "checkpoint set-ttl {state} --ttl 7200",
    "checkpoint set-ttl {state} --remove",
    "checkpoint download {external} -o {folder}",
    "checkpoint download {state} -o {folder}",
    "session export-trace {session} -o {file}",
    "billing usage {begin} {end}",
    "billing usage {begin} {end} --csv {file}",
    "billing checkpoint-storage",
    "checkpoint delete {another} -y",
    "checkpoint delete --run-id {run} --type sampler_weights -y",
)
_UNKNOWN = ("No such command", "No such option")


def filled(words: str, made: Made) -> list[str]:
    """The command's words; what a placeholder needs is made for it."""
    begin, end = (one.isoformat() for one in hours())
    values: dict[str, Any] = {
        "run": run_id(made),
        "session": session_id(made),
        "state": made.state,
        "begin": begin,
        "end": end,
        "folder": made.name(),
        "file": f"{made.name()}.pftrace",
    }
    if "{external}" in words:
        values["external"] = exported(made)
    if "{another}" in words or "{public}" in words:
        values["another"] = values["public"] = another(made)
    if "{public}" in words:
        done(made.rest.publish_checkpoint_from_tinker_path(values["public"]))
    return words.format(**values).split()


def exported(made: Made) -> str:
    if not hasattr(made, "external"):  # this version cannot make one
        raise NotImplementedError
    return made.external


def typed(words: list[str], answers: str | None = None) -> None:
    """Runs the command; what this version does not know is absent."""
    if MODULE != "tinker":
        raise NotImplementedError
    from click.testing import CliRunner

    try:
        entrance = importlib.import_module("tinker.cli.__main__").main_cli
    except ModuleNotFoundError:
        raise NotImplementedError from None
    answer = CliRunner().invoke(entrance, words, input=answers)
    if any(word in answer.output for word in _UNKNOWN):
        raise NotImplementedError
    check(answer.exit_code == 0, answer.output[-300:] + repr(answer.exception))


def command(words: str) -> Row:
    return lambda made: typed(filled(words, made))


def log_in_or_out(verb: str) -> Row:
    """With the key in the file that `login` writes, and none in the environment."""

    def run(_: Made) -> None:
        key = os.environ.pop("TINKER_API_KEY")
        try:
            typed(["auth", verb], f"{key}\n")
        finally:
            os.environ["TINKER_API_KEY"] = key

    return run


for _words in COMMANDS:
    ROWS[f"tinker {_words}"] = command(_words)
for _verb in ("login", "logout"):
    ROWS[f"tinker auth {_verb}"] = log_in_or_out(_verb)
