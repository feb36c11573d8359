"""`python -m app.simulator --port N`: the simulator alone, until Ctrl-C."""

import argparse
import asyncio
import contextlib
import signal
import sys
from typing import Any

from app.simulator.knobs import KnobError
from app.simulator.server import running_simulator


async def _serve(host: str, port: int, initial: dict[str, Any]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not every platform's event loop can; there, Ctrl-C still interrupts.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with running_simulator(host=host, port=port, **initial) as running:
        sys.stdout.write(f"simulator on {running.base_url} (key: {running.api_key or 'any'})\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m app.simulator",
        description="A simulated provider: OpenAI, Mistral and Anthropic on the wire.",
        epilog="example: python -m app.simulator --port 9000 latency=0.2 answer_tokens=64",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9000, help="port; 0 is any free one")
    parser.add_argument("knobs", nargs="*", metavar="knob=value", help="see app/simulator/knobs.py")
    options = parser.parse_args()
    initial: dict[str, Any] = {}
    try:
        for word in options.knobs:
            name, equals, value = word.partition("=")
            if not equals:
                raise KnobError(f"{word!r} is not knob=value")
            initial[name.replace("-", "_")] = value
        asyncio.run(_serve(options.host, options.port, initial))
    except (KnobError, OSError) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
