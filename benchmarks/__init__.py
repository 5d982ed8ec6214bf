"""Benchmarks: our engine against transformers with peft, and against what the machine can do.

`harness` runs and records, `workloads` says what is run, `peft_side` is the rival, `machine` is the
limit, `memory` measures peaks. Each `bench_*` module is one table: `make bench`.
"""
