"""One HTTP/1.1 connection that asks one thing at a time.

httpx spends more on a request than the service does; here the service is what is measured.
"""

import asyncio
import json
from typing import Any, Self


class Connection:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, api_key: str
    ) -> None:
        self._reader, self._writer, self._api_key = reader, writer, api_key

    @classmethod
    async def open(cls, host: str, port: int, api_key: str) -> Self:
        return cls(*await asyncio.open_connection(host, port), api_key)

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        content = json.dumps(body).encode()
        head = (
            f"POST /api/v1{path} HTTP/1.1\r\nHost: load\r\nX-API-Key: {self._api_key}\r\n"
            "Accept: application/x-protobuf\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        answered = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answered.split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(answered.split(b" ")[1]), await self._reader.readexactly(length)

    async def must(self, path: str, body: object) -> Any:
        status, content = await self.post(path, body)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {content[:300]!r}")
        return json.loads(content)

    async def result(self, request_id: str) -> bytes:
        """Polls, as the SDK does, until the future is there."""
        while True:
            status, content = await self.post("/retrieve_future", {"request_id": request_id})
            if status == 200:
                return content
            if status != 408:
                raise RuntimeError(f"{request_id}: {status} {content[:300]!r}")

    def close(self) -> None:
        self._writer.close()
