"""One file per group of rows; each has `run(bench)`, which gives the rows with their verdicts."""
