"""Alerts: which events a settlement sets off, what they say, when to try again, and where to.

Owns the rules on totals and the crossing of their thresholds, the bodies and the ids of events,
the schedule of deliveries, and the judgement of webhook addresses. Owns no queue, no signature, no
look-up of names and no socket: the store writes events beside the settlement that set them off, and
the worker delivers them.

Invariants:

- a threshold is crossed when `before < threshold <= after` on the used total; what is held never
  counts, and a total that goes down crosses nothing;
- the id of an event follows from what it tells, so that an event written twice is one event: a
  threshold is told once per rule, period and threshold, whoever books the calls and in any order;
- a threshold in percent is a part of the limit as it is at that settlement, to the last token and
  nano-USD. Raise the limit and the threshold moves up with it, and can be crossed again: it is
  another threshold then;
- what is already over crosses nothing: not a rule made too late, nor a threshold that came down
  below the total because the limit did. Both wait for the next period;
- an address that cannot be told to be public is forbidden, unless a setting lists it.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from hashlib import blake2b
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Literal
from uuid import UUID

import msgspec

from app.core.faults import Fault
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX, ceil_div, nano_to_usd
from app.core.windows import Period

# The ledger's own word; the ledger may import this module, so that this one cannot import it.
Meter = Literal["tokens", "usd"]

# ------------------------------------------------------------------------------- rules, crossings

WHOLE = 10_000
"""A whole limit in hundredths of a percent: thresholds in percent have two decimal places."""
PERCENT_MAX = 1000
"""Ten times the limit: more than a whole one is for owners whose last call may overrun."""

# Arithmetic that raises rather than lose a digit.
_EXACT = Context(prec=40, traps=[Inexact, InvalidOperation])
_HUNDREDTH = Decimal("0.01")


class InvalidThreshold(Fault):
    """A threshold that no total can cross; the message says what to write instead."""


class Rule(msgspec.Struct, frozen=True, gc=False):
    """Whom to tell of what: a threshold on the total of one owner, meter and window.

    A rule on a limit names the limit's owner, meter and window; a rule on an allocation names
    those of a total that need not have a limit.
    """

    id: str
    owner_id: str
    meter: Meter
    window: str
    threshold: int
    """Tokens or nano-USD; or, if it is a part of the limit, hundredths of a percent."""
    percent: bool = False


class Movement(msgspec.Struct, frozen=True, gc=False):
    """What one settlement did to the used total of one owner, meter and period.

    A rolling window has no periods of its own: its movements name the day they fall in, and so a
    threshold of it is told once a day at most.
    """

    owner_id: str
    meter: Meter
    window: str
    period: Period
    before: int
    after: int
    limit: int | None
    """The amount in force, top-ups included; None if there is no limit."""


class Crossing(msgspec.Struct, frozen=True, gc=False):
    """A threshold that a movement crossed, in the meter's unit."""

    rule_id: str
    threshold: int
    movement: Movement


def check_percent(value: Decimal | int | str) -> int:
    """Turn a threshold in percent, as people write it, into hundredths of a percent."""
    if isinstance(value, bool):
        raise InvalidThreshold(
            "percent_not_bool", "must be a decimal number of percent, not true or false"
        )
    try:
        percent = Decimal(value)
    except (InvalidOperation, ValueError, TypeError):
        raise InvalidThreshold(
            "percent_unreadable", "must be a decimal number of percent such as 80 or 99.5"
        ) from None
    if not percent.is_finite() or not 0 < percent <= PERCENT_MAX:
        raise InvalidThreshold(
            "percent_between", "must be more than 0 and at most {most} percent", most=PERCENT_MAX
        )
    try:
        return int(percent.quantize(_HUNDREDTH, context=_EXACT).scaleb(2))
    except Inexact:
        raise InvalidThreshold(
            "decimals", "must have at most {most} decimal places", most=2
        ) from None


