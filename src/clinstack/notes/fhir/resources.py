"""Reading FHIR resources one by one, from NDJSON and Bundles, and the few data types that notes need."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from clinstack.errors import InputError
from clinstack.notes.fhir.markup import html_charset, html_to_text, rtf_to_text

_LINES = re.compile(r"\.(ndjson|jsonl)(\.gz)?$", re.IGNORECASE)
_WHOLE = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)
_AGAIN = "export the file again"
_PLAIN, _HTML = ("text/plain", "text/markdown"), ("text/html", "application/xhtml+xml")
_RTF = ("application/rtf", "text/rtf", "application/x-rtf", "text/richtext")
READABLE = (*_PLAIN, *_HTML, *_RTF)
"""Content types, the best first where a document comes in several."""


@dataclass(frozen=True)
class Resource:
    """A resource and where it stood.

    Parameters
    ----------
    content : dict
        As in the file.
    file : Path
        For messages.
    part : str
        The line, or the entry of a Bundle.
    aliases : mapping of str to str
        The ids of the resources of the same Bundle by their ``urn:uuid:``.
    """

    content: dict[str, Any]
    file: Path
    part: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its ``resourceType``."""
        return str(self.content["resourceType"])

    @property
    def id(self) -> str:
        """Its id.

        Raises
        ------
        InputError
            If it has none.
        """
        found = self.word("id")
        if not found:
            self.wrong("has no id; each needs its own")
        return found

    def wrong(self, what: str) -> NoReturn:
        """Raise InputError about this resource."""
        raise InputError(f"{self.file}, {self.part}: this {self.content.get('resourceType', 'resource')} {what}.")

    def get(self, *path: str | int) -> Any:
        """Return what stands at a path of keys and places, None where it does not go on."""
        return at(self.content, *path)

    def word(self, *path: str | int) -> str:
        """Return the text at a path, without blanks around it; empty where there is none."""
        return word(self.get(*path))

    def reference(self, kind: str, *path: str | int) -> str | None:
        """Return the id of a resource of a kind that is referred to; None for nothing or another kind."""
        value = self.word(*path, "reference")
        if value.startswith("urn:uuid:"):
            named = self.word(*path, "type")
            return self.aliases.get(value, value.removeprefix("urn:uuid:")) if named in ("", kind) else None
        found = re.search(rf"(?:^|/){kind}/([^/]+)(?:/_history/[^/]+)?$", value)
        return found.group(1) if found else None

    def time(self, *path: str | int) -> datetime | None:
        """Return a date or time in UTC without its zone, None where there is none; a date begins at midnight.

        Raises
        ------
        InputError
            If it is no FHIR date.
        """
        value = self.word(*path)
        if not value:
            return None
        try:
            return _time(value)
        except (ValueError, OverflowError):
            self.wrong(
                f"has a {'.'.join(map(str, path))} that is no date such as 2020-05-01T08:30:00+02:00; correct it"
            )


def _time(value: str) -> datetime:
    if re.fullmatch(r"\d{4}(-\d\d)?", value):
        value += "-01" * (2 - value.count("-"))
    time = datetime.fromisoformat(re.sub(r":60(?=\.|Z|[+-]|$)", ":59", value))
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def at(value: Any, *path: str | int) -> Any:
    """Return what stands at a path of keys and places, None where it does not go on."""
    for part in path:
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def word(value: Any) -> str:
    """Return a text without blanks around it; empty for anything else."""
    # JSON may hold halves of characters, which no table can.
    return value.strip().encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def items(value: Any) -> list[Any]:
    """Return a list as it is, nothing as an empty list, and anything else as a list of it."""
    return value if isinstance(value, list) else [] if value is None else [value]


def fhir_files(source: Path) -> list[Path]:
    """Return the files of resources in a folder and below it, or the file itself.

    Raises
    ------
    InputError
        If there are none.
    """
    if source.is_file():
        files = [source]
    elif source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        raise InputError(f"{source} does not exist; name a file or folder of NDJSON or Bundles.")
    found = [path for path in files if _LINES.search(path.name) or _WHOLE.search(path.name)]
    if not found:
        raise InputError(f"{source} has no file that ends in .ndjson, .jsonl or .json (or these with .gz).")
    return found


