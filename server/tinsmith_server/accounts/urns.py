"""How accounts are named to clients, as `whoami` spells them."""


def organization_urn(organization_id: str) -> str:
    return f"tml:organization:{organization_id}"


def key_urn(key_id: str) -> str:
    """There are no users yet: who acts is a key."""
    return f"tml:api_key:{key_id}"