def check_absolute(meter: Meter, threshold: int) -> int:
    """Return an absolute threshold, in tokens or nano-USD, if a total can ever cross it."""
    if threshold <= 0:
        raise InvalidThreshold(
            "threshold_nothing", "must be more than 0: a total of 0 is where every period begins"
        )
    most = AMOUNT_TOKENS_MAX if meter == "tokens" else AMOUNT_NANO_MAX
    if threshold > most:
        raise InvalidThreshold(
            "threshold_too_much", "must be at most {most}", most=_shown(meter, most)
        )
    return threshold


def threshold_of(rule: Rule, limit: int | None) -> int | None:
    """Return the least total that reaches a rule's threshold; None: a part of no limit."""
    if not rule.percent:
        return rule.threshold
    # Totals are whole, so that one reaches the exact part when it reaches that part rounded up.
    return None if limit is None else ceil_div(limit * rule.threshold, WHOLE)


def crossings(rules: Iterable[Rule], movement: Movement) -> list[Crossing]:
    """Return what a movement crossed, the lowest threshold first; other totals' rules are not met.

    A part of a limit of 0 is never crossed: it is 0 itself, where every total begins.
    """
    crossed = []
    for rule in rules:
        if (rule.owner_id, rule.meter, rule.window) != (
            movement.owner_id,
            movement.meter,
            movement.window,
        ):
            continue
        threshold = threshold_of(rule, movement.limit)
        if threshold is not None and movement.before < threshold <= movement.after:
            crossed.append(Crossing(rule.id, threshold, movement))
    return sorted(crossed, key=lambda crossing: (crossing.threshold, crossing.rule_id))


# ----------------------------------------------------------------------------------------- events


class TokenThresholdCrossed(
    msgspec.Struct, frozen=True, tag_field="event", tag="token_threshold_crossed"
):
    """A total of tokens reached a threshold. The names are those that receivers know."""

    key_id: str | None
    allocation_id: str | None
    service: str | None
    threshold: int
    total_tokens: int
    limit: int | None
    window: str
    period: datetime | None
    timestamp: datetime


class CostThresholdCrossed(
    msgspec.Struct, frozen=True, tag_field="event", tag="cost_threshold_crossed"
):
    """A total of USD reached a threshold; amounts are decimal strings."""

    key_id: str | None
    allocation_id: str | None
    service: str | None
    threshold: str
    total_cost_usd: str
    limit: str | None
    window: str
    period: datetime | None
    timestamp: datetime


class AllocationExhausted(
    msgspec.Struct, frozen=True, tag_field="event", tag="allocation_exhausted"
):
    """All of an allocation's limit is used: its next call is refused until `resets_at`."""

    key_id: str | None
    allocation_id: str
    service: str | None
    meter: Meter
    total: int | str
    limit: int | str
    window: str
    period: datetime | None
    resets_at: datetime | None
    timestamp: datetime


class UnpricedModelSeen(msgspec.Struct, frozen=True, tag_field="event", tag="unpriced_model_seen"):
    """A model was used whose cost is unknown; told once per model and day."""

    key_id: str | None
    allocation_id: str | None
    service: str | None
    model: str
    period: datetime
    timestamp: datetime


class RealtimeSessionCut(
    msgspec.Struct, frozen=True, tag_field="event", tag="realtime_session_cut"
):
    """A realtime session was stopped by us; `cost_usd` is null if its cost is unknown."""

    key_id: str | None
    allocation_id: str | None
    service: str | None
    call_id: str
    model: str
    close_reason: str
    tokens: int
    cost_usd: str | None
    timestamp: datetime


class RequestRaised(msgspec.Struct, frozen=True, tag_field="event", tag="request_raised"):
    """A member asks for more, and an admin should look; `expires_at` null: the member left it."""

    member_id: str
    allocation_id: str
    top_up_request_id: str
    meter: Meter
    amount: int | str
    reason: str
    expires_at: datetime | None
    timestamp: datetime


class Trial(msgspec.Struct, frozen=True, tag_field="event", tag="test"):
    """Tells nothing but that it arrived: somebody tries a destination out."""

    destination_id: str
    timestamp: datetime


