"""The control plane: `/api/*`, where admins set up and members look.

Owns the protocol of it: who is let in (`desk`, `auth`, `acceptance`, `oidc`), what bodies and
documents look like (`wire`, `admin`, `invitations`, `pools`, `top_ups`, `alerts`, `own_keys`,
`reports`), and how it says no (`errors`). Owns no SQL and no rule of the ledger.

A change takes one path: the gate names the actor, the handler checks single values, and one
transaction checks them against what there is, writes, and leaves the audit event.

Invariants: every write is audited in its own transaction; every answer carries `x-request-id`;
every error is an RFC 9457 document.
"""

from litestar import Router
from litestar.di import Provide
from litestar.openapi.spec import SecurityRequirement

from app.control.acceptance import acceptance_router
from app.control.admin import admin_routers
from app.control.alerts import alert_router
from app.control.auth import auth_router
from app.control.bulk import bulk_router
from app.control.corrections import correction_router
from app.control.desk import ControlDeps, Envelope, Gate, desk_for
from app.control.errors import (
    BODY_BYTES_MAX,
    CONTROL_EXCEPTION_HANDLERS,
)
from app.control.invitations import invitation_router
from app.control.live import live_router
from app.control.oidc import identity_router, oidc_router
from app.control.overview import overview_router
from app.control.own_keys import own_keys_router
from app.control.own_models import own_models_router
from app.control.pools import pool_router
from app.control.preview import preview_router
from app.control.provider_tests import provider_test_router
from app.control.reports import me_router, report_router
from app.control.snippets import snippet_router
from app.control.suggestions import suggestion_router
from app.control.top_ups import my_requests_router, top_up_router
from app.control.wire import Document, StrictRequest

__all__ = ["CONTROL_EXCEPTION_HANDLERS", "ControlDeps", "control_router"]


def control_router(deps: ControlDeps) -> Router:
    """Make the router of `/api`.

    The application needs `CONTROL_EXCEPTION_HANDLERS` as well: a path that leads nowhere, or a
    method that it does not take, never reaches a router.
    """
    gate = Gate(deps)
    either: list[SecurityRequirement] = [{"bearer": []}, {"session": []}]
    return Router(
        "/api",
        route_handlers=[
            Router(
                "/admin",
                route_handlers=[
                    *admin_routers(),
                    invitation_router(),
                    pool_router(),
                    top_up_router(),
                    alert_router(),
                    report_router(),
                    correction_router(),
                    suggestion_router(),
                    overview_router(),
                    provider_test_router(),
                    bulk_router(),
                    preview_router(),
                    identity_router(),
                ],
                guards=[gate.admin],
                security=either,
            ),
            Router(
                "/me",
                route_handlers=[
                    me_router(),
                    own_keys_router(),
                    own_models_router(),
                    my_requests_router(),
                    snippet_router(),
                ],
                guards=[gate.me],
                security=either,
            ),
            auth_router(gate),
            acceptance_router(deps),
            oidc_router(gate),
            Router("/", route_handlers=[live_router(gate)], security=either),
        ],
        dependencies={"desk": Provide(desk_for(deps))},
        exception_handlers=CONTROL_EXCEPTION_HANDLERS,
        middleware=[Envelope()],
        request_class=StrictRequest,
        response_class=Document,
        request_max_body_size=BODY_BYTES_MAX,
    )
