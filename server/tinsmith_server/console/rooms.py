"""Every page, in the order in which their paths are tried."""

from tinsmith_server.console import (
    audit,
    checkpoints,
    entrance,
    overview,
    runs,
    sessions,
    static_files,
)

ROOMS = (entrance, static_files, overview, runs, sessions, checkpoints, audit)