Body = (
    TokenThresholdCrossed
    | CostThresholdCrossed
    | AllocationExhausted
    | UnpricedModelSeen
    | RealtimeSessionCut
    | RequestRaised
    | Trial
)

ListedKind = Literal[
    "allocation_exhausted", "realtime_session_cut", "request_raised", "unpriced_model_seen"
]
"""What a destination lists to be told of; of thresholds it is told by its rules."""


class Event(msgspec.Struct, frozen=True):
    """What to deliver, and the id that makes two of it one: the id that receivers see as well."""

    id: str
    body: Body


class Cause(msgspec.Struct, frozen=True, gc=False):
    """The call that set an event off; all None if it was an adjustment of no call."""

    key_id: str | None = None
    allocation_id: str | None = None
    service: str | None = None
    """The provider's name."""


CUT: frozenset[str] = frozenset({"cost_exceeded", "token_exceeded", "revoked", "killed"})
"""Close reasons of sessions that we stopped for what they did, or because someone said so."""


def threshold_event(crossing: Crossing, cause: Cause, at: datetime) -> Event:
    """Tell of a crossed threshold, in the meter's unit also where the rule is in percent."""
    movement = crossing.movement
    start = _utc(movement.period.start)
    id = _event_id("threshold_crossed", crossing.rule_id, start.isoformat(), crossing.threshold)
    period = _named(movement.period)
    if movement.meter == "tokens":
        return Event(
            id,
            TokenThresholdCrossed(
                cause.key_id,
                cause.allocation_id,
                cause.service,
                crossing.threshold,
                movement.after,
                movement.limit,
                movement.window,
                period,
                _utc(at),
            ),
        )
    return Event(
        id,
        CostThresholdCrossed(
            cause.key_id,
            cause.allocation_id,
            cause.service,
            nano_to_usd(crossing.threshold),
            nano_to_usd(movement.after),
            None if movement.limit is None else nano_to_usd(movement.limit),
            movement.window,
            period,
            _utc(at),
        ),
    )


def exhausted_event(movement: Movement, cause: Cause, at: datetime) -> Event | None:
    """Tell that an allocation's limit is used up, if this movement is what used it up.

    Told again if the limit was raised and is used up again: it is another limit then.
    """
    limit, meter = movement.limit, movement.meter
    if limit is None or not movement.before < limit <= movement.after:
        return None
    start, end = _utc(movement.period.start), movement.period.end
    return Event(
        _event_id(
            "allocation_exhausted",
            movement.owner_id,
            meter,
            movement.window,
            start.isoformat(),
            limit,
        ),
        AllocationExhausted(
            cause.key_id,
            movement.owner_id,
            cause.service,
            meter,
            _shown(meter, movement.after),
            _shown(meter, limit),
            movement.window,
            _named(movement.period),
            None if end is None else _utc(end),
            _utc(at),
        ),
    )


def unpriced_event(model: str, day: Period, cause: Cause, at: datetime) -> Event:
    """Tell of a model whose cost is unknown; `day` is the billing day that the call fell in."""
    start = _utc(day.start)
    return Event(
        _event_id("unpriced_model_seen", model, start.isoformat()),
        UnpricedModelSeen(cause.key_id, cause.allocation_id, cause.service, model, start, _utc(at)),
    )


def session_cut_event(
    call_id: str,
    model: str,
    close_reason: str,
    tokens: int,
    nano: int | None,
    cause: Cause,
    at: datetime,
) -> Event | None:
    """Tell of a realtime session that we cut; None if it ended for another reason."""
    if close_reason not in CUT:
        return None
    return Event(
        _event_id("realtime_session_cut", call_id),
        RealtimeSessionCut(
            cause.key_id,
            cause.allocation_id,
            cause.service,
            call_id,
            model,
            close_reason,
            tokens,
            None if nano is None else nano_to_usd(nano),
            _utc(at),
        ),
    )


