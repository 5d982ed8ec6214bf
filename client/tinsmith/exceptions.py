"""What a call can raise, under the official SDK's names.

TinkerError
 ├─ APIError
 │   ├─ APIConnectionError            no answer, after every retry
 │   │   └─ APITimeoutError
 │   └─ APIStatusError                the service refused: status_code, body
 │       ├─ BadRequestError 400        ├─ AuthenticationError 401
 │       ├─ PermissionDeniedError 403  ├─ NotFoundError 404
 │       ├─ UnprocessableEntityError 422
 │       ├─ RateLimitError 429         └─ InternalServerError 5xx
 └─ RequestFailedError                the request was taken and failed: category "user" or "server"
"""

import contextlib

import httpx
import msgspec


class TinkerError(Exception):
    pass


class APIError(TinkerError):
    def __init__(self, message: str, body: object | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.body = body


class APIConnectionError(APIError):
    pass


class APITimeoutError(APIConnectionError):
    pass


class APIStatusError(APIError):
    def __init__(self, message: str, status_code: int, body: object | None) -> None:
        super().__init__(message, body)
        self.status_code = status_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.status_code, self.body)


class BadRequestError(APIStatusError):
    pass


class AuthenticationError(APIStatusError):
    pass


class PermissionDeniedError(APIStatusError):
    pass


class NotFoundError(APIStatusError):
    pass


class UnprocessableEntityError(APIStatusError):
    pass


class RateLimitError(APIStatusError):
    pass


class InternalServerError(APIStatusError):
    pass


class RequestFailedError(TinkerError):
    def __init__(self, message: str, request_id: str, category: str) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.category = category

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.request_id, self.category)


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(response: httpx.Response) -> APIStatusError:
    """The exception of a refusal; its text is the sentence the service gave."""
    status = response.status_code
    default = InternalServerError if status >= 500 else APIStatusError
    body: object = response.text
    detail = response.text[:500]
    with contextlib.suppress(msgspec.DecodeError):  # a proxy's page, say
        body = msgspec.json.decode(response.content)
    if isinstance(body, dict) and "detail" in body:
        detail = str(body["detail"])
    return _BY_STATUS.get(status, default)(f"Error code: {status} - {detail}", status, body)
