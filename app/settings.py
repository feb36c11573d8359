"""What an operator can set, and how it is read from the environment.

Owns the ``SPENDGATE_*`` variables: their names, defaults, meaning and validation, and the two
spellings of a database address that our libraries want. ``VARIABLES`` is the only list of them:
``Settings.from_env``, ``spendgate serve --help`` and the README's check all read it.

Does not own what the settings do, and opens no connection. The only file it ever writes is the
generated secret, in the data directory.

Invariants: a ``Settings`` is valid and never changes. A variable that is set but empty counts as
unset, because that is how compose files and charts spell "not given". No value of a secret is
ever part of an error or of a ``repr``.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
import secrets
import zoneinfo
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

import msgspec

PREFIX: Final = "SPENDGATE_"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LogFormat = Literal["json", "console"]

SECRET_LENGTH_MIN: Final = 8
SECRETS: Final = frozenset({"SECRET_KEY", "DATABASE_URL", "SMTP_URL", "OIDC_CLIENT_SECRET"})
"""Variables that are secrets or hold one: no error quotes them."""


class SettingsError(ValueError):
    """A variable cannot be used. The message names it, says what is wrong and shows a right one."""


class MailServer(msgspec.Struct, frozen=True):
    """Where mail is handed in."""

    host: str
    port: int
    tls: bool
    """Whether TLS begins with the connection, rather than when the server offers it."""
    username: str | None
    password: str | None


class Variable(msgspec.Struct, frozen=True):
    """One ``SPENDGATE_*`` variable: how it is read, and what it is for."""

    name: str
    """Without the prefix."""
    help: str
    """One line, for ``--help`` and the README."""
    parse: Callable[[str], Any]
    """Text to value; raises ``ValueError`` with the end of the sentence "it …"."""
    example: str
    """A value that is right, for errors."""
    default: str
    """How the default reads in the help."""

    @property
    def env(self) -> str:
        return PREFIX + self.name

    @property
    def field(self) -> str:
        """The field of :class:`Settings` that holds it."""
        return "secret" if self.name == "SECRET_KEY" else self.name.lower()


# ----------------------------------------------------------------------------------- parsers


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take "1_0", " 1 " and digits of other scripts.
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError("must be a whole number")
        value = int(text)
        if not least <= value <= most:
            raise ValueError(f"must be from {least} to {most}")
        return value

    return parse


def _seconds(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
            raise ValueError("must be a number of seconds")
        value = float(text)
        if not 0 < value <= most:
            raise ValueError(f"must be more than 0 and at most {most:g} seconds")
        return value

    return parse


_SIZES: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12}) ?(|KiB|MiB|GiB)", text)
    if match is None:
        raise ValueError("must be a number of bytes, or of KiB, MiB or GiB")
    value = int(match[1]) * _SIZES[match[2]]
    if not 1024 <= value <= 2**31:
        raise ValueError("must be from 1KiB to 2GiB")
    return value


def _flag(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
        case _:
            raise ValueError("must be true or false")


def _timezone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be a time zone of the IANA database") from None
    return text


def _networks(text: str) -> tuple[Network, ...]:
    networks = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as error:
            raise ValueError(f"must be networks with commas between them: {error}") from None
    return tuple(networks)


def _smtp(text: str) -> MailServer:
    # Never quoted back: it may carry a password.
    example = "must be an address such as smtp://mail.example.com:587"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(example) from None
    if parts.scheme not in ("smtp", "smtps") or not host:
        raise ValueError(example)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must have nothing after the host and the port")
    if (parts.username is None) != (parts.password is None):
        raise ValueError("must have a user name and a password, or neither")
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    tls = parts.scheme == "smtps"
    usual = 465 if tls else 25 if username is None else 587
    return MailServer(host, port or usual, tls, username, password)


def _mail_address(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+", text):
        raise ValueError("must be an address such as spendgate@example.com")
    return text


def _database(text: str) -> str:
    # Never quoted back: it usually carries a password.
    if not re.match(r"(postgres|postgresql|postgresql\+psycopg)://", text):
        raise ValueError("must begin with postgresql://")
    return psycopg_dsn(text)


def _secret(text: str) -> str:
    if len(text) < SECRET_LENGTH_MIN:
        raise ValueError(f"must have at least {SECRET_LENGTH_MIN} characters")
    return text


def _directory(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("names a home directory that is not known here") from None


def is_confidential(url: str) -> bool:
    """Tell whether what is sent to an address is read by nobody on the way: https, or this host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or not re.fullmatch(r"[\x21-\x7e]+", url):
        return False
    if parts.scheme == "https":
        return True
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    return parts.scheme == "http" and here


