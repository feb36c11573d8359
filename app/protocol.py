"""The protocol of a connection: what happens to it when the server is told to stop.

Owns that streams which would go on for ever end at once then. Owns nothing else: the rest is
uvicorn's, which waits for whatever is being answered.

Invariants: a stream of events never holds up a shutdown, whether its client reads it or not.
"""

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ENDLESS: Final = "/api/events"
UNREAD_S: Final = 1.0
"""How long a client that does not read is given for the rest of a stream."""


class Connection(HttpToolsProtocol):
    """A connection of a client."""

    def shutdown(self) -> None:
        """End in order."""
        front: Any = self.app
        front.drain()
        super().shutdown()
        # No request was read yet: there is no scope, whatever its type says.
        scope: Any = self.scope
        if scope is not None and scope["path"] == ENDLESS:
            self.loop.call_later(UNREAD_S, self.transport.abort)
