"""Limits of the organization, its projects and its keys: each with a meter, and a form to agree on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts import key_desk
from tinsmith_server.accounts.allowances import Standing
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.limits import NAMES, LimitValues, Subject, all_limits, set_limits
from tinsmith_server.accounts.meters import meters
from tinsmith_server.accounts.projects import projects
from tinsmith_server.console.security import Admin, console_router, redirect
from tinsmith_server.console.templating import page
from tinsmith_server.service import Served, Service

router: APIRouter = console_router()
_WHOLE = {field.name for field in fields(LimitValues) if "int" in str(field.type)}


@dataclass(frozen=True)
class Choice:
    """Somebody that limits can be agreed on for."""

    subject: Subject
    subject_id: str
    label: str

    @property
    def address(self) -> str:
        return f"{self.subject}:{self.subject_id}"


@router.get("/limits")
async def limits_page(request: Request, member: Admin, service: Served, of: str = "") -> Response:
    return await _page(request, member, service, of)


@router.post("/limits")
async def agree(request: Request, member: Admin, service: Served) -> Response:
    """A field left empty is no limit."""
    form = {name: str(value) for name, value in (await request.form()).items()}
    of = form.get("of", "")
    try:
        subject, subject_id = _parsed(of)
        values = LimitValues(**{name: _number(name, form.get(name, "")) for name in NAMES})
        async with service.db.begin() as sql:
            await set_limits(sql, member, subject, subject_id, values)
    except BadRequest as error:
        return await _page(request, member, service, of, given=form, error=error.message)
    await service.limits.changed(member.organization_id)
    service.allowances.changed(member.organization_id)
    return redirect(f"/limits?{urlencode({'of': of})}")


async def _page(
    request: Request,
    member: SignedIn,
    service: Service,
    of: str,
    given: Mapping[str, str] | None = None,
    error: str = "",
) -> Response:
    choices = await _choices(service, member)
    chosen = next((one for one in choices if one.address == of), choices[0])
    async with service.db.begin() as sql:
        agreed = await all_limits(sql, member.organization_id)
    mine = agreed.get((chosen.subject, chosen.subject_id), LimitValues())
    found = await meters(service, member.organization_id)
    return page(
        request,
        "limits.html",
        400 if error else 200,
        choices=choices,
        chosen=chosen,
        names=NAMES,
        given=given or {name: _shown(getattr(mine, name)) for name in NAMES},
        metered=_by_choice(choices, found),
        error=error,
    )


async def _choices(service: Service, member: SignedIn) -> Sequence[Choice]:
    async with service.db.begin() as sql:
        named = [one.id for one in await projects(sql, member.organization_id)]
        agreed = await all_limits(sql, member.organization_id)
    named += [name for subject, name in agreed if subject is Subject.PROJECT and name not in named]
    keys = [one for one in await key_desk.list_keys(service, member) if not one.revoked_at]
    return [
        Choice(Subject.ORGANIZATION, member.organization_id, "This organization"),
        *(Choice(Subject.PROJECT, name, f"Project {name}") for name in named),
        *(Choice(Subject.KEY, one.id, f"Key {one.name} ({one.id})") for one in keys),
    ]


def _by_choice(
    choices: Sequence[Choice], found: Sequence[Standing]
) -> list[tuple[Choice, list[Standing]]]:
    """Those that have a limit, each with its meters in the order of the form."""
    ordered = sorted(found, key=lambda one: NAMES.index(one.limit))
    rows = [
        (one, [row for row in ordered if (row.subject, row.subject_id) == _whose(one)])
        for one in choices
    ]
    return [(one, mine) for one, mine in rows if mine]


def _whose(one: Choice) -> tuple[Subject, str]:
    return one.subject, one.subject_id


def _parsed(of: str) -> tuple[Subject, str]:
    subject, _, subject_id = of.partition(":")
    if subject not in list(Subject):
        raise BadRequest("of: give organization, project or key, a colon and its name.")
    return Subject(subject), subject_id


def _number(name: str, text: str) -> Any:
    """None where nothing is given."""
    text = text.strip()
    if not text:
        return None
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise BadRequest(f"{name}: give {kind}, or nothing for no limit.") from None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"
