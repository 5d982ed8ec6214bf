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
    """To a project, or, as the SDK did until 0.33, to a session's: then with a number of a run in it."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


class WeightsCopied(Answer, kw_only=True, frozen=True):
    tinker_path: str
