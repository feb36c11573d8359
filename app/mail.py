"""Mail: how a letter leaves the house.

Owns the message that a letter becomes and its way to the mail server. Owns no wording (see
`core.letters`), and neither a queue nor a second try.

Invariants: a password never goes to the mail server in clear; no error holds an address, a secret
or what the server said.
"""

from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final

import aiosmtplib

from app.core.letters import Letter
from app.settings import MailServer

SEND_S: Final = 10.0


class Undelivered(Exception):
    """A try failed; the text is safe to show."""

    def __init__(self, error: str, status_code: int | None = None) -> None:
        super().__init__(error)
        self.status_code = status_code


class Mailer:
    """Hands letters in at one mail server, all from one address."""

    def __init__(self, server: MailServer, mail_from: str) -> None:
        self.server = server
        self.mail_from = mail_from

    async def send(self, letter: Letter, *, to: str, id: str, at: datetime) -> int:
        """Hand a letter in; return the server's status. Raises `Undelivered` or `TimeoutError`."""
        server = self.server
        message = EmailMessage()
        message["From"] = self.mail_from
        message["To"] = to
        message["Subject"] = letter.subject
        message["Date"] = format_datetime(at)
        message["Message-ID"] = f"<{id}@spendgate>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text)
        try:
            await aiosmtplib.send(
                message,
                hostname=server.host,
                port=server.port,
                username=server.username,
                password=server.password,
                use_tls=server.tls,
                # A password never goes over the wire in clear; without one, whatever is offered.
                start_tls=not server.tls if server.username is not None else None,
                timeout=SEND_S,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            code = error.recipients[0].code if error.recipients else None
            raise Undelivered("the mail server refused the recipient", code) from None
        except aiosmtplib.SMTPResponseException as error:
            raise Undelivered(f"the mail server answered {error.code}", error.code) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Undelivered("the mail server could not be reached, or broke off") from None
        return aiosmtplib.SMTPStatus.completed
