"""What several test files use: runs of a few steps, child processes, reference formulas, made-up archives."""
