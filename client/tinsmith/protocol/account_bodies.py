"""JSON bodies of the calls about one's own key (wire: 1.3, 1.5). The SDK requires every field."""

from tinsmith.protocol.bodies import Answer


class TokenIssued(Answer, kw_only=True, frozen=True):
    jwt: str


class OrganizationDetails(Answer, kw_only=True, frozen=True):
    name: str


class UserDetails(Answer, kw_only=True, frozen=True):
    email: str = ""


class KeyDetails(Answer, kw_only=True, frozen=True):
    org_details: OrganizationDetails
    user_details: UserDetails


class KeyInfo(Answer, kw_only=True, frozen=True):
    key_id: int
    name: str
    details: KeyDetails
    note: str = ""
