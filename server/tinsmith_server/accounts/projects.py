"""Projects: names that sessions and keys of an organization share."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.tables import Project
from tinsmith_server.db import ApiKey, Session

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,100}")


@dataclass(frozen=True)
class ProjectRow:
    id: str
    note: str
    created_at: datetime | None
    """None for one that only sessions name."""
    sessions: int
    keys: int


def check_project_name(project_id: str, field: str = "project_id") -> str:
    if not _NAME.fullmatch(project_id):
        raise BadRequest(
            f"{field}: {project_id[:80]!r} is not a project. Use 1 to 100 letters, digits, "
            "'_', '-', '.' or ':'."
        )
    return project_id


async def projects(sql: AsyncSession, organization_id: str) -> list[ProjectRow]:
    """Those that were made and those that sessions name, by name."""
    made = select(Project).where(Project.organization_id == organization_id)
    rows = {row.id: row for row in (await sql.scalars(made)).all()}
    sessions = await _counts(sql, Session.project_id, Session.organization_id == organization_id)
    keys = await _counts(sql, ApiKey.project_id, ApiKey.organization_id == organization_id)
    return [
        ProjectRow(
            name,
            rows[name].note if name in rows else "",
            rows[name].created_at if name in rows else None,
            sessions.get(name, 0),
            keys.get(name, 0),
        )
        for name in sorted({*rows, *sessions, *keys})
    ]


async def _counts(sql: AsyncSession, column: Any, where: ColumnElement[bool]) -> dict[str, int]:
    query = select(column, func.count()).where(where).group_by(column)
    return {name: count for name, count in (await sql.execute(query)).all() if name is not None}


async def create_project(sql: AsyncSession, by: SignedIn, name: str, note: str = "") -> Project:
    check_project_name(name, "name")
    if len(note) > 500:
        raise BadRequest("note: longer than 500 characters.")
    if await sql.get(Project, (by.organization_id, name)) is not None:
        raise BadRequest(f"name: there is a project {name!r} already.")
    row = Project(organization_id=by.organization_id, id=name, note=note)
    sql.add(row)
    audit.record_member(sql, by, "project_created", project_id=name)
    return row


async def delete_project(sql: AsyncSession, by: SignedIn, name: str) -> None:
    """Only an empty one: what was made in it would have nowhere to be."""
    row = await sql.get(Project, (by.organization_id, name))
    if row is None:
        raise NotFound("There is no such project.")
    found = [one for one in await projects(sql, by.organization_id) if one.id == name]
    if found[0].sessions or found[0].keys:
        raise BadRequest(f"project: {name!r} has sessions or keys; move them first.")
    await sql.delete(row)
    audit.record_member(sql, by, "project_deleted", project_id=name)
