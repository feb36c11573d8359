"""The vault: what becomes of secrets before they are stored.

Owns the keys derived from the installation's secret: one that digests bearer secrets (member keys,
admin tokens, tokens of sessions, links of invitations), one that seals what has to be read again
(credentials of providers, secrets of webhooks). Owns no row.

Invariants: a bearer secret is stored only as an HMAC-SHA256 digest; a credential only under
AES-256-GCM, bound to its row and version, so that sealed values cannot be swapped between rows.
"""

import base64
import hmac
import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_PREFIX = "sg_"
ADMIN_TOKEN_PREFIX = "sga_"
WEBHOOK_SECRET_PREFIX = "whsec_"
INVITATION_PREFIX = "sgi_"
_FORMAT = b"\x01"


class Vault:
    """Digests and seals under one installation's secret."""

    def __init__(self, secret: bytes) -> None:
        # Every call needs a digest: a copy of what is keyed already is made sooner than another.
        self._keyed = hmac.new(_derive(secret, b"spendgate bearer digest"), digestmod="sha256")
        self._seal = AESGCM(_derive(secret, b"spendgate credential seal"))
        self.fingerprint = _derive(secret, b"spendgate fingerprint").hex()[:16]

    def digest(self, bearer: str) -> bytes:
        """Return the digest under which a bearer secret is stored and looked up."""
        digest = self._keyed.copy()
        digest.update(bearer.encode("utf-8", "surrogateescape"))
        return digest.digest()

    def csrf_token(self, session_token: str) -> str:
        """Return what proves, beside its cookie, that a request comes from a session's own page."""
        return self.digest(f"csrf {session_token}").hex()

    def seal(self, credential: str, row_id: str, version: int) -> bytes:
        """Encrypt a credential for one row at one version."""
        nonce = os.urandom(12)
        return (
            _FORMAT + nonce + self._seal.encrypt(nonce, credential.encode(), _aad(row_id, version))
        )

    def unseal(self, sealed: bytes, row_id: str, version: int) -> str:
        """Decrypt a credential. Raises `ValueError` if it was sealed elsewhere or otherwise."""
        if sealed[:1] != _FORMAT:
            raise ValueError("the credential is in an unknown format")
        try:
            return self._seal.decrypt(sealed[1:13], sealed[13:], _aad(row_id, version)).decode()
        except InvalidTag:
            raise ValueError("the credential was sealed under another secret or row") from None


def new_key() -> str:
    """Return a new member key: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_admin_token() -> str:
    """Return a new admin token: 256 random bits."""
    return ADMIN_TOKEN_PREFIX + secrets.token_urlsafe(32)


def new_webhook_secret() -> str:
    """Return a new secret that webhooks are signed with, as Standard Webhooks writes it."""
    return WEBHOOK_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def new_session_token() -> str:
    """Return a new token of a session: 256 random bits."""
    return secrets.token_urlsafe(32)


def new_invitation_token() -> str:
    """Return a new secret of an invitation's link: 256 random bits."""
    return INVITATION_PREFIX + secrets.token_urlsafe(32)


def hint_of(bearer: str) -> str:
    """Return what may be shown of a secret later on: enough to tell it from others."""
    return f"{bearer[:6]}…{bearer[-4:]}"


def _aad(row_id: str, version: int) -> bytes:
    return f"provider|{row_id}|{version}".encode()


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=purpose).derive(secret)
