"""Provider tests: does it answer, and does it take our credential?

Owns the document and the audit event of it. Owns no connection (see `gateway.upstream`, which is
handed in) and no judgement (see `core.looks`).

Invariants: whatever a provider does, there is an answer within seconds; none shows a credential.
"""

import asyncio
from typing import Final

import msgspec
from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from app.control import wire
from app.control.desk import Change, Desk
from app.control.errors import documented, invalid, unknown
from app.control.wire import Input
from app.core.faults import Fault, Value
from app.core.looks import Look, judge, wrong
from app.store import catalogue

WITHIN_S: Final = 10.0


class ProviderTestInput(Input):
    """What to look for: a model of ours that this provider serves."""

    model: str | None = None


class ProviderTestDocument(msgspec.Struct, frozen=True):
    """How a provider answered. No `status`: it did not."""

    ok: bool
    status: int | None
    latency_ms: int
    message: str
    models: int | None
    """How many models it lists."""
    model_listed: bool | None
    """Whether it lists the model that was asked for, by the name that it knows it by."""
    code: str | None = None
    """What is wrong, for programs; `values` are what varies in the message."""
    values: dict[str, Value] = {}


@post("/providers/{id:str}/test", status_code=200, summary="Ask a provider for its models")
async def test_provider(
    id: FromPath[str], data: JSONBody[ProviderTestInput], desk: NamedDependency[Desk]
) -> ProviderTestDocument:
    """It costs nothing, and shows whether the address and the credential are right."""
    provider_id = wire.path_id(id, "provider")
    slug = None if data.model is None else wire.slug("model", data.model)
    async with desk.deps.database.snapshot() as connection:
        record = await catalogue.providers.find(connection, provider_id)
        model = None if slug is None else await catalogue.models.find(connection, slug)
    if record is None:
        raise unknown("provider")
    if slug is not None and (model is None or model.provider_id != provider_id):
        raise invalid("model", "model_of_another", "is no model of this provider's")
    directory = desk.deps.directory
    await directory.look_again()
    provider = directory.providers.get(provider_id)
    clock = asyncio.get_running_loop().time
    began = clock()
    if provider is None or provider.credential is None:
        look = Look(None)
        verdict = wrong(
            Fault("no_provider_key", "There is no credential that could be read: set api_key.")
        )
    else:
        look = await desk.deps.look(provider, WITHIN_S)
        verdict = judge(look, None if model is None else model.upstream_model)
    latency_ms = round((clock() - began) * 1000)

    async def work(change: Change) -> None:
        await change.record(
            "provider_tested",
            "provider",
            provider_id,
            after={"ok": verdict.ok, "status": look.status, "model": slug},
        )

    await desk.write(work)
    return ProviderTestDocument(
        verdict.ok,
        look.status,
        latency_ms,
        verdict.message,
        verdict.models,
        verdict.model_listed,
        None if verdict.fault is None else verdict.fault.code,
        {} if verdict.fault is None else verdict.fault.values,
    )


def provider_test_router() -> Router:
    """Make the router of provider tests."""
    return Router("/", route_handlers=documented([test_provider]), tags=["Providers"])
