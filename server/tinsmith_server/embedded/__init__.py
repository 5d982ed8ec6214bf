"""The whole service on one bare machine: a real Valkey and the same processes as in production."""
