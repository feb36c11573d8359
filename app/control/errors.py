"""Errors: everything under `/api` that goes wrong, as an RFC 9457 document.

Owns the exceptions that handlers raise and the map from exceptions to documents. Owns no wording of
a single check: whoever refuses says what to change.

Invariants: every error is `application/problem+json` and carries `x-request-id`; one that concerns
a field names it; none holds a stack trace, a statement or a secret. A 500 is logged and says
nothing.
"""

import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.types import ExceptionHandlersMap, Scope

from app.ids import uuid7
from app.problems import control_problem
from app.store.database import Conflict, DatabaseUnavailable

log = structlog.get_logger(__name__)

BODY_BYTES_MAX: Final = 2**20
REQUEST_ID_LENGTH_MAX: Final = 128
PROBLEM_JSON: Final = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True):
    """One field, and what to change in it."""

    field: str
    message: str


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What every error looks like (RFC 9457)."""

    type: str
    status: int
    title: str
    detail: str
    errors: list[FieldError] = []


_PROBLEMS: Final = {
    400: "The body or a parameter cannot be read",
    401: "No credential, or none that is known",
    403: "Not for this credential",
    404: "There is no such thing",
    409: "It contradicts what there is",
    412: "It has been changed since it was read (`If-Match`)",
    422: "A value that cannot be taken",
}


def documented(
    handlers: list[HTTPRouteHandler], *, and_also: Mapping[int, str] = {}
) -> list[HTTPRouteHandler]:
    """Tell the OpenAPI document what errors of these handlers look like."""
    for handler in handlers:
        handler.responses = {
            status: ResponseSpec(
                ProblemDocument,
                generate_examples=False,
                description=description,
                media_type=PROBLEM_JSON,
            )
            for status, description in (*_PROBLEMS.items(), *and_also.items())
        }
    return handlers


class Refused(HTTPException):
    """A request that is refused, with what to change about it."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail=detail, status_code=status, headers=headers)
        self.field = field
        self.errors = errors if field is None else (FieldError(field, detail),)


def invalid(field: str, message: str) -> Refused:
    """Return a 422: a value that cannot be taken."""
    return Refused(422, f"{field} {message}.", field=field)


def taken(field: str, message: str) -> Refused:
    """Return a 409: a value that contradicts what there is."""
    return Refused(409, f"{field} {message}.", field=field)


def unknown(what: str) -> Refused:
    """Return a 404."""
    return Refused(404, f"There is no such {what}.")


def request_id_of(scope: Scope) -> str:
    """Return the request's id: the client's if it can be recorded and echoed, else one of ours."""
    state: dict[str, Any] = scope.setdefault("state", {})
    known: str | None = state.get("request_id")
    if known is None:
        given = next((v for name, v in scope["headers"] if name == b"x-request-id"), b"")
        usable = 0 < len(given) <= REQUEST_ID_LENGTH_MAX and all(0x21 <= b <= 0x7E for b in given)
        known = state["request_id"] = given.decode() if usable else f"req_{uuid7()}"
    return known


def _answer(
    request: Request[Any, Any, Any],
    status: int,
    detail: str,
    errors: Sequence[Mapping[str, object]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response[Any]:
    return Response(
        content=msgspec.json.encode(
            control_problem(status, HTTPStatus(status).phrase, detail, errors)
        ),
        status_code=status,
        media_type=PROBLEM_JSON,
        headers={**(headers or {}), "x-request-id": request_id_of(request.scope)},
    )


def _on_refused(request: Request[Any, Any, Any], error: Refused) -> Response[Any]:
    errors = [{"field": one.field, "message": one.message} for one in error.errors]
    return _answer(request, error.status_code, error.detail, errors, error.headers)


def _on_invalid_parameters(
    request: Request[Any, Any, Any], error: ValidationException
) -> Response[Any]:
    errors: list[dict[str, object]] = []
    for one in error.extra if isinstance(error.extra, list) else []:
        field, message = one.get("key", ""), one.get("message", "")
        if one.get("source") == "body":
            return _answer(request, 400, "The request needs a JSON object as its body.")
        errors.append({"field": field, "message": f"{field}: {message}."})
    detail = " ".join(str(one["message"]) for one in errors)
    return _answer(request, 400, detail or "The parameters cannot be read.", errors)


_ROUTING: dict[int, str] = {
    404: "There is nothing at {path}.",
    405: "{path} does not take {method}.",
    413: f"The request body is larger than {BODY_BYTES_MAX} bytes.",
}


def _on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    status = error.status_code
    if status >= 500:
        return _on_failure(request, error)
    path = re.sub(r"[^\x21-\x7e]", "�", request.scope["path"])[:200]
    detail = _ROUTING.get(status, HTTPStatus(status).phrase + ".")
    detail = detail.format(path=path, method=request.scope["method"])
    return _answer(request, status, detail, headers=error.headers)


def _on_conflict(request: Request[Any, Any, Any], _: Conflict) -> Response[Any]:
    return _answer(request, 409, "This contradicts a change made at the same moment; look again.")


def _on_unavailable(request: Request[Any, Any, Any], error: DatabaseUnavailable) -> Response[Any]:
    log.warning("control_database_away", cause=type(error.__cause__).__name__)
    return _answer(request, 503, "The database does not answer at the moment; nothing was changed.")


def _on_failure(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error(
        "control_request_failed",
        method=request.scope["method"],
        path=request.scope["path"],
        request_id=request_id_of(request.scope),
        # As text: renderers of exceptions like to show the locals, and a body may hold secrets.
        trace="".join(traceback.format_exception(error)),
    )
    return _answer(request, 500, "Something went wrong on our side.")


CONTROL_EXCEPTION_HANDLERS: Final[ExceptionHandlersMap] = {
    Refused: _on_refused,
    ValidationException: _on_invalid_parameters,
    HTTPException: _on_http_exception,
    Conflict: _on_conflict,
    DatabaseUnavailable: _on_unavailable,
    Exception: _on_failure,
}
"""On the router for what its handlers raise; on the application for what finds no handler at all
(unknown paths, methods that a path does not take)."""
