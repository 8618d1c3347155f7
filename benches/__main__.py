"""The table of `docs/performance.md`: every row with pass, falls short or not measured, and the machine it ran on.

    YARDSTICK=DIR .venv/bin/python -m benches [--rows 1,3] [--quick] [--json FILE]

DIR holds loadgen.c (the load generator) and discard.c (acknowledges and throws away: the limit of an epoll server);
without it the rows that need them say so. Figures are medians of the rounds; servers that are compared run in turn in
each round, so that a neighbour's load falls on all of them. CPU per message and ratios are what to trust.

Exit code: 1 when an acknowledged message is missing from the rows or a row could not be measured to its end; 0 else,
whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from benches import costs, machine
from benches.bench import Bench
from benches.peers import Yardstick
from benches.rows import (
    closing,
    connections,
    flat_out,
    formats,
    gateway,
    latency,
    linearity,
    one_per_write,
    pressure,
    restart,
    sessions,
    state,
    storm,
    whole_pipeline,
    windows,
)
from benches.table import Row, not_measured, say, show

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
ROWS = {
    "1": flat_out.run,
    "2": whole_pipeline.run,
    "3": one_per_write.run,
    "4": latency.run,
    "5": formats.run,
    "6": restart.run,
    "7": linearity.run,
    "8": connections.run,
    "9": pressure.run,
    "10": storm.run,
    "11": gateway.run,
    "12": windows.run,
    "13": state.run,
    "14": closing.run,
    "15": sessions.run,
}


def main() -> int:
    """Runs the rows asked for and prints the table."""
    given = options().parse_args()
    wanted = [word.strip() for word in given.rows.split(",")]
    if unknown := [word for word in wanted if word not in ROWS]:
        raise SystemExit(f"bench: there is no row {', '.join(unknown)}; rows are {', '.join(ROWS)}")
    yardstick = os.environ.get("YARDSTICK")
    found: list[Row] = []
    failed = False
    lines = machine.describe(given.data_dir)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=given.data_dir) as folder:
        scratch = Path(folder)
        quick = given.quick
        bench = Bench(
            scratch=scratch,
            rounds=given.rounds or (1 if quick else 5),
            secs=given.secs or (1 if quick else 4),
            long_secs=given.long_secs or (5 if quick else 60),
            log_gb=given.log_gb or (0.2 if quick else 10),
            yardstick=Yardstick(Path(yardstick), scratch) if yardstick else None,
            mosquitto=machine.mosquitto(),
        )
        for line in lines:
            say(line)
        say(f"medians of {bench.rounds} rounds of {bench.secs:g} s")
        for word in wanted:
            say()
            try:
                rows = ROWS[word](bench)
            except (Exception, SystemExit) as error:
                # What the other rows found is not lost for it.
                traceback.print_exc()
                failed, rows = True, [not_measured(word, "the row", "", repr(error))]
            for row in rows:
                found.append(row)
                say(f"row {row.number}: {row.found}: {row.verdict}")
    took_s = time.monotonic() - begin
    medians = f"Medians of {bench.rounds} rounds of {bench.secs:g} s; the run took {took_s / 60:.0f} minutes."
    page = [*lines, medians, "", show(found)]
    model = costs.of_rows(found)
    arithmetic = costs.arithmetic(model)
    say()
    for line in page:
        say(line)
    say()
    for line in arithmetic:
        say(line)
    say()
    say(f"for headwater/costs.py: {model}")
    if given.write:
        replace(PAGE, "table", page)
        replace(PAGE, "costs", arithmetic)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "machine": lines,
        "took_s": took_s,
        "costs": asdict(model),
        "rows": [asdict(row) for row in found],
    }
    given.json.write_text(json.dumps(values, indent=1), encoding="utf-8")
    say(f"\nevery figure: {given.json}")
    return 1 if failed or any(row.figures.get("missing", 0) > 0 for row in found) else 0


def options() -> argparse.ArgumentParser:
    """Those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which, such as 1,3")
    parser.add_argument("--rounds", type=int, help="of each comparison (5; quick: 1)")
    parser.add_argument("--secs", type=float, help="of load per server and round (4; quick: 1)")
    parser.add_argument("--long-secs", type=float, help="of load of row 2 (60; quick: 5)")
    parser.add_argument("--log-gb", type=float, help="size of row 6's log (10; quick: 0.2)")
    parser.add_argument("--quick", action="store_true", help="tries the harness; its figures mean nothing")
    parser.add_argument("--data-dir", type=Path, default=ROOT, help="where Headwater's data lies meanwhile")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "target" / "bench.json", help="every figure goes here"
    )
    parser.add_argument("--write", action="store_true", help="put table and costs into docs/performance.md")
    return parser


def replace(page: Path, part: str, lines: list[str]) -> None:
    """Puts the lines between the marks of a part of the page."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, after = text.index(begin) + len(begin), text.index(end)
    page.write_text(f"{text[:before]}\n" + "\n".join(lines) + f"\n{text[after:]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
