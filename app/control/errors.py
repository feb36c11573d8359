"""Errors: everything under `/api` that goes wrong, as an RFC 9457 document.

Owns the exceptions that handlers raise and the map from exceptions to documents. Owns no wording of
a single check: whoever refuses says what to change (see `core.faults`). The dashboard has words of
its own for every code (`frontend/src/i18n/*.errors.json`).

Invariants: every error is `application/problem+json` and carries `x-request-id`; one that concerns
a field names it; what is wrong has a code beside its English words; none holds a stack trace, a
statement or a secret. A 500 is logged and says nothing.
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

from app.core.faults import Fault, Value
from app.ids import uuid7
from app.problems import control_problem
from app.store.database import Conflict, DatabaseUnavailable

log = structlog.get_logger(__name__)

BODY_BYTES_MAX: Final = 2**20
REQUEST_ID_LENGTH_MAX: Final = 128
PROBLEM_JSON: Final = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True):
    """One field, and what to change in it: in English, and for programs."""

    field: str
    message: str
    code: str
    values: dict[str, Value]


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What every error looks like (RFC 9457)."""

    type: str
    status: int
    title: str
    detail: str
    code: str
    """What is wrong, for programs; of one field that is wrong, the same as in `errors`."""
    values: dict[str, Value]
    """What varies in the words of the code."""
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
        fault: Fault,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        detail: str | None = None,
    ) -> None:
        if detail is None:
            detail = str(fault) if field is None else f"{field} {fault}."
        super().__init__(detail=detail, status_code=status, headers=headers)
        self.fault = fault
        self.field = field
        self.errors = errors
        if field is not None:
            self.errors = (FieldError(field, detail, fault.code, fault.values),)


def invalid(field: str, code: str, words: str, /, **values: Value) -> Refused:
    """Return a 422: a value that cannot be taken. `words` follow the field's name."""
    return Refused(422, Fault(code, words, **values), field=field)


def misfit(field: str, fault: Fault, begin: str = "") -> Refused:
    """Return a 422: a value that cannot be taken, as the core found."""
    return Refused(422, fault, field=field, detail=f"{field} {begin}{fault}.")


def taken(field: str, code: str, words: str, /, **values: Value) -> Refused:
    """Return a 409: a value that contradicts what there is."""
    return Refused(409, Fault(code, words, **values), field=field)


def unknown(what: str) -> Refused:
    """Return a 404."""
    return Refused(404, Fault("no_such", "There is no such {what}.", what=what))


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
    fault: Fault,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    detail: str | None = None,
) -> Response[Any]:
    document = control_problem(
        status,
        HTTPStatus(status).phrase,
        str(fault) if detail is None else detail,
        fault.code,
        fault.values,
        [msgspec.structs.asdict(one) for one in errors],
    )
    return Response(
        content=msgspec.json.encode(document),
        status_code=status,
        media_type=PROBLEM_JSON,
        headers={**(headers or {}), "x-request-id": request_id_of(request.scope)},
    )


def _on_refused(request: Request[Any, Any, Any], error: Refused) -> Response[Any]:
    return _answer(
        request, error.status_code, error.fault, error.errors, error.headers, error.detail
    )


def _on_invalid_parameters(
    request: Request[Any, Any, Any], error: ValidationException
) -> Response[Any]:
    errors: list[FieldError] = []
    for one in error.extra if isinstance(error.extra, list) else []:
        field, message = one.get("key", ""), one.get("message", "")
        if one.get("source") == "body":
            fault = Fault("no_body", "The request needs a JSON object as its body.")
            return _answer(request, 400, fault)
        said = Fault("unreadable", "{said}", said=message)
        errors.append(FieldError(field, f"{field}: {message}.", said.code, said.values))
    fault = Fault("parameters", "The parameters cannot be read.")
    detail = " ".join(one.message for one in errors)
    return _answer(request, 400, fault, errors, detail=detail or None)


def _routing(status: int, path: str, method: str) -> Fault:
    match status:
        case 404:
            return Fault("no_path", "There is nothing at {path}.", path=path)
        case 405:
            return Fault("method", "{path} does not take {method}.", path=path, method=method)
        case 413:
            return Fault(
                "too_large", "The request body is larger than {most} bytes.", most=BODY_BYTES_MAX
            )
        case _:
            return Fault("status", "{phrase}.", phrase=HTTPStatus(status).phrase)


def _on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    status = error.status_code
    if status >= 500:
        return _on_failure(request, error)
    path = re.sub(r"[^\x21-\x7e]", "�", request.scope["path"])[:200]
    fault = _routing(status, path, request.scope["method"])
    return _answer(request, status, fault, headers=error.headers)


def _on_conflict(request: Request[Any, Any, Any], _: Conflict) -> Response[Any]:
    fault = Fault("conflict", "This contradicts a change made at the same moment; look again.")
    return _answer(request, 409, fault)


def _on_unavailable(request: Request[Any, Any, Any], error: DatabaseUnavailable) -> Response[Any]:
    log.warning("control_database_away", cause=type(error.__cause__).__name__)
    fault = Fault(
        "database_away", "The database does not answer at the moment; nothing was changed."
    )
    return _answer(request, 503, fault)


def _on_failure(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error(
        "control_request_failed",
        method=request.scope["method"],
        path=request.scope["path"],
        request_id=request_id_of(request.scope),
        # As text: renderers of exceptions like to show the locals, and a body may hold secrets.
        trace="".join(traceback.format_exception(error)),
    )
    return _answer(request, 500, Fault("internal", "Something went wrong on our side."))


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
