"""Calls every public method of whichever `tinker` is installed, and prints what came of each as JSON.

Runs inside an SDK's own environment, so it imports nothing of this repository. A row's answer is
"works", "absent" (this version has no such method), "refused: ..." or "fails: ...".
"""

import contextlib
import datetime
import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinker
from tinker import types

with contextlib.suppress(ImportError):
    from tinker.lib import public_interfaces

MODEL, SECONDS = "tiny/llama", 60
TOKENS = [5, 9, 14, 3, 22, 41, 8, 17]
Row = Callable[["Made"], object]
ROWS: dict[str, Row] = {}


class Made:
    """What earlier rows made for later ones."""

    service: Any
    run: Any
    state: str
    sampler_path: str
    sampler: Any
    rest: Any
    admin: Any
    loss: Any


def row(name: str) -> Callable[[Row], Row]:
    def put(function: Row) -> Row:
        ROWS[name] = function
        return function

    return put


def done(value: Any) -> Any:
    """What a future holds: newer versions give one where older ones wait themselves."""
    return value.result(SECONDS) if hasattr(value, "result") else value


def ours(name: str) -> Any:
    """A class of the SDK by name, wherever this version keeps it; or None."""
    found = getattr(tinker, name, None) or getattr(public_interfaces, name, None)
    if found is None:
        module = name.replace("Client", "_client").lower()
        with contextlib.suppress(ImportError):
            found = getattr(
                importlib.import_module(f"tinker.lib.public_interfaces.{module}"), name, None
            )
    return found


def datum(**more: Any) -> Any:
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 7} | more
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def prompt() -> Any:
    return types.ModelInput.from_ints(TOKENS)