def _issuer(text: str) -> str:
    if not is_confidential(text):
        raise ValueError("must be an address that begins with https:// (http:// on this host only)")
    if "?" in text or "#" in text:
        raise ValueError("must have neither a query nor a fragment")
    return text


def _printable(most: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) > most or not text.isprintable():
            raise ValueError(f"must be at most {most} printable characters")
        return text

    return parse


def _scopes(text: str) -> str:
    scopes = text.split()
    if "openid" not in scopes or not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e ]+", text):
        raise ValueError("must be words with spaces between them, openid among them")
    return " ".join(scopes)


def _domains(text: str) -> tuple[str, ...]:
    domains = tuple(filter(None, (part.strip().lower() for part in text.split(","))))
    for domain in domains:
        if not re.fullmatch(
            r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", domain
        ):
            raise ValueError("must be domains such as example.com, with commas between them")
    return domains


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", text):
        raise ValueError("must be an address or a host name, without a port")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(choices)}")

    return parse


# --------------------------------------------------------------------------------- the table

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        name="DATABASE_URL",
        help="PostgreSQL to keep the books in; unset, one of our own runs under the data directory",
        parse=_database,
        example="postgresql://spendgate:password@db.internal:5432/spendgate",
        default="embedded",
    ),
    Variable(
        name="DATA_DIR",
        help="where the embedded database, the outage spool and the generated secret are kept",
        parse=_directory,
        example="/var/lib/spendgate",
        default="$XDG_DATA_HOME/spendgate or ~/.local/share/spendgate",
    ),
    Variable(
        name="SECRET_KEY",
        help="secret behind key digests, sessions and provider credentials; the same on every "
        "replica; unset, one is generated into the data directory",
        parse=_secret,
        example="the output of: openssl rand -base64 48",
        default="generated",
    ),
    Variable(
        name="HOST",
        help="address to listen on; 0.0.0.0 is every address of this machine",
        parse=_host,
        example="127.0.0.1",
        default="127.0.0.1",
    ),
    Variable(
        name="PORT",
        help="port to listen on",
        parse=_whole(0, 65535),
        example="8000",
        default="8000",
    ),
    Variable(
        name="WORKERS",
        help="server processes on this machine; they share nothing but the database",
        parse=_whole(1, 256),
        example="4",
        default="1",
    ),
    Variable(
        name="BILLING_TIMEZONE",
        help="time zone whose midnights begin the billing days and months",
        parse=_timezone,
        example="Asia/Taipei",
        default="UTC",
    ),
    Variable(
        name="HOLD_DEADLINE_S",
        help="seconds after which a call that went silent is settled as recovered; live calls "
        "refresh theirs",
        parse=_seconds(86_400),
        example="60",
        default="60",
    ),
    Variable(
        name="REAPER_PERIOD_S",
        help="seconds between two looks for holds past their deadline",
        parse=_seconds(3_600),
        example="5",
        default="5",
    ),
    Variable(
        name="FIRST_FRAME_S",
        help="seconds a realtime client has to send its first frame",
        parse=_seconds(3_600),
        example="10",
        default="10",
    ),
    Variable(
        name="WEBHOOK_RETRY_S",
        help="seconds before a failed webhook is tried again the first time; it doubles from there",
        parse=_seconds(86_400),
        example="5",
        default="5",
    ),
    Variable(
        name="WEBHOOK_PRIVATE_CIDRS",
        help="private networks that webhooks may reach, with commas between them",
        parse=_networks,
        example="10.20.0.0/16,fd12:3456::/32",
        default="none",
    ),
    Variable(
        name="SMTP_URL",
        help="mail server that alerts and invitations are mailed by: smtp:// takes to TLS if the "
        "server offers it, and insists if there is a password; smtps:// begins with it; unset, "
        "nothing is mailed",
        parse=_smtp,
        example="smtps://spendgate:password@mail.example.com:465",
        default="none",
    ),
    Variable(
        name="SMTP_FROM",
        help="address that mail comes from",
        parse=_mail_address,
        example="spendgate@example.com",
        default="spendgate@localhost",
    ),
    Variable(
        name="TRUSTED_PROXIES",
        help="networks of the proxies whose X-Forwarded-For tells who signs in, with commas "
        "between them",
        parse=_networks,
        example="10.42.0.0/16,fd12:3456::/32",
        default="none",
    ),
    Variable(
        name="OIDC_ISSUER",
        help="OpenID provider that members may sign in with: the issuer as it names itself; its "
        "redirect address is /api/auth/oidc/callback; unset, they sign in with passwords alone",
        parse=_issuer,
        example="https://accounts.example.com",
        default="none",
    ),
    Variable(
        name="OIDC_CLIENT_ID",
        help="what the OpenID provider knows this installation by",
        parse=_printable(500),
        example="spendgate",
        default="spendgate",
    ),
    Variable(
        name="OIDC_CLIENT_SECRET",
        help="secret that goes with it; unset, it is a public client (PKCE is always used)",
        parse=_printable(2000),
        example="the secret that the provider shows for this client",
        default="none",
    ),
    Variable(
        name="OIDC_NAME",
        help="what the button to sign in calls the OpenID provider",
        parse=_printable(60),
        example="Example account",
        default="SSO",
    ),
    Variable(
        name="OIDC_SCOPES",
        help="what the OpenID provider is asked for, with spaces between",
        parse=_scopes,
        example="openid email profile",
        default="openid email profile",
    ),
    Variable(
        name="OIDC_DOMAINS",
        help="domains, with commas between them: whoever has a verified address in one becomes a "
        "member with their first sign-in; nobody in a subdomain does",
        parse=_domains,
        example="example.com,example.org",
        default="none",
    ),
    Variable(
        name="OIDC_LINK_MEMBERS",
        help="whether a member signs in by the OpenID provider for the first time if it has "
        "verified their address; false: only members it has registered do",
        parse=_flag,
        example="true",
        default="true",
    ),
    Variable(
        name="MAX_BODY_BYTES",
        help="largest request body taken, in bytes or with KiB, MiB or GiB",
        parse=_bytes,
        example="32MiB",
        default="32MiB",
    ),
    Variable(
        name="UPSTREAM_CONNECT_TIMEOUT_S",
        help="seconds to wait for a connection to a provider",
        parse=_seconds(3_600),
        example="10",
        default="10",
    ),
    Variable(
        name="UPSTREAM_TIMEOUT_S",
        help="longest silence, in seconds, while waiting on a provider",
        parse=_seconds(86_400),
        example="600",
        default="600",
    ),
    Variable(
        name="OCR_PAGES_MAX",
        help="pages held for an OCR call whose pages can be counted neither from the request nor "
        "from the document",
        parse=_whole(1, 1_000_000),
        example="1000",
        default="1000",
    ),
    Variable(
        name="AUDIO_SECONDS_UNKNOWN",
        help="seconds held for an audio file whose header does not tell its length",
        parse=_whole(1, 1_000_000),
        example="1500",
        default="1500",
    ),
    Variable(
        name="OUTPUT_TOKENS_DEFAULT",
        help="most output tokens assumed of a model that has no maximum on record",
        parse=_whole(1, 10_000_000),
        example="16384",
        default="16384",
    ),
    Variable(
        name="LEDGER_WAIT_S",
        help="seconds a call waits for the database before it is refused with ledger_unavailable",
        parse=_seconds(600),
        example="3",
        default="3",
    ),
    Variable(
        name="WORKER",
        help="whether the serving process also runs the reaper and the jobs",
        parse=_flag,
        example="true",
        default="true",
    ),
    Variable(
        name="LOG_LEVEL",
        help="least important log lines to write: debug, info, warning or error",
        parse=_one_of("debug", "info", "warning", "error"),
        example="info",
        default="info",
    ),
    Variable(
        name="LOG_FORMAT",
        help="json for machines, console for people",
        parse=_one_of("json", "console"),
        example="json",
        default="json",
    ),
    Variable(
        name="BATCH_MAX",
        help="most ledger operations booked in one transaction",
        parse=_whole(1, 65_536),
        example="256",
        default="256",
    ),
)


