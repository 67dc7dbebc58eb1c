"""Torment a service and say what became of its jobs: `python -m tests.chaos --jobs 500 --kills 20 --seed 1`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from tests.chaos.house import House
from tests.chaos.trial import Plan, Trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    house = House(lease_seconds=2.0, sweep_seconds=1.0)
    try:
        jumps = asked.kills // 5 if house.can_move_clock else 0
        plan = Plan(asked.seed, asked.jobs, asked.kills, asked.kills // 4, asked.kills // 4, jumps)
        report = asyncio.run(Trial(house, plan).run(patience=120))
    finally:
        house.end()
    print(f"| {asked.jobs} jobs, seed {asked.seed}, {report.seconds:.0f} s | |\n| --- | ---: |")
    for what, count in (*sorted(report.done.items()), *report.counts.items(), ("faults", len(report.faults))):
        print(f"| {what} | {count} |")
    for fault in report.faults:
        print(fault, file=sys.stderr)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
