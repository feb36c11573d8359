"""Benchmarks: how much of the bare stack's throughput the gateway keeps.

Run with `python -m tests.benchmarks`. Nothing here is collected by pytest.

- `upstream.py`     a provider fast enough never to be the bottleneck
- `load.py`         a closed-loop load generator with exact latencies
- `passthrough.py`  the bare pass-through on our own stack: the baseline
- `nginx.py`        nginx as a plain proxy: the reference from outside
- `gateway.py`      the product itself, set up through its control API
- `realtime.py`     realtime sessions: how many a core holds beside a bare relay
- `listener.py`     a provider of realtime sessions that is never the bottleneck
- `speakers.py`     an open-loop load generator: sessions that speak at real pace
- `relay.py`        the bare relay on our own stack: the baseline of sessions
- `sampled.py`      runs a server and samples what it spends its CPU time on
- `machine.py`      processes, cores, ports
- `__main__.py`     interleaved rounds and the table
"""