def data_dir_default(environ: Mapping[str, str]) -> Path:
    """The XDG place for data that a program keeps between runs."""
    base = environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative path here.
    if not base.startswith("/"):
        home = environ.get("HOME", "")
        base = f"{home or Path.home()}/.local/share"
    return Path(base) / "spendgate"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting with its default. What each means is in :data:`VARIABLES`."""

    database_url: str | None = None
    data_dir: Path
    # As given. Callers want secret_key(), which also knows the generated one.
    secret: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    billing_timezone: str = "UTC"
    hold_deadline_s: float = 60.0
    reaper_period_s: float = 5.0
    first_frame_s: float = 10.0
    webhook_retry_s: float = 5.0
    webhook_private_cidrs: tuple[Network, ...] = ()
    smtp_url: MailServer | None = None
    smtp_from: str = "spendgate@localhost"
    trusted_proxies: tuple[Network, ...] = ()
    oidc_issuer: str | None = None
    oidc_client_id: str = "spendgate"
    oidc_client_secret: str | None = None
    oidc_name: str = "SSO"
    oidc_scopes: str = "openid email profile"
    oidc_domains: tuple[str, ...] = ()
    oidc_link_members: bool = True
    max_body_bytes: int = 32 * 2**20
    upstream_connect_timeout_s: float = 10.0
    upstream_timeout_s: float = 600.0
    ocr_pages_max: int = 1_000
    audio_seconds_unknown: int = 1_500
    output_tokens_default: int = 16_384
    ledger_wait_s: float = 3.0
    worker: bool = True
    log_level: str = "info"
    log_format: LogFormat = "json"
    batch_max: int = 256

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Read the environment; ``given`` fields (a command's options) win over it.

        Raises :class:`SettingsError` with every problem at once, so that a broken deployment is
        mended in one round.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {"data_dir": data_dir_default(environ)}
        problems: list[str] = []
        for variable in VARIABLES:
            text = environ.get(variable.env, "").strip()
            if variable.field in given or not text:
                continue
            try:
                values[variable.field] = variable.parse(text)
            except ValueError as error:
                problems.append(_complaint(variable, text, str(error)))
        if problems:
            raise SettingsError("\n".join(problems))
        return cls(**{**values, **given})

    def ensure_data_dir(self) -> Path:
        """Make the data directory if it is not there, open to its owner alone."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.data_dir

    def secret_key(self) -> bytes:
        """The installation's secret: as given, or else generated once into the data directory."""
        if self.secret is not None:
            return self.secret.encode()
        path = self.ensure_data_dir() / "secret.key"
        with contextlib.suppress(FileNotFoundError):
            return _read_secret(path)
        # Two processes may get here at once. Linking a finished file into place lets exactly one
        # win, and nobody ever reads half a secret.
        draft = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        return _read_secret(path)

    def __repr__(self) -> str:
        # The secret, and the addresses that hold passwords, are left out: a repr ends up in logs.
        shown = (
            f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
            if name not in {"secret", "database_url", "smtp_url", "oidc_client_secret"}
        )
        return f"Settings({', '.join(shown)})"

    def __rich_repr__(self) -> Any:
        yield repr(self)


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes().strip()
    if len(secret) < SECRET_LENGTH_MIN:
        raise SettingsError(
            f"{path} is damaged: it holds fewer than {SECRET_LENGTH_MIN} characters. Put the "
            f"secret back from a backup, or set {PREFIX}SECRET_KEY. A new secret makes every key "
            f"and every stored provider credential useless."
        )
    return secret


def _complaint(variable: Variable, text: str, wrong: str) -> str:
    shown = "" if variable.name in SECRETS else f" (it is {text!r})"
    complaint = f"{variable.env} {wrong}{shown}. Right would be: {variable.example}"
    if variable.name == "PORT" and text.startswith("tcp://"):
        complaint += (
            ". Kubernetes sets this variable by itself for a service named spendgate: put "
            "enableServiceLinks: false into the pod"
        )
    return complaint


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """One line for each ``SPENDGATE_*`` variable that we do not have: a typo sets nothing."""
    environ = os.environ if environ is None else environ
    known = [variable.env for variable in VARIABLES]
    lines = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{name} is not a setting and has no effect{hint}")
    return lines


# -------------------------------------------------------------------------- database addresses


def psycopg_dsn(url: str) -> str:
    """The address as psycopg and libpq take it: ``postgresql://…``."""
    return re.sub(r"^(postgres|postgresql|postgresql\+psycopg)://", "postgresql://", url, count=1)


def sqlalchemy_url(url: str) -> str:
    """The address as SQLAlchemy takes it, naming the driver: ``postgresql+psycopg://…``."""
    return psycopg_dsn(url).replace("postgresql://", "postgresql+psycopg://", 1)
