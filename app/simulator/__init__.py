"""The provider that the demo, the tests and the benchmarks call.

Owns a stand-in for the upstream side: the wire formats of OpenAI (and its Azure
paths), Mistral and Anthropic, answered so that the unmodified SDKs accept them, with
exact, derivable usage; the faults real providers show, on demand; and a record of
what reached it. It does not own prices, limits or anything of the gateway, and
imports nothing of it: a real provider takes its place by changing a base URL.

    knobs.py    what can be asked of it, and how a request asks (`[[sim ...]]`)
    media.py    real audio, images, vectors; reading of PDF and audio headers
    answers.py  request in, wire format out; the token rules
    realtime.py sessions over a WebSocket: events, usage, faults, their record
    server.py   the ASGI app: routing, credentials, faults, records, serving

Start at the docstrings of answers.py (how usage is derived) and knobs.py.
"""

from app.simulator.answers import ANSWER_TOKENS_DEFAULT, IMAGE_TOKENS, tokens_of_bytes
from app.simulator.knobs import Knobs
from app.simulator.realtime import Session
from app.simulator.server import (
    Call,
    RunningSimulator,
    Simulator,
    create_simulator,
    running_simulator,
    serve_in_thread,
)

__all__ = [
    "ANSWER_TOKENS_DEFAULT",
    "IMAGE_TOKENS",
    "Call",
    "Knobs",
    "RunningSimulator",
    "Session",
    "Simulator",
    "create_simulator",
    "running_simulator",
    "serve_in_thread",
    "tokens_of_bytes",
]
