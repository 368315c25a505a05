"""The 22 TPC-H queries through ADBC beside plain DuckDB, with fact tables on 1, 2 and 4 hosts.

    python benchmarks/tpch.py [--scale 1] [--hosts 1 2 4] [--rounds 3] [--large]

The tenant's quota is the default one, with memory for the data; --large: enough for the heaviest.

Every answer is compared with plain DuckDB's. Exits with 1 when one is wrong, or when fewer than 18
are answered: a refusal needs a reason, and is printed with it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from tpch_data import large_tpch_quota
from tpch_run import run, show

AT_LEAST: Final = 18


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="the best time of so many counts")
    parser.add_argument("--large", action="store_true", help="a large quota")
    told = parser.parse_args()
    quota = large_tpch_quota(told.scale) if told.large else None
    holds = True
    for hosts in told.hosts:
        outcomes = run(hosts, told.scale, told.rounds, quota)
        show(outcomes)
        answered = [one for one in outcomes if not one.refused]
        ratio = statistics.geometric_mean(one.seconds / one.plain_seconds for one in answered)
        print(f"  geometric mean of time / plain DuckDB's time: {ratio:.2f}", flush=True)
        holds &= len(answered) >= AT_LEAST and not any(one.wrong for one in outcomes)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
