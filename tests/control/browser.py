"""A browser that talks to the control plane: it keeps cookies, and knows its CSRF token."""

from __future__ import annotations

from typing import Any

import httpx2

HOST = "spendgate.test"


class Browser:
    """One member's browser, at an address of its own."""

    def __init__(self, app: Any, *, scheme: str = "http", address: str = "192.0.2.1") -> None:
        self.client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app, client=(address, 50000)),
            base_url=f"{scheme}://{HOST}",
        )
        self.csrf_token = ""

    async def log_in(self, email: str, password: str, **headers: str) -> httpx2.Response:
        """Try to sign in."""
        answer = await self.client.post(
            "/api/auth/login",
            json={"email": email, "password": password},
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        if answer.status_code == 200:
            self.csrf_token = answer.json()["csrf_token"]
        return answer

    async def call(
        self, method: str, path: str, body: Any = None, *, csrf: str | None = "", **headers: str
    ) -> httpx2.Response:
        """Send a request, with the session's CSRF token unless told otherwise (None: without)."""
        sent = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
        if csrf is not None:
            sent["x-csrf-token"] = (csrf or self.csrf_token).encode()
        return await self.client.request(method, f"/api{path}", json=body, headers=sent)

    async def status(self, method: str, path: str, body: Any = None, **more: Any) -> int:
        """Return the status of an answer."""
        return (await self.call(method, path, body, **more)).status_code

    @property
    def cookies(self) -> dict[str, str]:
        """What it keeps."""
        return {cookie.name: str(cookie.value) for cookie in self.client.cookies.jar}
