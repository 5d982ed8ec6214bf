"""Benchmarks: our engine against transformers with peft, and against what the machine can do.

`harness` runs and records, `workloads` says what is run, `engine_side` is ours and `peft_side` the
rival, `machine` is the limit, `memory` measures peaks. Each `bench_*` module runs by itself or under
`make bench`; `tables` makes docs/performance.md of what they recorded.
"""
