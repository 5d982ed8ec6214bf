"""What a member may do. Each role may also do what the ones before it may."""

from enum import IntEnum

from tinsmith.protocol.errors import BadRequest, Forbidden


class Role(IntEnum):
    VIEWER = 1
    """Looks at everything of the organization but its audit log and its members' keys."""
    MEMBER = 2
    """Makes keys, trains, samples, changes checkpoints."""
    ADMIN = 3
    """Members, invitations, projects, everybody's keys, limits, the audit log."""
    OWNER = 4
    """Owners and admins: makes them and unmakes them."""

    @classmethod
    def parse(cls, name: str) -> "Role":
        try:
            return cls[name.upper()]
        except KeyError:
            names = ", ".join(role.label for role in cls)
            raise BadRequest(f"role: {name[:40]!r} is not one of {names}.") from None

    @property
    def label(self) -> str:
        return self.name.lower()


def check_may_give(giver: Role, role: Role) -> None:
    """Nobody makes, or unmakes, who stands above an ordinary member, but an owner."""
    if giver < Role.ADMIN or (role > Role.MEMBER and giver < Role.OWNER):
        raise Forbidden(f"role: a member with the role {giver.label} cannot give {role.label}.")
