"""Turns models that packages carry into folders that transformers opens: once, whole, checked."""

from tinsmith_worker.prepare.recipes import PREPARABLE, PrepareError, prepare, verify

__all__ = ["PREPARABLE", "PrepareError", "prepare", "verify"]
