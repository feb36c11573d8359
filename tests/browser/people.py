"""People in front of the dashboard: members with a password, and what they may use."""

from __future__ import annotations

import secrets
from typing import Any

from tests.browser.chromium import Json, Window
from tests.gateway.kit import House, Tenant

PASSWORD = "correct horse battery staple"


class Person:
    """A member who can sign in."""

    def __init__(self, house: House, role: str = "member", name: str = "Ada Lovelace") -> None:
        self.house = house
        self.email = f"{secrets.token_hex(6)}@example.org"
        body = {
            "email": self.email,
            "display_name": name,
            "role": role,
            "password": PASSWORD,
        }
        self.member: Json = house.api("POST", "/admin/members", body)
        self.id: str = self.member["id"]

    def given(self, *models: str, key: Json | None = None, **fields: Any) -> Tenant:
        """Give them an allocation (`usd` and `tokens` are its caps), and a key for it."""
        allocation = self.house.allocation(self.id, *models, **fields)
        return Tenant(self.house, allocation, self.house.key(allocation, **(key or {})))

    def enter(self, window: Window, path: str = "/") -> Window:
        """Sign in on a page."""
        window.page.goto(path)
        window.sign_in(self.email, PASSWORD)
        window.settle()
        return window
