"""Every page, in the order in which their paths are tried."""

from tinsmith_server.console import (
    account,
    audit,
    checkpoints,
    entrance,
    keys,
    limits,
    operators,
    overview,
    people,
    playground,
    runs,
    sessions,
    single_sign_on,
    static_files,
    usage,
)

ROOMS = (
    entrance,
    single_sign_on,
    account,
    static_files,
    overview,
    runs,
    sessions,
    checkpoints,
    playground,
    keys,
    people,
    usage,
    limits,
    audit,
    operators,
)