def check(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def run_id(made: Made) -> str:
    """The oldest version gives no other way to learn it than a checkpoint's path."""
    return str(made.state.removeprefix("tinker://").split("/")[0])


# ServiceClient


@row("ServiceClient.get_server_capabilities")
def _(made: Made) -> None:
    names = [m.model_name for m in done(made.service.get_server_capabilities()).supported_models]
    check(MODEL in names, f"{names}")


@row("ServiceClient.create_lora_training_client")
def _(made: Made) -> None:
    made.run = done(made.service.create_lora_training_client(MODEL, rank=4))


@row("TrainingClient.get_info")
def _(made: Made) -> None:
    check(made.run.get_info().model_data.model_name == MODEL, "another model")


@row("TrainingClient.forward")
def _(made: Made) -> None:
    output = done(made.run.forward([datum()], "cross_entropy"))
    check(len(output.loss_fn_outputs[0]["logprobs"].data) == 7, "logprobs")


@row("TrainingClient.forward_backward")
def _(made: Made) -> None:
    losses = []
    for _ in range(4):
        output = made.run.forward_backward([datum(), datum(), datum()], "cross_entropy")
        step = made.run.optim_step(types.AdamParams(learning_rate=1e-2))
        losses.append(done(output).metrics["loss:sum"])
        done(step)
    check(losses[-1] < losses[0], f"losses {losses}")


@row("TrainingClient.optim_step")
def _(made: Made) -> None:
    done(made.run.optim_step(types.AdamParams(learning_rate=0.0)))


@row("TrainingClient.forward_backward_custom")
def _(made: Made) -> None:
    def loss(data: Any, logprobs: Any) -> Any:
        total = sum((one**2).sum() for one in logprobs)
        return total, {"squares": float(total)}

    output = done(made.run.forward_backward_custom([datum()], loss))
    check(output.metrics["squares"] > 0, "metrics")


@row("ServiceClient.create_custom_loss")
def _(made: Made) -> None:
    def loss(logprobs: Any, weights: Any) -> Any:
        return (logprobs**2 * weights).sum(), {"custom/mean:mean": logprobs.mean()}

    handle = done(made.service.create_custom_loss(loss, {"logprobs": 1, "weights": 1}))
    output = done(made.run.forward_backward_custom([datum()], handle))
    check("custom/mean:mean" in output.metrics, "metrics")
    check(handle.loss_id, "it was not sent to the server")


@row("TrainingClient.save_state")
def _(made: Made) -> None:
    made.state = done(made.run.save_state("state")).path


@row("TrainingClient.load_state")
def _(made: Made) -> None:
    done(made.run.load_state(made.state))


@row("TrainingClient.load_state_with_optimizer")
def _(made: Made) -> None:
    done(made.run.load_state_with_optimizer(made.state))


@row("ServiceClient.create_training_client_from_state")
def _(made: Made) -> None:
    again = done(made.service.create_training_client_from_state(made.state))
    done(again.forward([datum()], "cross_entropy"))


@row("ServiceClient.create_training_client_from_state_with_optimizer")
def _(made: Made) -> None:
    again = done(made.service.create_training_client_from_state_with_optimizer(made.state))
    done(again.forward([datum()], "cross_entropy"))


@row("TrainingClient.save_weights_for_sampler")
def _(made: Made) -> None:
    made.sampler_path = done(made.run.save_weights_for_sampler("sampler")).path


@row("TrainingClient.save_weights_external")
def _(made: Made) -> None:
    check("external_weights" in done(made.run.save_weights_external("out")).path, "path")


@row("TrainingClient.create_sampling_client")
def _(made: Made) -> None:
    done(done(made.run.create_sampling_client(made.sampler_path)).compute_logprobs(prompt()))


@row("TrainingClient.save_weights_and_get_sampling_client")
def _(made: Made) -> None:
    sampler = done(made.run.save_weights_and_get_sampling_client("again"))
    done(sampler.compute_logprobs(prompt()))


@row("ServiceClient.create_sampling_client")
def _(made: Made) -> None:
    made.sampler = done(made.service.create_sampling_client(base_model=MODEL))
    done(
        done(made.service.create_sampling_client(model_path=made.state)).compute_logprobs(prompt())
    )


@row("SamplingClient.sample")
def _(made: Made) -> None:
    params = types.SamplingParams(max_tokens=4, temperature=0.7)
    answer = done(made.sampler.sample(prompt(), num_samples=2, sampling_params=params))
    check(len(answer.sequences) == 2, "sequences")
    check(all(len(one.logprobs) == len(one.tokens) for one in answer.sequences), "logprobs")


@row("SamplingClient.compute_logprobs")
def _(made: Made) -> None:
    scores = done(made.sampler.compute_logprobs(prompt()))
    check(scores[0] is None and all(one < 0 for one in scores[1:]), f"{scores}")


@row("SamplingClient.get_base_model")
def _(made: Made) -> None:
    check(made.sampler.get_base_model() == MODEL, "another model")


@row("SamplingClient.__reduce__")
def _(made: Made) -> None:
    if type(made.sampler).__reduce__ is object.__reduce__:
        raise NotImplementedError  # this version has not thought of it
    done(pickle.loads(pickle.dumps(made.sampler)).compute_logprobs(prompt()))


# RestClient


@row("ServiceClient.create_rest_client")
def _(made: Made) -> None:
    made.rest = made.service.create_rest_client()


@row("RestClient.list_training_runs")
def _(made: Made) -> None:
    runs = done(made.rest.list_training_runs()).training_runs
    check(run_id(made) in [one.training_run_id for one in runs], "not listed")


@row("RestClient.get_training_run")
def _(made: Made) -> None:
    check(done(made.rest.get_training_run(run_id(made))).base_model == MODEL, "another model")


@row("RestClient.get_training_run_by_tinker_path")
def _(made: Made) -> None:
    done(made.rest.get_training_run_by_tinker_path(made.state))


@row("RestClient.get_weights_info_by_tinker_path")
def _(made: Made) -> None:
    check(done(made.rest.get_weights_info_by_tinker_path(made.state)).lora_rank == 4, "rank")


@row("RestClient.list_checkpoints")
def _(made: Made) -> None:
    listed = done(made.rest.list_checkpoints(run_id(made))).checkpoints
    check(made.state in [one.tinker_path for one in listed], "not listed")


@row("RestClient.list_user_checkpoints")
def _(made: Made) -> None:
    check(done(made.rest.list_user_checkpoints()).checkpoints, "none listed")


@row("RestClient.publish_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    done(made.rest.publish_checkpoint_from_tinker_path(made.state))


@row("RestClient.unpublish_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    done(made.rest.unpublish_checkpoint_from_tinker_path(made.state))


@row("RestClient.set_checkpoint_ttl_from_tinker_path")
def _(made: Made) -> None:
    done(made.rest.set_checkpoint_ttl_from_tinker_path(made.state, 7200))


@row("RestClient.get_checkpoint_archive_url")
def _(made: Made) -> None:
    run, checkpoint = made.state.removeprefix("tinker://").split("/", 1)
    check(done(made.rest.get_checkpoint_archive_url(run, checkpoint)).url, "url")


@row("RestClient.get_checkpoint_archive_url_from_tinker_path")
def _(made: Made) -> None:
    check(done(made.rest.get_checkpoint_archive_url_from_tinker_path(made.state)).url, "url")


@row("RestClient.download_checkpoint_archive")
def _(made: Made) -> None:
    run, checkpoint = made.state.removeprefix("tinker://").split("/", 1)
    check(len(done(made.rest.download_checkpoint_archive(run, checkpoint))) > 1000, "bytes")


@row("RestClient.get_external_weights_urls")
def _(made: Made) -> None:
    path = f"tinker://{run_id(made)}/external_weights/out"
    check(done(made.rest.get_external_weights_urls(path)).urls, "urls")


@row("RestClient.copy_weights")
def _(made: Made) -> None:
    done(made.rest.copy_weights(made.state, "project"))


@row("RestClient.list_sessions")
def _(made: Made) -> None:
    check(run_id(made).split(":")[0] in done(made.rest.list_sessions()).sessions, "not listed")


@row("RestClient.get_session")
def _(made: Made) -> None:
    check(done(made.rest.get_session(run_id(made).split(":")[0])).training_run_ids, "no runs")


@row("RestClient.search_sessions")
def _(made: Made) -> None:
    check(
        done(
            made.rest.search_sessions(
                types.SessionSearchRequest(owner=types.AccessibleSearchOwner())
            )
        ).sessions,
        "none found",
    )


@row("RestClient.assign_session_project")
def _(made: Made) -> None:
    done(made.rest.assign_session_project(run_id(made).split(":")[0], "project"))


@row("RestClient.export_session_trace")
def _(made: Made) -> None:
    check(done(made.rest.export_session_trace(run_id(made).split(":")[0])), "url")


@row("RestClient.get_sampler")
def _(made: Made) -> None:
    sampler = done(made.rest.get_session(run_id(made).split(":")[0])).sampler_ids[0]
    check(done(made.rest.get_sampler(sampler)).base_model == MODEL, "another model")


@row("RestClient.get_server_capabilities")
def _(made: Made) -> None:
    done(made.rest.get_server_capabilities())


@row("RestClient.whoami")
def _(made: Made) -> None:
    check(done(made.rest.whoami()).user_urn, "urn")


def hours() -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    return now - datetime.timedelta(hours=1), now + datetime.timedelta(hours=1)


for _owner in ("RestClient", "AdminClient"):

    def _client(made: Made, owner: str = _owner) -> Any:
        return made.rest if owner == "RestClient" else ours("AdminClient")()

    @row(f"{_owner}.get_audit_log")
    def _(made: Made, client: Any = _client) -> None:
        done(client(made).get_audit_log())

    @row(f"{_owner}.get_billing_usage")
    def _(made: Made, client: Any = _client) -> None:
        done(client(made).get_billing_usage(*hours()))

    @row(f"{_owner}.get_current_checkpoint_storage_usage")
    def _(made: Made, client: Any = _client) -> None:
        done(client(made).get_current_checkpoint_storage_usage())


@row("RestClient.delete_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    path = done(made.run.save_weights_for_sampler("gone")).path
    done(made.rest.delete_checkpoint_from_tinker_path(path))


@row("RestClient.delete_checkpoint")
def _(made: Made) -> None:
    done(made.rest.delete_checkpoint(run_id(made), "sampler_weights/sampler"))


@row("ServiceClient.close")
def _(made: Made) -> None:
    made.service.close("success")


# The command line

COMMANDS = (
    "version",
    "auth status",
    "auth whoami",
    "model list",
    "run list",
    "run info {run}",
    "checkpoint list",
    "checkpoint list --run-id {run}",
    "checkpoint info {state}",
    "checkpoint publish {state}",
    "checkpoint unpublish {state}",
    "checkpoint set-ttl {state} --ttl 7200",
    "billing usage {begin} {end}",
    "billing checkpoint-storage",
    "checkpoint delete {state} -y",
)


def command(words: str) -> Row:
    def run(made: Made) -> None:
        begin, end = (one.isoformat() for one in hours())
        filled = words.format(run=run_id(made), state=made.state, begin=begin, end=end)
        script = Path(sys.executable).parent / "tinker"
        if not script.exists():  # there was none yet
            raise NotImplementedError
        asked = [script, *filled.split()]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS, check=False)
        output = answer.stdout + answer.stderr
        if "No such command" in output or "No such option" in output or "No module named" in output:
            raise NotImplementedError
        check(answer.returncode == 0, output[-300:])

    return run


for _words in COMMANDS:
    ROWS[f"tinker {_words}"] = command(_words)


def attempt(name: str, function: Row, made: Made) -> str:
    owner, _, method = name.partition(".")
    if not name.startswith("tinker ") and not hasattr(ours(owner), method):
        return "absent"
    try:
        signal.alarm(SECONDS + 30)
        function(made)
    except NotImplementedError:
        return "absent"
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return f"fails: {type(error).__name__}: {str(error)[:160]}"
    finally:
        signal.alarm(0)
    return "works"


def _too_long(*_: object) -> None:
    raise TimeoutError("no answer")


def main() -> None:
    signal.signal(signal.SIGALRM, _too_long)
    made = Made()
    with contextlib.redirect_stdout(io.StringIO()):
        made.service = tinker.ServiceClient()
        found = {name: attempt(name, function, made) for name, function in ROWS.items()}
    json.dump({"version": os.environ["SDK_VERSION"], "rows": found}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # old versions leave threads that do not end


if __name__ == "__main__":
    main()