def request_event(
    request_id: str,
    member_id: str,
    allocation_id: str,
    meter: Meter,
    amount: int,
    reason: str,
    expires_at: datetime | None,
    at: datetime,
) -> Event:
    """Tell of a member's request for more."""
    return Event(
        _event_id("request_raised", request_id),
        RequestRaised(
            member_id,
            allocation_id,
            request_id,
            meter,
            _shown(meter, amount),
            reason,
            None if expires_at is None else _utc(expires_at),
            _utc(at),
        ),
    )


def trial_event(trial_id: str, destination_id: str, at: datetime) -> Event:
    """Make an event that tries a destination out; each trial is an event of its own."""
    return Event(_event_id("test", trial_id), Trial(destination_id, _utc(at)))


def _event_id(*parts: str | int) -> str:
    """Name an event by what it tells; written as JSON, no two lists of parts look the same."""
    return str(UUID(bytes=blake2b(msgspec.json.encode(parts), digest_size=16).digest()))


def _named(period: Period) -> datetime | None:
    """Return what names a period to receivers: its start, and nothing if it never ends."""
    return None if period.end is None else _utc(period.start)


def _shown(meter: Meter, value: int) -> int | str:
    return nano_to_usd(value) if meter == "usd" else value


def _utc(at: datetime) -> datetime:
    """Return the instant in UTC: so it is encoded with a `Z`, as RFC 3339 has it."""
    return at.astimezone(UTC)


# ------------------------------------------------------------------------------------- deliveries

RETRY_FOR = timedelta(days=1)
DELAY_S_MAX = 3600.0
"""A receiver that is back waits an hour at most; a longer first delay stays as it was set."""
JITTER_MAX = 0.25


def next_attempt(
    attempt: int, first_delay_s: float, started_at: datetime, now: datetime, jitter: float
) -> datetime | None:
    """Return when to try a delivery again, or None: it is a dead letter.

    `attempt` is the number of tries so far, all failed, the last one at `now`; `started_at` is
    when the event was written. Delays double from the first, up to an hour, and each is made longer
    by up to a quarter: `jitter` is a random number from 0 to 1. The last try is a day after the
    event, to the second, so that even the longest first delay leaves one.
    """
    # In UTC, since a zone's days have 23 to 25 hours.
    end, now = _utc(started_at) + RETRY_FOR, _utc(now)
    if now >= end:
        return None
    # Bounding the exponent keeps a float a float, whatever the count.
    doubled = first_delay_s * 2 ** min(attempt - 1, 64)
    delay = min(doubled, max(first_delay_s, DELAY_S_MAX))
    spread = 1 + JITTER_MAX * min(max(jitter, 0.0), 1.0)
    return min(now + timedelta(seconds=delay * spread), end)


# -------------------------------------------------------------------------------------- addresses

Network = IPv4Network | IPv6Network

_METADATA = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    )
)
"""Where clouds hand out credentials to whoever asks from inside."""

# Not the standard library's `is_private` and `is_global`: what they say changes between patch
# releases of Python, and is wrong for forms that hide an IPv4 address.
_FORBIDDEN: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/32", "the unspecified address"),
        ("0.0.0.0/8", "a reserved address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's shared address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "an address for documentation"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("198.51.100.0/24", "an address for documentation"),
        ("203.0.113.0/24", "an address for documentation"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "a loopback address"),
        # Any prefix length of RFC 6052 may be in use here: which IPv4 address it is, only the
        # network itself knows. And it is a local one.
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "an address for documentation"),
        ("3fff::/20", "an address for documentation"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Where the IPv4 address begins in those forms that name one: bits from the right.
_HIDING: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
    (IPv6Network("::/96"), 0),  # IPv4-compatible; after the look for `::` and `::1`
)


