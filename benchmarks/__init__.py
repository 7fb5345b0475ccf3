"""What perception and training cost; `python -m benchmarks` writes docs/benchmarks.md."""
