"""Slow work beside the API: jobs on RQ, what is known of each, and the process that does them.

A job is a function by name with JSON arguments, so no process ever unpickles what Redis holds.
"""
