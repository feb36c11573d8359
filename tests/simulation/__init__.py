"""Simulation: the books add up after kills, lost acknowledgements, outages and partitions.

- `server.py`    `spendgate serve` that dies at a chosen point
- `house.py`     PostgreSQL, gateways and tenants to wreck, and the audit of the books afterwards
- `traffic.py`   clients: calls of every kind, load, and what each client knows
- `wire.py`      what stands between a gateway and PostgreSQL, and how it fails
- `schedule.py`  a seeded schedule of all that, as the tests and `make soak` run it
"""
