"""What is there for a caller: what is its organization's, and for a key of one project, of that project.

The rest is as absent as what never was.
"""

from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts.caller import Caller
from tinsmith_server.db import Session, TrainingRun


def own_sessions(user: Caller) -> ColumnElement[bool]:
    """Of a query over sessions."""
    mine = Session.organization_id == user.organization_id
    return mine if user.project_id is None else mine & (Session.project_id == user.project_id)


def own(user: Caller, table: Any) -> ColumnElement[bool]:
    """Of a query over a table whose rows name their organization and their session."""
    mine: ColumnElement[bool] = table.organization_id == user.organization_id
    return mine if user.project_id is None else mine & _in_project(user, table.session_id)


def own_by_run(user: Caller, table: Any) -> ColumnElement[bool]:
    """The same where the rows name a training run."""
    mine: ColumnElement[bool] = table.organization_id == user.organization_id
    if user.project_id is None:
        return mine
    runs = select(TrainingRun.id).where(_in_project(user, TrainingRun.session_id))
    inside: ColumnElement[bool] = table.run_id.in_(runs)
    return mine & inside


async def reaches(sql: AsyncSession, user: Caller, row: Any) -> bool:
    """Whether this row, of a table as `own` wants it, is there for the caller."""
    if row is None or row.organization_id != user.organization_id:
        return False
    if user.project_id is None:
        return True
    session = row if isinstance(row, Session) else await sql.get(Session, row.session_id)
    return session is not None and session.project_id == user.project_id


def check_project(user: Caller, project_id: str, field: str = "project_id") -> str:
    """A key of one project puts nothing anywhere else."""
    if user.project_id not in (None, project_id):
        raise BadRequest(f"{field}: this key is for the project {user.project_id!r} alone.")
    return project_id


def _in_project(user: Caller, column: "InstrumentedAttribute[str]") -> ColumnElement[bool]:
    inside: ColumnElement[bool] = column.in_(select(Session.id).where(own_sessions(user)))
    return inside