def forbidden_address(
    ip: str | IPv4Address | IPv6Address, allowed_networks: Iterable[Network] = ()
) -> str | None:
    """Say what is wrong with an address that a webhook would go to, or None: it may.

    An address that hides an IPv4 one is judged as that. A network that the settings list is
    allowed, but not the metadata services in it: they are opened by their own address (`/32`,
    `/128`) alone, since `fd00::/8` is listed for what it holds of ours.
    """
    try:
        address = ip_address(ip)
    except ValueError:
        return "no IP address"
    hidden = None
    if isinstance(address, IPv6Address):
        # Without its scope (`%eth0`), which says nothing and which the library compares.
        address = IPv6Address(int(address))
        hidden = _hidden(address)
    what = _what(hidden or address, allowed_networks)
    if what is None or hidden is None:
        return what
    return f"{what}, {hidden}, inside an IPv6 address"


def _what(address: IPv4Address | IPv6Address, allowed_networks: Iterable[Network]) -> str | None:
    listed = [network for network in allowed_networks if address in network]
    if address in _METADATA:
        by_itself = any(network.num_addresses == 1 for network in listed)
        return None if by_itself else "the address of a cloud's metadata service"
    if listed:
        return None
    for network, what in _FORBIDDEN:
        if address in network:
            return what
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "a reserved address"
    return None


def _hidden(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address inside an IPv6 one. Of Teredo there is no need: all is forbidden."""
    if int(address) <= 1:
        return None
    for network, shift in _HIDING:
        if address in network:
            return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return None


URL_LENGTH_MAX = 2048

_VISIBLE = re.compile(r"[!-~]+")
_BEGINNING = re.compile(r"(?P<scheme>https?)://(?P<netloc>[^/?#]*)", re.IGNORECASE)
_NETLOC = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class InvalidWebhookUrl(Fault):
    """A URL that no webhook can go to; the message says what to write instead."""


class Receiver(msgspec.Struct, frozen=True):
    """Where a webhook goes. Look `host` up once, judge what is found, and connect to that."""

    url: str
    host: str
    port: int
    tls: bool


def check_webhook_url(url: str) -> Receiver:
    """Take a webhook's URL apart, or raise `InvalidWebhookUrl`.

    Strict where parsers differ, since the one that connects must see the host that was judged. No
    message repeats the URL, which may hold a secret.
    """
    if len(url) > URL_LENGTH_MAX:
        raise InvalidWebhookUrl(
            "url_long", "must be at most {most} characters long", most=URL_LENGTH_MAX
        )
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise InvalidWebhookUrl(
            "url_unreadable",
            "must be a URL such as https://example.com/hook, without spaces or backslashes; "
            "other than ASCII letters are written as xn-- in the host and as %XX elsewhere",
        )
    beginning = _BEGINNING.match(url)
    if beginning is None:
        raise InvalidWebhookUrl("url_scheme", "must begin with https:// or http://")
    if "#" in url:
        raise InvalidWebhookUrl(
            "url_fragment", "must have no fragment: leave out the # and what follows"
        )
    if "@" in beginning["netloc"]:
        raise InvalidWebhookUrl(
            "url_user",
            "must have no user name or password: deliveries are signed instead, leave out "
            "what comes before the @",
        )
    found = _NETLOC.fullmatch(beginning["netloc"])
    if found is None:
        raise InvalidWebhookUrl(
            "url_host_port",
            "must have a host such as example.com or [2a00::1], and a port in digits if any",
        )
    tls = beginning["scheme"].lower() == "https"
    port = int(found["port"] or (443 if tls else 80))
    if not 0 < port < 2**16:
        raise InvalidWebhookUrl("url_port", "must have a port from 1 to 65535, or none")
    return Receiver(url, _host(found["host"].lower()), port, tls)


def _host(host: str) -> str:
    """Return a name or an address, the latter without brackets, if all would read it alike."""
    if host.startswith("["):
        try:
            return str(IPv6Address(host[1:-1]))
        except ValueError:
            raise InvalidWebhookUrl(
                "url_ipv6", "must have an IPv6 address between the brackets"
            ) from None
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers take 127.1, 0177.0.0.1 and 2130706433 for addresses too, each in its own way.
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise InvalidWebhookUrl(
                "url_ipv4",
                "must write an IPv4 address as four decimal numbers such as 203.0.113.7",
            ) from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidWebhookUrl("url_host", "must have a host name such as example.com")
    return host
