"""Receivers: where the host of a webhook is, and whether one may go there.

Owns the look-up of names and who waits for it. Owns no judgement of an address (see `core.alerts`)
and no connection.

Invariants: every address that a name has is judged, and one that is forbidden forbids them all; a
look-up that hangs keeps nobody from anything but their own webhook.
"""

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from app.core.alerts import Network, Receiver, forbidden_address
from app.core.faults import Fault

LOOK_UPS_MAX = 32
ADDRESSES_MAX = 4
"""Addresses of one name that are of use; the others are judged all the same."""


class Forbidden(Fault):
    """A webhook may not go there; the text says why, and is safe to show."""


class Unknown(Exception):
    """The host has no address, as far as can be told now."""


class Receivers:
    """Looks hosts up; `allowed` are networks that the settings open although they are private."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self.allowed = allowed
        # Of its own, since the system may take half a minute over a name: nothing else that runs
        # in threads is to wait behind that.
        self._threads = ThreadPoolExecutor(LOOK_UPS_MAX, "look-up")

    def close(self) -> None:
        """Look nothing up any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, receiver: Receiver) -> list[str]:
        """Return the addresses of a host, of which one may be connected to.

        Raises `Forbidden` or `Unknown`.
        """
        for address in (found := await self._look_up(receiver)):
            wrong = forbidden_address(address, self.allowed)
            if wrong is not None:
                raise Forbidden(
                    "host_forbidden", "{host} is at {address}", host=receiver.host, address=wrong
                )
        return found[:ADDRESSES_MAX]

    async def _look_up(self, receiver: Receiver) -> list[str]:
        try:
            return [str(ip_address(receiver.host))]
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads,
                lambda: socket.getaddrinfo(receiver.host, receiver.port, type=socket.SOCK_STREAM),
            )
        except (OSError, UnicodeError):
            raise Unknown(f"{receiver.host} has no address") from None
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
