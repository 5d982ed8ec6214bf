"""JSON bodies of what leaves the service, or is copied inside it (wire: 8.6, 8.7)."""

from datetime import datetime

from tinsmith.protocol.bodies import Answer, Body


class FileUrls(Answer, kw_only=True, frozen=True):
    urls: dict[str, str]
    expires: datetime


class Export(Body, kw_only=True, frozen=True):
    tinker_path: str
    format: str = "merged"
    untie_unembedding: bool = False


class CopyWeights(Body, kw_only=True, frozen=True):
    source_path: str
    destination_project_id: str
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


class WeightsCopied(Answer, kw_only=True, frozen=True):
    tinker_path: str
