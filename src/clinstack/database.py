"""Databases that stay within the house: DuckDB without its downloads, PostgreSQL refused elsewhere when offline.

DuckDB would fetch an extension from the makers' servers when a query needs one that it lacks, past any hook of
Python's. What clinstack reads and writes needs no extension beyond those inside the library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from clinstack.offline import is_offline, refuse_host, refuse_network

if TYPE_CHECKING:
    import duckdb

_SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}


def connect(path: Path | None = None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a database, in memory without a path; no extension is fetched or loaded.

    Raises
    ------
    duckdb.Error
        If the file cannot be opened.
    """
    import duckdb

    where = ":memory:" if path is None else str(path)
    return duckdb.connect(where, read_only=read_only, config=dict(_SETTINGS))


def refuse_remote_database(address: str, what: str, remedy: str) -> None:
    """Refuse a PostgreSQL server on another machine while clinstack is offline: libpq connects past Python's hook.

    Parameters
    ----------
    address : str
        ``postgresql://…``
    what, remedy : str
        Where it is named, and what to do instead, for the message.

    Raises
    ------
    InputError
        If a host of the address, or of libpq's environment where it names none, is no allowed one.
    """
    if not is_offline():
        return
    from psycopg.conninfo import conninfo_to_dict

    values = conninfo_to_dict(address.replace("postgres://", "postgresql://", 1))
    if values.get("service") or os.environ.get("PGSERVICE"):
        refuse_network(f"{what}: a service that libpq looks up", remedy)
    named = [values.get("hostaddr") or os.environ.get("PGHOSTADDR"), values.get("host") or os.environ.get("PGHOST")]
    for host in ",".join(str(value) for value in named if value).split(","):
        if not host.startswith(("/", "@")):  # a socket of this machine
            refuse_host(host, what, remedy)
