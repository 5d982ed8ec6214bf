"""Reads every future beside the clients, as soon as it has an answer, and once more at the end."""

import threading

import httpx

from tests.chaos.client import Client
from tests.chaos.cluster import Cluster


class Auditor:
    def __init__(self, cluster: Cluster, clients: list[Client]) -> None:
        self._cluster, self._clients = cluster, clients
        self.answers: dict[str, bytes] = {}
        """By request id, as it was answered first."""
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(client,), name="auditor")
            for client in clients
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The clients are through; each thread reads on to the end of what they sent."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def changed(self) -> list[str]:
        """Requests that are answered differently by now."""
        with self._http() as http:
            return [one for one, told in self.answers.items() if self._ask(http, one) != told]

    def _follow(self, client: Client) -> None:
        index, seq_id = 0, 0
        with self._http() as http:
            while True:
                last_look = self._stopped.is_set()
                if index < len(client.run_ids):
                    request_id = f"{client.run_ids[index]}:{seq_id}"
                    if (told := self._ask(http, request_id)) is not None:
                        self.answers[request_id] = told
                        seq_id += 1
                        continue
                    if index + 1 < len(client.run_ids):
                        index, seq_id = index + 1, 0
                        continue
                if last_look:
                    return
                self._stopped.wait(0.1)

    def _ask(self, http: httpx.Client, request_id: str) -> bytes | None:
        """None when no such request was ever sent."""
        while True:
            try:
                told = http.post("/retrieve_future", json={"request_id": request_id})
            except httpx.TransportError:
                continue
            if told.status_code == 200:
                return told.content
            if told.status_code == 410:
                return None
            assert told.status_code in (408, 503), told.text

    def _http(self) -> httpx.Client:
        headers = {"X-API-Key": self._cluster.api_key, "Accept": "application/x-protobuf"}
        return httpx.Client(
            base_url=f"{self._cluster.url}/api/v1", headers=headers, timeout=60, trust_env=False
        )
