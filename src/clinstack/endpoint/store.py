"""The store of replies: SQLite, one row a request, written before a reply is used."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from clinstack.endpoint.requests import Reply
from clinstack.errors import InputError

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    request TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    model TEXT NOT NULL
) WITHOUT ROWID
"""


class ReplyStore:
    """Replies by the digest of their request; used by many threads of one process, and by one process at a time.

    The file is as confidential as the Notes, and only its owner may read it.

    Parameters
    ----------
    path : Path
        The SQLite file; made when it is missing.

    Raises
    ------
    InputError
        If another process uses the store, or the file is no store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes would pay for the same requests, each unaware of the other.
        self._file_lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
        try:
            self._file_lock.acquire()
        except Timeout:
            raise InputError(f"{path}: another clinstack asks for the same answers; wait for it, or end it.") from None
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A reply that was paid for also outlives a power cut; a request takes longer than a flush to disk.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            self._file_lock.release()
            raise InputError(f"{path} is no store of replies ({error}); move it away, or name another --out.") from None
        self._lock = threading.Lock()
        query = "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM replies"
        self.count, self.prompt_tokens, self.completion_tokens = self._connection.execute(query).fetchone()

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tokens(self) -> int:
        """All tokens of the stored replies, prompts and answers."""
        return int(self.prompt_tokens + self.completion_tokens)

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            row = self._connection.execute("SELECT 1 FROM replies WHERE request = ?", (digest,)).fetchone()
        return row is not None

    def get(self, digest: str) -> Reply | None:
        """Return the reply to a request, or None."""
        with self._lock:
            row = self._connection.execute(
                "SELECT key, text, finish_reason, prompt_tokens, completion_tokens, model FROM replies "
                "WHERE request = ?",
                (digest,),
            ).fetchone()
        if row is None:
            return None
        key, text, finish, prompt_tokens, completion_tokens, model = row
        return Reply(key, text, finish, prompt_tokens, completion_tokens, model, None)

    def put(self, digest: str, reply: Reply) -> None:
        """Keep a reply; it is on the disk when this returns."""
        values = (
            digest,
            reply.key,
            reply.text,
            reply.finish_reason,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.model,
        )
        with self._lock:
            self._connection.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            self.count += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens

    def close(self) -> None:
        """Close the file and let another process use it; a store without replies goes."""
        with self._lock:
            self._connection.close()
        if not self.count:
            self.path.unlink(missing_ok=True)
            Path(self._file_lock.lock_file).unlink(missing_ok=True)
        self._file_lock.release()
