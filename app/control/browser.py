"""The browser: what it keeps for a session, and what it says of where a request comes from.

Owns the cookies, the CSRF header, the Origin, and the address of the client. Owns no session and no
secret.

Invariants:

- The cookies are out of reach of scripts and of other sites' requests; over https they are bound to
  this host by their names, and one by another name opens nothing.
- What a client says of its address is not believed; what a proxy of ours says of it is.
"""

import hmac
import re
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie

from app.control.errors import Refused
from app.core.faults import Fault
from app.settings import Network

COOKIE: Final = "spendgate"
SECURE_COOKIE: Final = "__Host-spendgate"
FLOW: Final = "-oidc"
"""What is added to the name for the cookie of who is at their identity provider."""
CSRF_HEADER: Final = "X-CSRF-Token"
USER_AGENT_LENGTH_MAX: Final = 300

AnyConnection = ASGIConnection[Any, Any, Any, Any]


# The cookies


def session_token(connection: AnyConnection) -> str | None:
    """Return the token of the session that a request says it belongs to."""
    return connection.cookies.get(_cookie_name(connection)) or None


def session_cookie(connection: AnyConnection, token: str, lasts: timedelta) -> Cookie:
    """Return the cookie that keeps a token for a while; for no time, it takes it away."""
    return _cookie(connection, _cookie_name(connection), token, lasts)


def flow_token(connection: AnyConnection) -> str | None:
    """Return what a browser was sent to its identity provider with."""
    return connection.cookies.get(_cookie_name(connection) + FLOW) or None


def flow_cookie(connection: AnyConnection, token: str, lasts: timedelta) -> Cookie:
    """Return the cookie that keeps it for a while; for no time, it takes it away."""
    return _cookie(connection, _cookie_name(connection) + FLOW, token, lasts)


def _cookie(connection: AnyConnection, name: str, value: str, lasts: timedelta) -> Cookie:
    return Cookie(
        name,
        value=value,
        path="/",
        max_age=int(lasts.total_seconds()),
        secure=_is_https(connection),
        httponly=True,
        # Another site's page does not make a browser send it, but a way that leads here does.
        samesite="lax",
    )


def _cookie_name(connection: AnyConnection) -> str:
    return SECURE_COOKIE if _is_https(connection) else COOKIE


def _is_https(connection: AnyConnection) -> bool:
    # A client that says so wrongly harms itself only: its cookie goes by another name.
    forwarded = connection.headers.get("x-forwarded-proto", "").partition(",")[0]
    return connection.scope["scheme"] == "https" or forwarded.strip().lower() == "https"


# Where a request comes from


def check_origin(connection: AnyConnection) -> None:
    """Refuse what another site's page makes a browser send."""
    origin = connection.headers.get("origin")
    if origin is None:
        return
    scheme, port = ("https", ":443") if _is_https(connection) else ("http", ":80")
    host = connection.headers.get("host", "").lower().removesuffix(port)
    if origin.lower() != f"{scheme}://{host}":
        shown = origin[:200].encode("ascii", "replace").decode()
        raise Refused(
            403,
            Fault(
                "foreign_origin",
                "The request comes from {origin}, which is not {ours}.",
                origin=shown,
                ours=f"{scheme}://{host}",
            ),
        )


def base_url(connection: AnyConnection) -> str:
    """Return the address that a client has of us. Refuses one that is none."""
    scheme = "https" if _is_https(connection) else "http"
    host = connection.headers.get("host", "")
    if not re.fullmatch(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", host):
        raise Refused(400, Fault("no_host", "The header Host does not name a host."))
    return f"{scheme}://{host}"


def check_csrf(connection: AnyConnection, token: str) -> None:
    """Refuse a request that does not carry the token that only our own page can know."""
    given = connection.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        raise Refused(
            403,
            Fault(
                "csrf",
                "The header {header} is missing or is not this session's `csrf_token`, which "
                "`GET /api/auth/session` shows.",
                header=CSRF_HEADER,
            ),
        )


def user_agent(connection: AnyConnection) -> str:
    """Return what a client says it is, as text that can be kept."""
    said = connection.headers.get("user-agent", "")
    return "".join(c for c in said if c.isprintable())[:USER_AGENT_LENGTH_MAX]


def client_address(connection: AnyConnection, proxies: Sequence[Network]) -> str:
    """Return the address of the client: the nearest one that is not a proxy of ours."""
    client = connection.scope.get("client")
    address = _address(client[0]) if client else None
    forwarded = connection.headers.get("x-forwarded-for", "").split(",")
    while address is not None and forwarded and any(address in proxy for proxy in proxies):
        said = _address(forwarded.pop().strip())
        if said is None:
            break
        address = said
    return "" if address is None else str(address)


def block_of(address: str) -> str:
    """Return what counts as one address: all of a /64, of which every IPv6 client has one."""
    known = _address(address)
    if isinstance(known, IPv6Address):
        return str(ip_network((known, 64), strict=False))
    return address


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
