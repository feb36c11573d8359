"""The dashboard's files: what `npm run build` left, served as it is.

Owns where they are, which path gives which file, and the headers that keep a browser from doing
with them what they are not for. Owns no page: every path that is no file gives the one document,
whose router takes it from there.

Invariants: only files that were there at the start are served; what has its digest in its name is
kept by browsers for good, the document is asked for anew each time; nothing is compressed while
somebody waits.
"""

import mimetypes
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

_PACKAGE: Final = Path(__file__).parent
HOMES: Final = (_PACKAGE / "_frontend" / "dist", _PACKAGE.parent / "frontend" / "dist")
"""Inside an installed wheel; beside `app/` in a checkout."""

DOCUMENT: Final = "index.html"
ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}
"""The best first; `frontend/vite.config.ts` makes the files."""

NOT_BUILT: Final = (
    "Spendgate is running, but its dashboard has not been built. Run `make demo`, or "
    "`make dashboard` for it alone (both need Node 20 or newer), and start again.\n"
)

# Bars are as long as what they show, and dialogs keep the page from scrolling: styles may stand in
# the document. Scripts may not.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

FOR_GOOD: Final = "public, max-age=31536000, immutable"
EACH_TIME: Final = "no-cache"


class File:
    """One file, with its compressed forms."""

    def __init__(self, path: Path, cache: str) -> None:
        kind, _ = mimetypes.guess_type(path.name)
        self.kind = kind or "application/octet-stream"
        if self.kind.startswith("text/"):
            self.kind += "; charset=utf-8"
        self.cache = cache
        self.content = path.read_bytes()
        self.etag = f'"{sha256(self.content).hexdigest()[:32]}"'
        self.forms: dict[str, bytes] = {}
        for encoding, suffix in ENCODINGS.items():
            form = path.with_name(path.name + suffix)
            if form.exists():
                self.forms[encoding] = form.read_bytes()

    def form(self, accepted: str) -> tuple[str | None, bytes]:
        """Return the best form that a browser takes, and what it is called."""
        taken = {
            name.strip()
            for name, _, weight in (one.partition(";") for one in accepted.lower().split(","))
            if weight.replace(" ", "") not in ("q=0", "q=0.0")
        }
        for encoding, content in self.forms.items():
            if encoding in taken:
                return encoding, content
        return None, self.content


class Dashboard:
    """The ASGI application of everything that is neither an API nor for whoever runs it."""

    def __init__(self, home: Path | None = None) -> None:
        homes = HOMES if home is None else (home,)
        built = next((one for one in homes if (one / DOCUMENT).is_file()), None)
        self.files: dict[str, File] = {}
        if built is None:
            return
        for path in built.rglob("*"):
            if path.is_file() and path.suffix not in ENCODINGS.values():
                name = path.relative_to(built).as_posix()
                cache = FOR_GOOD if name.startswith("assets/") else EACH_TIME
                self.files[f"/{name}"] = File(path, cache)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        path: str = scope["path"]
        headers = dict(scope["headers"])
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(scope, send, 405, b"Only GET is served here.\n", {"allow": "GET, HEAD"})
        elif not self.files:
            await _answer(scope, send, 503 if path == "/" else 404, NOT_BUILT.encode())
        elif (file := self.files.get(path)) is not None:
            await _serve(scope, send, headers, file)
        elif path.startswith("/assets/"):
            # From an older build: the document in its stead would be run as a script.
            await _answer(scope, send, 404, b"There is no such file.\n")
        else:
            await _serve(scope, send, headers, self.files[f"/{DOCUMENT}"])


async def _serve(scope: Any, send: Any, headers: Mapping[bytes, bytes], file: File) -> None:
    encoding, content = file.form(headers.get(b"accept-encoding", b"").decode("latin-1"))
    more = {
        "content-type": file.kind,
        "cache-control": file.cache,
        "etag": file.etag,
        "vary": "accept-encoding",
    }
    if headers.get(b"if-none-match", b"").decode("latin-1").removeprefix("W/") == file.etag:
        await _answer(scope, send, 304, b"", more)
        return
    if encoding is not None:
        more["content-encoding"] = encoding
    await _answer(scope, send, 200, content, more)


async def _answer(
    scope: Any, send: Any, status: int, content: bytes, more: Mapping[str, str] = {}
) -> None:
    plain = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}
    headers = {**plain, **HEADERS, **more}
    if status != 304:
        headers["content-length"] = str(len(content))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    body = b"" if scope["method"] == "HEAD" else content
    await send({"type": "http.response.body", "body": body})
