"""What a stack was trained on, and whether that may be published: ``data`` in stack.json.

Weights can give away what they have read, so they are bound by what binds the notes. The list of a new stack is that of
every stack and base its adapters come from, and the Notes of its own training; nothing is ever taken out of it.

=============================================  ==========================================
Notes                                          ``openly_publishable``
=============================================  ==========================================
MIMIC-III, MIMIC-IV                            false: the data use agreement forbids it
the synthetic cohort, and questions about it   true: nobody in it exists
anything else, and what is not known           null: unknown, whoever owns it must say so
=============================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.model.base import Base
from clinstack.model.lineage import find_adapter_folder, read_stack_record
from clinstack.recipe import AdapterRecipe

EXPORT_FILE = "export.json"
"""What `clinstack export` writes beside what it exports; a base made by it says there what it was trained on."""
_CREDENTIALED = ("mimic3", "mimic4")
_FROM_THE_COHORT = (*_CREDENTIALED, "oracle")
"""Sources whose ``synthetic`` comes from the invented hospital's own mark, and is not somebody's word."""


@dataclass(frozen=True)
class DataSource:
    """Notes that weights were trained on.

    Parameters
    ----------
    source : str or None
        As prepare.json has it, such as ``mimic3``; None where it is not known.
    synthetic : bool or None
    prepare : str or None
        Hash of prepare.json.
    stage : str or None
        What was trained: ``pretrain``, ``finetune``, ``instruct`` or ``align``.
    openly_publishable : bool or None
        Whether weights trained on them may be published; None where that is not known.
    """

    source: str | None = None
    synthetic: bool | None = None
    prepare: str | None = None
    stage: str | None = None
    openly_publishable: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of stack.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSource:
        """Read what `to_dict` wrote."""
        return cls(**{key: values.get(key) for key in cls.__dataclass_fields__})

    @property
    def sentence(self) -> str:
        """Say what it is and whether weights trained on it may be published."""
        what = "data that nothing is known of" if self.source is None else f"`{self.source}`"
        kind = ", synthetic" if self.synthetic else ""
        stage = f" ({self.stage}{kind})" if self.stage else ""
        may = {
            True: "may be published",
            False: "may not be published openly",
            None: "not known whether it may be published",
        }
        return f"{what}{stage}: {may[self.openly_publishable]}"


UNKNOWN = DataSource()
"""What is said of weights without a record."""


def rule(facts: Mapping[str, Any]) -> bool | None:
    """Return whether weights trained on Notes may be published, by what their prepare.json says; None: unknown."""
    source = facts.get("source")
    if facts.get("synthetic"):
        return True if source in _FROM_THE_COHORT else None
    return False if source in _CREDENTIALED else None


def notes_source(folder: Path, stage: str) -> DataSource:
    """Return what a folder of Notes, or a task's examples in one, is to the lineage.

    Raises
    ------
    InputError
        If prepare.json is damaged.
    """
    for place in (folder, folder.parent.parent):
        file = place / "prepare.json"
        if not file.is_file():
            continue
        try:
            facts = read_json(file)
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise InputError(f"{file} is damaged; prepare the folder again.")
        synthetic = bool(facts.get("synthetic"))
        return DataSource(str(facts.get("source")), synthetic, sha256_file(file), stage, rule(facts))
    return DataSource(stage=stage)


def training_data(folder: Path, stage: str, adapters: Sequence[AdapterRecipe], base: Base) -> tuple[DataSource, ...]:
    """Return the lineage of a stack that is trained now.

    Parameters
    ----------
    folder : Path
        The Notes, examples, instructions or preferences.
    stage : str
    adapters : sequence of AdapterRecipe
        Those with a path bring the lineage of the stack that they come from, whole.
    base : Base
        One that `clinstack export` made brings its own.
    """
    found = list(data_of_base(base))
    for index, adapter in enumerate(adapters):
        if adapter.path is not None:
            place = find_adapter_folder(Path(adapter.path), f"adapters.{index} ({adapter.name})").parent
            has_record = (place / "stack.json").is_file()
            found += data_of(read_stack_record(place)) or (UNKNOWN,) if has_record else (UNKNOWN,)
    return distinct([*found, notes_source(folder, stage)])


def data_of_base(base: Base) -> tuple[DataSource, ...]:
    """Return what a base was trained on that `clinstack export` made; of any other base nothing is said."""
    places = [base.folder / EXPORT_FILE]
    if base.folder.name == "base":  # of the kind `clinical-merged`, whose record stands beside it
        places.append(base.folder.parent / EXPORT_FILE)
    for place in places:
        if place.is_file():
            try:
                record = read_json(place)
            except ValueError:
                raise InputError(f"{place} is damaged; export the stack again.") from None
            return data_of(record) or (UNKNOWN,)
    return ()


def data_of(record: Mapping[str, Any]) -> tuple[DataSource, ...] | None:
    """Return what stack.json or export.json says; None where it says nothing, as of stacks from before."""
    data = record.get("data")
    if data is None:
        return None
    try:
        return tuple(DataSource.from_dict(item) for item in data)
    except (TypeError, AttributeError):
        raise InputError("data: what stack.json says of the training data is damaged; train the stack again.") from None


def distinct(sources: Iterable[DataSource]) -> tuple[DataSource, ...]:
    """Return sources without repetitions, in their order."""
    return tuple(dict.fromkeys(sources))


def openly_publishable(sources: Sequence[DataSource] | None) -> bool | None:
    """Return whether what was trained on all of them may be published: false where one forbids it, else unknown where
    one is, and where nothing is recorded.
    """
    verdicts = {source.openly_publishable for source in sources} if sources else {None}
    return False if False in verdicts else None if None in verdicts else True