def resources(files: list[Path], progress: Callable[[int, int], None] | None = None) -> Iterator[Resource]:
    """Yield the resources of files, those of a Bundle one by one; of NDJSON one line is in memory at a time.

    ``progress`` is called with the bytes read and the bytes in all.

    Raises
    ------
    InputError
        Naming file and line: what is no JSON, no resource, or a damaged gzip.
    """
    total, before = sum(path.stat().st_size for path in files), 0
    for path in files:
        with path.open("rb") as raw:
            file: BinaryIO = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw  # type: ignore[assignment]
            for count, found in enumerate(_of_lines(path, file) if _LINES.search(path.name) else _whole(path, file)):
                yield found
                if progress and count % 256 == 0:
                    progress(before + raw.tell(), total)
        before += path.stat().st_size
        if progress:
            progress(before, total)


def _of_lines(path: Path, file: BinaryIO) -> Iterator[Resource]:
    number = 0
    while True:
        try:
            line = file.readline()
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise InputError(f"{path} is a damaged or truncated gzip file (after line {number:,}); {_AGAIN}.") from None
        number += 1
        if not line:
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield from _parsed(path, f"line {number:,}", line)


def _whole(path: Path, file: BinaryIO) -> Iterator[Resource]:
    try:
        content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path} is a damaged or truncated gzip file; {_AGAIN}.") from None
    yield from _parsed(path, "", content.removeprefix(b"\xef\xbb\xbf"))


def _parsed(path: Path, part: str, content: bytes) -> Iterator[Resource]:
    place = f"{path}, {part}" if part else str(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 (byte {error.start:,}); {_AGAIN}.") from None
    except json.JSONDecodeError as error:
        # The message of the parser may stand beside a note; only the place is passed on.
        where = f"character {error.colno:,}" if part else f"line {error.lineno:,}, character {error.colno:,}"
        raise InputError(f"{place} is not JSON ({where}); it may have been cut off: {_AGAIN}.") from None
    except RecursionError:
        raise InputError(f"{place} is nested too deeply for a resource; {_AGAIN}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise InputError(f"{place} is no FHIR resource: resourceType is missing. Name FHIR's files alone.")
    if value["resourceType"] != "Bundle":
        yield Resource(value, path, part or "the file")
        return
    entries = items(value.get("entry"))
    aliases = {
        str(at(entry, "fullUrl")): str(at(entry, "resource", "id"))
        for entry in entries
        if str(at(entry, "fullUrl") or "").startswith("urn:uuid:") and at(entry, "resource", "id")
    }
    for number, entry in enumerate(entries, 1):
        resource = at(entry, "resource")
        if isinstance(resource, dict) and isinstance(resource.get("resourceType"), str):
            yield Resource(resource, path, f"{part}, entry {number:,}".removeprefix(", "), aliases)


def content_type(value: Any) -> tuple[str, str | None]:
    """Return type and character set of a ``contentType``.

    Examples
    --------
    >>> content_type('Text/Plain; charset="ISO-8859-1"')
    ('text/plain', 'iso-8859-1')
    """
    kind, *parameters = str(value or "").lower().split(";")
    charset = None
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip() == "charset" and given.strip(" \"'"):
            charset = given.strip(" \"'")
    return kind.strip(), charset


def attached_text(resource: Resource, data: Any, described: Any, charset: str) -> str:
    """Return the text of base64 data of a type in `READABLE`.

    Parameters
    ----------
    resource : Resource
        Named in errors.
    data : str
        Base64, perhaps with blanks.
    described : str
        The ``contentType``.
    charset : str
        For data whose type, and HTML whose ``<meta>``, names none.

    Raises
    ------
    InputError
        If it is no base64, or not of its character set.
    """
    kind, named = content_type(described)
    try:
        content = base64.b64decode("".join(data.split()).encode("ascii"), validate=True)
    except (AttributeError, UnicodeEncodeError, binascii.Error):
        resource.wrong("has data that is not base64; it may have been cut off: export it again")
    if kind in _RTF:
        # RTF is written in ASCII and says in itself what its bytes beyond that mean.
        return rtf_to_text(_decoded(resource, content, named) if named else content.decode("cp1252", "replace"))
    if kind in _HTML:
        return html_to_text(_decoded(resource, content, named or html_charset(content) or charset))
    return _decoded(resource, content, named or charset)


def _decoded(resource: Resource, content: bytes, charset: str) -> str:
    try:
        text = content.decode("utf-8-sig" if charset.lower() in ("utf-8", "utf8") else charset)
    except LookupError:
        resource.wrong(f"names the character set {charset[:40]!r}, which is not known; correct its contentType")
    except UnicodeError:
        resource.wrong(
            f"has a text that is not {charset[:40]}; name its charset in contentType, or use --charset latin-1"
        )
    return text.encode("utf-8", "replace").decode()
