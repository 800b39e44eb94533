"""HTML and RTF to plain text with its lines kept, for notes that arrive as attachments."""

from __future__ import annotations

import codecs
import re
from html import unescape

_DROPPED = frozenset({"head", "script", "style", "template", "noscript", "svg", "object", "iframe"})
"""Elements whose content is no text of the note."""
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "blockquote", "pre"})
_LINES = frozenset(
    {"div", "tr", "li", "dt", "dd", "section", "article", "header", "footer", "address", "caption", "fieldset", "hr"}
    | {"body", "main", "nav", "aside", "form", "figure", "figcaption", "thead", "tbody", "tfoot"}
)
_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_TOKEN = re.compile(
    r"<!--|<!\[CDATA\[|<[!?]"
    # A tag: its attributes with quotes around what may hold ">", or anything up to the next bracket.
    r"""|<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:_-]*)(?:(?:"[^"<]*"|'[^'<]*'|[^<>"'])*|[^<>]*)>"""
)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.\-]{1,40})""", re.IGNORECASE)


class _Text:
    """Collects the text of a document; ``pieces`` are text, and line ends that stand alone."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.dropped = ""
        self.preformatted = 0
        self.cells = 0

    def tag(self, name: str, closes: bool) -> None:
        """Take a tag in."""
        if self.dropped:
            # A head that is never closed ends where the body begins.
            if (closes and name == self.dropped) or (self.dropped == "head" and name == "body"):
                self.dropped = ""
        elif name in _DROPPED:
            self.dropped = "" if closes else name
        elif name == "br":
            self._end_line(1)
        elif name in ("td", "th"):
            if not closes:
                if self.cells:
                    self.pieces.append("\t")
                self.cells += 1
        else:
            self._end_line(2 if name in _PARAGRAPHS else 1 if name in _LINES else 0)
            if name == "pre":
                self.preformatted = max(0, self.preformatted + (-1 if closes else 1))
            elif name == "tr":
                self.cells = 0
            elif name == "li" and not closes:
                self.pieces.append("- ")

    def text(self, text: str) -> None:
        """Take in what stands between two tags, its entities already read."""
        if text and not self.dropped:
            self.pieces.append(text if self.preformatted else _BLANKS.sub(" ", text))

    def _end_line(self, wanted: int) -> None:
        """End the line; ``wanted`` line ends stand there at most once, however many blocks end together."""
        if not wanted:
            return
        while self.pieces and self.pieces[-1] == " ":
            self.pieces.pop()
        present = 0
        while self.pieces and self.pieces[-1] == "\n" and present < 2:
            self.pieces.pop()
            present += 1
        if self.pieces:
            self.pieces.extend("\n" * max(wanted, present))


def html_to_text(html: str) -> str:
    """Return the text of an HTML document or fragment.

    Blocks and ``<br>`` end lines, paragraphs are set apart by a blank line, a table is written row by row with tabs
    between its cells, and list items begin with a dash. Head, scripts, styles and comments are left out; a bracket that
    opens no tag is text. No input raises, and the time is linear in the length: the standard library's parser takes
    minutes over 40 kB of tags that do not end, and raises at some declarations of word processors.

    Examples
    --------
    >>> html_to_text("<p>Chest pain &lt; 2 h</p><p>No fever</p>")
    'Chest pain < 2 h\\n\\nNo fever'
    """
    collected, place, begin = _Text(), 0, 0
    ends = {"<!--": "-->", "<![CDATA[": "]]>", "<!": ">", "<?": ">"}
    while found := _TOKEN.search(html, place):
        place = found.end()
        if found["name"]:
            collected.text(unescape(html[begin : found.start()]))
            collected.tag(found["name"].lower(), bool(found["close"]))
            begin = place
            continue
        closing = ends[found.group()]
        end = html.find(closing, place) if closing else -1
        if end < 0:
            # Without an end it is text, and so is every later one of its kind.
            ends[found.group()] = ""
            continue
        collected.text(unescape(html[begin : found.start()]))
        if found.group() == "<![CDATA[":
            collected.text(html[place:end])
        begin = place = end + len(closing)
    collected.text(unescape(html[begin:]))
    lines = "".join(collected.pieces).split("\n")
    return "\n".join(line.strip(" ") for line in lines).strip()


def html_charset(data: bytes) -> str | None:
    """Return the character set that a document's ``<meta>`` names, or None."""
    found = _CHARSET.search(data[:4096])
    return found.group(1).decode("ascii") if found else None


_FIELD = re.compile(r"\\field(?=\s*\{)")
_UNICODE = re.compile(r"\\u(-?\d{1,10})")
_WITHOUT_NUMBER = re.compile(r"\\(?:uc(?!-?\d)|bin(?!\d))[ ]?")
_FOREIGN_CHARSET = re.compile(r"\\fcharset(?:7[89]|8\d)(?!\d)")
_CODE_PAGE = re.compile(r"\\ansicpg(\d*)")


def rtf_to_text(rtf: str) -> str:
    """Return the text of an RTF document, one line for each paragraph and table row; no input raises.

    The work is done by striprtf. What it fails at is put right before and after: control words without their number,
    code points beyond Unicode, surrogate pairs, character sets that Python lacks, and linked fields, at which it takes
    time that grows with the third power of the length.

    Examples
    --------
    >>> rtf_to_text(r"{\\rtf1\\ansi Chest pain.\\par No fever.}")
    'Chest pain.\\nNo fever.'
    """
    from striprtf.striprtf import rtf_to_text as strip

    rtf = _FIELD.sub("", rtf)
    rtf = _WITHOUT_NUMBER.sub("", rtf)
    rtf = _FOREIGN_CHARSET.sub(r"\\fcharset0", rtf)
    rtf = _UNICODE.sub(lambda found: found.group() if -0x8000 <= int(found.group(1)) <= 0xFFFF else "\\u65533", rtf)
    rtf = _CODE_PAGE.sub(_known_code_page, rtf)
    # The line end lets it write the bytes (\'e9) that a document without its last brace ends with.
    text: str = strip(rtf + "\n", encoding="cp1252", errors="replace")  # type: ignore[no-untyped-call]
    # RTF writes characters beyond 16 bits as two surrogates; a lone one is no text and cannot be stored.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    lines = text.replace("\r", "\n").replace("\xad", "").split("\n")
    return "\n".join(line.strip(" ").removesuffix("|") for line in lines).strip()


def _known_code_page(found: re.Match[str]) -> str:
    try:
        codecs.lookup(f"cp{found.group(1)}")
    except LookupError:
        return "\\ansicpg1252"
    return found.group()
