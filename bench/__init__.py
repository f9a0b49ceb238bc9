"""Benchmarks. Each prints ratios from one run and writes JSON with machine, commit and workload to bench/results."""
