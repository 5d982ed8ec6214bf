"""Tinsmith: a training service on your own GPUs that speaks the API of Tinker."""
