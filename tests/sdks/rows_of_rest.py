"""Rows of RestClient, AdminClient, and `tinker.auth`."""

import datetime
import os
from typing import Any

from tests.sdks.vocabulary import (
    MODEL,
    Made,
    check,
    copied,
    done,
    ours,
    row,
    run_id,
    session_id,
    types,
)


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
    check(made.state in listed(made), "not listed")


@row("RestClient.list_user_checkpoints")
def _(made: Made) -> None:
    check(done(made.rest.list_user_checkpoints()).checkpoints, "none listed")


def another(made: Made) -> str:
    """A checkpoint of this row alone: what is public cannot be made public again."""
    return str(done(made.run.save_weights_for_sampler(made.name())).path)


@row("RestClient.publish_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    done(made.rest.publish_checkpoint_from_tinker_path(another(made)))


@row("RestClient.unpublish_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    path = another(made)
    done(made.rest.publish_checkpoint_from_tinker_path(path))
    done(made.rest.unpublish_checkpoint_from_tinker_path(path))


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
    check(done(made.rest.get_external_weights_urls(made.external)).urls, "urls")


@row("RestClient.copy_weights")
def _(made: Made) -> None:
    check(copied(made.rest.copy_weights(made.state, "project")) != made.state, "the same path")


@row("RestClient.list_sessions")
def _(made: Made) -> None:
    check(session_id(made) in done(made.rest.list_sessions()).sessions, "not listed")


@row("RestClient.get_session")
def _(made: Made) -> None:
    check(done(made.rest.get_session(session_id(made))).training_run_ids, "no runs")


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
    done(made.rest.assign_session_project(session_id(made), "project"))


@row("RestClient.export_session_trace")
def _(made: Made) -> None:
    check(done(made.rest.export_session_trace(session_id(made))), "url")


@row("RestClient.get_sampler")
def _(made: Made) -> None:
    sampler = done(made.rest.get_session(session_id(made))).sampler_ids[0]
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


def reporter(made: Made, owner: str) -> Any:
    """Whoever is asked for reports; an AdminClient is made for its first row."""
    if owner == "RestClient":
        return made.rest
    if not hasattr(made, "admin"):
        made.admin = ours("AdminClient")()
    return made.admin


for _owner in ("RestClient", "AdminClient"):

    @row(f"{_owner}.get_audit_log")
    def _(made: Made, owner: str = _owner) -> None:
        entries = done(reporter(made, owner).get_audit_log()).entries
        check(entries, "nothing is in the log")

    @row(f"{_owner}.get_billing_usage")
    def _(made: Made, owner: str = _owner) -> None:
        check(done(reporter(made, owner).get_billing_usage(*hours())).data, "no usage")

    @row(f"{_owner}.get_current_checkpoint_storage_usage")
    def _(made: Made, owner: str = _owner) -> None:
        usage = done(reporter(made, owner).get_current_checkpoint_storage_usage()).data
        check(sum(one.checkpoint_count for one in usage) > 0, "no checkpoints")


@row("RestClient.delete_checkpoint_from_tinker_path")
def _(made: Made) -> None:
    path = done(made.run.save_weights_for_sampler(made.name())).path
    done(made.rest.delete_checkpoint_from_tinker_path(path))
    check(path not in listed(made), "still listed")


@row("RestClient.delete_checkpoint")
def _(made: Made) -> None:
    path = done(made.run.save_weights_for_sampler(made.name())).path
    done(made.rest.delete_checkpoint(*path.removeprefix("tinker://").split("/", 1)))
    check(path not in listed(made), "still listed")


def listed(made: Made) -> list[str]:
    found = done(made.rest.list_checkpoints(run_id(made))).checkpoints
    return [one.tinker_path for one in found]


@row("auth.get_tinker_token")
def _(_: Made) -> None:
    check(ours("auth").get_tinker_token() == os.environ["TINKER_API_KEY"], "another key")


@row("auth.tinker_has_credentials")
def _(_: Made) -> None:
    check(ours("auth").tinker_has_credentials(), "it has one")


@row("auth.raise_if_tinker_not_accessible")
def _(_: Made) -> None:
    ours("auth").raise_if_tinker_not_accessible()
