"""Browsers that talk to the control plane, and the members who sign in with them."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec

HOST = "spendgate.test"
PASSWORD = "correct horse battery"


class Browser:
    """One browser, at an address of its own: it keeps cookies, and knows its CSRF token."""

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


class Somebody(msgspec.Struct):
    """A member with a password, and their browser."""

    member: Any
    browser: Browser

    @property
    def email(self) -> str:
        return str(self.member["email"])

    async def log_in(self, password: str = PASSWORD) -> Any:
        """Sign in, which must succeed; return the document."""
        answer = await self.browser.log_in(self.email, password)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Town:
    """Members, and browsers that are closed in the end."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.browsers: list[Browser] = []

    def browser(self, app: Any = None, **more: Any) -> Browser:
        browser = Browser(self.plane.app if app is None else app, **more)
        self.browsers.append(browser)
        return browser

    async def somebody(self, role: str = "member", **more: Any) -> Somebody:
        member = await self.plane.member(role=role, password=PASSWORD, **more)
        return Somebody(member, self.browser())

    async def inside(self, role: str = "member", **more: Any) -> Somebody:
        """Somebody who has signed in."""
        somebody = await self.somebody(role, **more)
        await somebody.log_in()
        return somebody
