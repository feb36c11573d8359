"""A seeded schedule of every fault there is. `SPENDGATE_SIM_SEED=<seed>` runs one again."""

from __future__ import annotations

import os
import random

from tests.simulation.house import House, Postgres
from tests.simulation.schedule import Schedule, told

SECONDS = 20


async def test_the_books_are_right_after_a_random_schedule_of_faults(
    own_house: House, mortal: Postgres
) -> None:
    seed = int(os.environ.get("SPENDGATE_SIM_SEED") or random.SystemRandom().randrange(10**6))
    lines = [f"SPENDGATE_SIM_SEED={seed}"]
    schedule = Schedule(own_house, mortal, seed, say=lines.append)
    async with told(schedule, lines):
        booked = await schedule.run(SECONDS)
    outcomes = {row.outcome for row in booked.values()}
    assert "success" in outcomes
