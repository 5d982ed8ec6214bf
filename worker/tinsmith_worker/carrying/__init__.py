"""Weights on their way in and out, in a process of their own: merged into a model, taken in from PEFT.

`python -m tinsmith_worker.carrying` is what the background process starts; see `__main__`.
"""
