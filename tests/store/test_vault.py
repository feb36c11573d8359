"""What a bearer secret is known by is an HMAC, however it is computed; ids are UUIDs of version 7."""

import hmac
import uuid
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.ids import is_id, uuid7
from app.store.vault import Vault, _derive


@given(st.binary(min_size=1, max_size=80), st.text(max_size=200))
def test_a_digest_is_the_hmac_of_the_secret(secret: bytes, bearer: str) -> None:
    key = _derive(secret, b"spendgate bearer digest")
    vault = Vault(secret)
    expected = hmac.digest(key, bearer.encode("utf-8", "surrogateescape"), "sha256")
    # Twice: what is shared between digests is not used up by one.
    assert vault.digest(bearer) == vault.digest(bearer) == expected


@given(st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year >= 1970))
def test_an_id_is_a_uuid_of_version_7_and_tells_its_time(at: datetime) -> None:
    text = uuid7(at)
    known = uuid.UUID(text)
    assert (known.version, known.variant, str(known)) == (7, uuid.RFC_4122, text)
    assert known.int >> 80 == int(at.timestamp() * 1000)
    assert is_id(text)


def test_ids_of_one_instant_differ_and_later_ones_sort_behind() -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    ids = {uuid7(at) for _ in range(10_000)}
    assert len(ids) == 10_000
    assert max(ids) < uuid7(datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC))
