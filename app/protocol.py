"""The protocol of a connection: what is upgraded, and what happens when the server is told to stop.

Owns that streams which would go on for ever end at once then, and that an offer to go on in
another protocol is passed over (RFC 9110, 7.8), unless it is a GET for a WebSocket. Owns nothing
else: the rest is uvicorn's, which waits for whatever is being answered.

Invariants: a stream of events never holds up a shutdown, whether its client reads it or not.
An offer that is passed over changes neither the request nor those after it.
"""

from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ENDLESS: Final = "/api/events"
UNREAD_S: Final = 1.0
"""How long a client that does not read is given for the rest of a stream."""


class Connection(HttpToolsProtocol):
    """A connection of a client."""

    def data_received(self, data: bytes) -> None:
        """Read on.

        The parser ends where another protocol would begin, before the body, and reads nothing
        after it. Left at that, a request would be answered without its body (clients of Java
        offer HTTP/2 with their first one), and the next one never.
        """
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as end:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self._offers():
                self._pass_over(data[end.args[0] :])

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the request is read once more."""
        if not self._offers():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Say that the request is whole, unless it is read once more."""
        if not self._offers():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def _offers(self) -> bool:
        """Whether the request offers a protocol that is not spoken here."""
        return (
            self.parser.should_upgrade()
            and self.parser.get_method() != b"CONNECT"
            and not self._should_upgrade()
        )

    def _pass_over(self, rest: bytes) -> None:
        """Read the request again as if it had offered nothing, and what came after its head."""
        parser = self.parser
        version = parser.get_http_version().encode()
        head = [parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def shutdown(self) -> None:
        """End in order."""
        front: Any = self.app
        front.drain()
        super().shutdown()
        # No request was read yet: there is no scope, whatever its type says.
        scope: Any = self.scope
        if scope is not None and scope["path"] == ENDLESS:
            self.loop.call_later(UNREAD_S, self.transport.abort)
