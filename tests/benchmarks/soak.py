"""Soak: load with crashes for as long as you like, the books checked throughout.

`make soak`, or `python -m tests.benchmarks.soak --minutes 30`. Round after round it runs the
schedule of `tests/simulation`: two gateways under mixed load; gateways, PostgreSQL and what lies
between them are killed, hung, cut and mended; then every call is audited. Each round has a seed,
which is printed; `--seed` runs that one again. Ends with 1 at the first round whose books are wrong,
and leaves everything of that round behind to look at.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from app.simulator import RunningSimulator
from tests.simulation.house import House, Nursery, Postgres, provider
from tests.simulation.schedule import Schedule


async def round_of(
    directory: Path,
    postgres: Postgres,
    simulator: RunningSimulator,
    nursery: Nursery,
    options: argparse.Namespace,
    seed: int,
) -> Counter[str]:
    """Run one round; raise `AssertionError` if its books are wrong."""
    await asyncio.to_thread(directory.mkdir)
    house = House(directory, postgres.another(), simulator, nursery)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if options.verbose:
            print(f"    {line}", flush=True)

    schedule = Schedule(house, postgres, seed, callers=options.callers, say=say)
    began = time.monotonic()
    try:
        booked = await schedule.run(options.seconds)
    except BaseException:
        if not options.verbose:
            print("\n".join(f"    {line}" for line in lines), flush=True)
        raise
    finally:
        house.close()
    outcomes = Counter(row.outcome for row in booked.values())
    adjusted = sum(row.adjustments for row in booked.values())
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(
        f"seed {seed}: {len(booked)} calls, {schedule.faults.total()} faults, "
        f"{time.monotonic() - began:.0f} s: {shown}; {adjusted} adjusted late. The books are right.",
        flush=True,
    )
    return outcomes


async def soak(options: argparse.Namespace, directory: Path) -> int:
    """Run rounds until the time is over."""
    until = time.monotonic() + options.minutes * 60
    seeds = random.Random(options.seed)
    total: Counter[str] = Counter()
    nursery = Nursery()
    postgres = Postgres(directory / "postgres")
    rounds = 0
    try:
        with provider() as simulator:
            while rounds == 0 or time.monotonic() < until:
                # The first is the one that was asked for.
                seed = seeds.randrange(10**6) if rounds or options.seed is None else options.seed
                simulator.reset()
                total += await round_of(
                    directory / f"round-{rounds}-seed-{seed}",
                    postgres,
                    simulator,
                    nursery,
                    options,
                    seed,
                )
                rounds += 1
    except AssertionError as error:
        print(f"The books are wrong after seed {seed}; see {directory}.\n{error}", flush=True)
        return 1
    finally:
        if not postgres.running():
            postgres.start()
        postgres.close()
        nursery.close()
    print(f"{rounds} rounds, {total.total()} calls: every one booked once. {dict(total)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak",
        description="Load with crashes, the books checked after each round.",
        epilog="example: python -m tests.benchmarks.soak --minutes 60 --callers 32",
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seconds", type=float, default=30, help="of faults in a round (30)")
    parser.add_argument("--callers", type=int, default=16, help="calls at once (16)")
    parser.add_argument("--seed", type=int, help="of the first round (default: random)")
    parser.add_argument("--verbose", action="store_true", help="tell each fault as it happens")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="spendgate-soak-"))
    status = asyncio.run(soak(options, directory))
    if status == 0:
        shutil.rmtree(directory, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
