"""The dashboard's files: what is served where, how it is kept, and what a browser may do with it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.dashboard import HOMES, Dashboard

FIRST_LOAD_MAX = 200_000
"""Bytes, compressed with gzip, of all that the first page needs."""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A build: the document, a script, and the script's compressed form."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>Spendgate</title>")
    (tmp_path / "icon.svg").write_text("<svg/>")
    script = b"console.log(1)\n" * 200
    (tmp_path / "assets" / "main-1a2b.js").write_bytes(script)
    (tmp_path / "assets" / "main-1a2b.js.gz").write_bytes(gzip.compress(script))
    return tmp_path


@pytest.fixture
def site(built: Path) -> Iterator[httpx2.AsyncClient]:
    """A client of a dashboard with that build."""
    transport = httpx2.ASGITransport(Dashboard(built))
    return httpx2.AsyncClient(transport=transport, base_url="http://spendgate.test")


@pytest.mark.parametrize("path", ["/", "/allocations", "/admin/pools/7", "/index.html", "/../etc"])
async def test_every_path_that_is_no_file_is_the_document(
    site: httpx2.AsyncClient, path: str
) -> None:
    answer = await site.get(path)
    assert answer.status_code == 200
    assert "<title>Spendgate</title>" in answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"


async def test_what_has_its_digest_in_its_name_is_kept_for_good(site: httpx2.AsyncClient) -> None:
    answer = await site.get("/assets/main-1a2b.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await site.get("/icon.svg")).headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, br", "gzip"), ("gzip;q=0", None), ("identity", None), ("GZIP;q=0.5", "gzip")],
)
async def test_the_compressed_form_goes_to_whoever_takes_it(
    site: httpx2.AsyncClient, accepted: str, encoding: str | None
) -> None:
    answer = await site.get("/assets/main-1a2b.js", headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.content == b"console.log(1)\n" * 200


async def test_a_script_of_an_older_build_is_not_the_document(site: httpx2.AsyncClient) -> None:
    assert (await site.get("/assets/main-0000.js")).status_code == 404


async def test_what_has_not_changed_is_not_sent_again(site: httpx2.AsyncClient) -> None:
    etag = (await site.get("/")).headers["etag"]
    again = await site.get("/", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert (await site.get("/", headers={"if-none-match": '"x"'})).status_code == 200


async def test_only_reading_is_served(site: httpx2.AsyncClient) -> None:
    head = await site.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    refused = await site.post("/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/assets/main-1a2b.js", "/assets/none.js"])
async def test_browsers_are_told_what_none_of_it_may_do(
    site: httpx2.AsyncClient, path: str
) -> None:
    headers = (await site.get(path)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["script-src"] == "'self'"
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


async def test_without_a_build_it_says_what_to_run(tmp_path: Path) -> None:
    transport = httpx2.ASGITransport(Dashboard(tmp_path))
    async with httpx2.AsyncClient(transport=transport, base_url="http://a") as site:
        answer = await site.get("/")
    assert answer.status_code == 503
    assert "make demo" in answer.text


def test_the_first_load_is_small() -> None:
    """The document, what it names, and what the first page asks for: all but what is lazy."""
    dist = next(home for home in HOMES if (home / "index.html").is_file())
    first = set(_named(dist, r'(?:src|href)="/(assets/[^"]+)"', dist / "index.html"))
    for lazy in ("en-", "sign-in-", "allocations-"):
        first |= {one for one in _assets(dist) if one.startswith(f"assets/{lazy}")}
    grown = True
    while grown:
        before = len(first)
        for name in [one for one in first if one.endswith(".js")]:
            first |= _named(dist, r'(?:from|import)"\./([^"]+\.js)"', dist / name)
        grown = len(first) > before
    sizes = {name: len(gzip.compress((dist / name).read_bytes(), 9)) for name in first}
    assert any(name.endswith(".css") for name in sizes)
    assert not any("chart" in name for name in sizes), "charts are loaded when they are looked at"
    assert sum(sizes.values()) + len((dist / "index.html").read_bytes()) < FIRST_LOAD_MAX, sizes


def _assets(dist: Path) -> frozenset[str]:
    return frozenset(f"assets/{path.name}" for path in (dist / "assets").glob("*.js"))


def _named(dist: Path, pattern: str, file: Path) -> frozenset[str]:
    """The files of the build that a file names."""
    names = re.findall(pattern, file.read_text())
    full = {name if name.startswith("assets/") else f"assets/{name}" for name in names}
    return frozenset(name for name in full if (dist / name).is_file())
