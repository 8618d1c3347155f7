"""Timings of the whole product against its stated figures: `python -m benches`, see `docs/performance.md`."""
