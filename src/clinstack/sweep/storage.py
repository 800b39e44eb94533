"""Where the trials of a sweep are kept, and who works on which: parameters and scores only, never a text.

A worker holds a lock for the trial it works on. Locks of files and of a PostgreSQL session end with their process,
so a trial that runs according to the storage and is not locked is one whose worker was killed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from clinstack.database import refuse_remote_database
from clinstack.errors import ClinstackError, InputError
from clinstack.recipe import SweepRecipe

if TYPE_CHECKING:
    import optuna
    import psycopg
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

Release = Callable[[], None]
_NAMESPACE = zlib.crc32(b"clinstack") - 2**31
"""Of PostgreSQL's advisory locks, which are numbers: for what concerns all sweeps of a database."""


class Locks(Protocol):
    """The locks that all workers of a sweep share."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run a block while no other worker is in such a block."""
        ...

    def take(self, number: int) -> Release | None:
        """Lock a trial and return what gives it free; None when another worker has it."""
        ...


class FileLocks:
    """Locks of the file system, for workers on one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "trials").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run a block while no other worker is in such a block."""
        with FileLock(self._folder / ".study.lock"):
            yield

    def take(self, number: int) -> Release | None:
        """Lock a trial and return what gives it free; None when another worker has it."""
        lock = FileLock(self._folder / "trials" / f".{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock.release


class PostgresLocks:
    """Advisory locks of a PostgreSQL session: the server takes them back when the process or its machine is gone."""

    def __init__(self, connection: psycopg.Connection[Any], study: str) -> None:
        self._connection = connection
        self._study = zlib.crc32(study.encode()) - 2**31

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run a block while no other worker is in such a block."""
        self._connection.execute("SELECT pg_advisory_lock(%s, 0)", (_NAMESPACE,))
        try:
            yield
        finally:
            self._connection.execute("SELECT pg_advisory_unlock(%s, 0)", (_NAMESPACE,))

    def take(self, number: int) -> Release | None:
        """Lock a trial and return what gives it free; None when another worker has it."""
        key = (self._study, number)
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
        if row is None or not row[0]:
            return None

        def release() -> None:
            self._connection.execute("SELECT pg_advisory_unlock(%s, %s)", key)

        return release


@contextmanager
def open_study(
    recipe: SweepRecipe, folder: Path, name: str, validations: int | None
) -> Iterator[tuple[optuna.Study, Locks]]:
    """Create a sweep's study, or open the one that is there, and yield it with its locks.

    Parameters
    ----------
    recipe : SweepRecipe
    folder : Path
        The sweep's Run, for a storage that is a file.
    name : str
        Of the study in its storage.
    validations : int or None
        In a whole trial, for Hyperband; None lets it learn that from the first trial.

    Raises
    ------
    InputError
        If a database cannot be reached or its driver is not installed.
    ClinstackError
        If it is lost on the way.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _locks(recipe, folder, name) as locks:
        try:
            with locks.alone():  # two that make the tables at the same time fail
                study = optuna.create_study(
                    storage=_storage(recipe, folder),
                    study_name=name,
                    load_if_exists=True,
                    direction=recipe.direction,
                    pruner=_pruner(recipe, validations),
                )
            yield study, locks
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            kind = type(error.__cause__ or error).__name__
            raise ClinstackError(f"storage: the database failed ({kind}). Start again: the sweep goes on.") from None


def forget(recipe: SweepRecipe, folder: Path, name: str) -> None:
    """Delete a sweep's study from a database.

    Raises
    ------
    ClinstackError
        If a worker is at one of its trials.
    """
    import optuna

    with _locks(recipe, folder, name) as locks, locks.alone():
        storage = optuna.storages.get_storage(_storage(recipe, folder))
        if name not in [study.study_name for study in storage.get_all_studies()]:
            return
        for number in range(recipe.trials):
            release = locks.take(number)
            if release is None:
                raise ClinstackError(f"storage: trial {number} of this sweep runs elsewhere; stop it before --fresh.")
            release()
        optuna.delete_study(study_name=name, storage=storage)


@contextmanager
def _locks(recipe: SweepRecipe, folder: Path, name: str) -> Iterator[Locks]:
    if recipe.storage in {"journal", "sqlite"}:
        yield FileLocks(folder)
        return
    try:
        import psycopg
    except ImportError:
        raise InputError("storage: PostgreSQL needs psycopg; install clinstack[postgres].") from None
    refuse_remote_database(recipe.storage, "storage", "Use storage: journal or sqlite, which are files of the Run.")
    try:
        # A machine without power says no goodbye: ask whether it is there, so that its trials are given to others.
        connection = psycopg.connect(
            recipe.storage.replace("postgres://", "postgresql://", 1),
            autocommit=True,
            options="-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"storage: {recipe.storage} cannot be reached: {reason}") from None
    try:
        yield PostgresLocks(connection, name)
    except psycopg.Error as error:
        raise ClinstackError(
            f"storage: the database was lost ({type(error).__name__}). Start again: the sweep goes on."
        ) from None
    finally:
        connection.close()


def _storage(recipe: SweepRecipe, folder: Path) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.storages.journal._file import BaseJournalFileLock

    class Lock(BaseJournalFileLock):
        """Optuna's own stays behind when its process is killed, and holds the others up for half a minute."""

        def __init__(self) -> None:
            self._lock = FileLock(folder / ".journal.lock")

        def acquire(self) -> bool:
            self._lock.acquire()
            return True

        def release(self) -> None:
            self._lock.release()

    if recipe.storage == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "study.journal"), Lock()))
    if recipe.storage == "sqlite":
        return RDBStorage(
            f"sqlite:///{(folder / 'study.sqlite').resolve()}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
    address = recipe.storage.partition("://")[2]
    return RDBStorage(f"postgresql+psycopg://{address}", engine_kwargs={"pool_pre_ping": True})


def _pruner(recipe: SweepRecipe, validations: int | None) -> BasePruner:
    """Return the pruner; each looks at a trial after its first validation and after later ones."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

    if recipe.pruner == "median":
        return MedianPruner(n_startup_trials=4)
    if recipe.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=validations or "auto", reduction_factor=3)
    if recipe.pruner == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return NopPruner()
