"""Members and projects of an organization."""

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response
from starlette.requests import Request

from tinsmith_server.accounts import members, projects
from tinsmith_server.accounts.roles import Role
from tinsmith_server.console.security import Admin, Viewer, console_router, redirect
from tinsmith_server.console.templating import page
from tinsmith_server.service import Served

router: APIRouter = console_router()
Text = Annotated[str, Form()]


@router.get("/members")
async def members_page(request: Request, member: Viewer, service: Served) -> Response:
    async with service.db.begin() as sql:
        found = await members.members(sql, member.organization_id)
        invited = (
            await members.invitations(sql, member.organization_id)
            if member.role >= Role.ADMIN
            else []
        )
    return page(request, "members.html", members=found, invitations=invited, roles=list(Role))


@router.post("/members/invite")
async def invite(
    request: Request, member: Admin, service: Served, role: Text, email: Text = ""
) -> Response:
    """The link is shown once."""
    async with service.db.begin() as sql:
        row, secret = await members.invite(sql, member, Role.parse(role), email.strip() or None)
    return page(request, "invited.html", row=row, secret=secret)


@router.post("/members/invitations/{invitation_id}/withdraw")
async def withdraw(invitation_id: str, member: Admin, service: Served) -> Response:
    async with service.db.begin() as sql:
        await members.withdraw(sql, member, invitation_id)
    return redirect("/members")


@router.post("/members/{user_id}/role")
async def set_role(user_id: str, member: Admin, service: Served, role: Text) -> Response:
    async with service.db.begin() as sql:
        await members.set_role(sql, member, user_id, Role.parse(role))
    return redirect("/members")


@router.post("/members/{user_id}/remove")
async def remove(user_id: str, member: Admin, service: Served) -> Response:
    async with service.db.begin() as sql:
        await members.remove(sql, member, user_id)
    return redirect("/members")


@router.post("/account/leave")
async def leave(member: Viewer, service: Served) -> Response:
    """The organization that is looked at."""
    async with service.db.begin() as sql:
        await members.remove(sql, member, member.user_id)
    return redirect("/sign-in")


@router.get("/projects")
async def projects_page(request: Request, member: Viewer, service: Served) -> Response:
    async with service.db.begin() as sql:
        found = await projects.projects(sql, member.organization_id)
    return page(request, "projects.html", projects=found)


@router.post("/projects")
async def create_project(member: Admin, service: Served, name: Text, note: Text = "") -> Response:
    async with service.db.begin() as sql:
        await projects.create_project(sql, member, name.strip(), note)
    return redirect("/projects")


@router.post("/projects/{name}/delete")
async def delete_project(name: str, member: Admin, service: Served) -> Response:
    async with service.db.begin() as sql:
        await projects.delete_project(sql, member, name)
    return redirect("/projects")
