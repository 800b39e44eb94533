"""HTML and RTF to text: what stays, what goes, and no input that raises or takes for ever."""

from __future__ import annotations

import html
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.notes.fhir.markup import html_charset, html_to_text, rtf_to_text

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=12
)


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<p>one</p>\n\n<p>two</p>", "one\n\ntwo"),
        ("<div><div>one</div></div><div>two</div>", "one\ntwo"),
        ("<b>Na</b> 140,\n   <i>K</i>\t4.1", "Na 140, K 4.1"),
        ("a&nbsp;&lt;&#51;&#x41;&eacute;&amp;amp;", "a\xa0<3Aé&amp;"),
        ("<table><tr><th>Lab</th><th>Value</th></tr><tr><td>Na</td><td>140</td></tr></table>", "Lab\tValue\nNa\t140"),
        ("<ul><li>one<li>two</ul>end", "- one\n- two\n\nend"),
        ("<pre>a  b\n  c</pre>", "a  b\nc"),
        ("<html><head><title>T</title></head><body>text</body></html>", "text"),
        ("<head><title>never closed<body>text", "text"),
        ("a<script>if (x < 1) { y('<b>') }</script>b<style>p { }</style>c", "abc"),
        ("a<!-- hidden <b> -->b<!DOCTYPE html><?xml version='1.0'?>c", "abc"),
        ("a<![if !supportLists]>b<![endif]>c<!--[if gte mso 9]><xml>x</xml><![endif]-->d", "abcd"),
        ("<![CDATA[1 < 2 & 3]]>", "1 < 2 & 3"),
        ('<p title="a > b">text</p>', "text"),
        ("Hb < 7 and Na <130, <not closed", "Hb < 7 and Na <130, <not closed"),
        ("<!-- never closed, BP 120/80", "<!-- never closed, BP 120/80"),
        ("<p>2 <= 3 & 4</P>", "2 <= 3 & 4"),
        ("", ""),
    ],
)
def test_html(given_: str, text: str) -> None:
    assert html_to_text(given_) == text


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (r"{\rtf1\ansi one\par two\line three}", "one\ntwo\nthree"),
        (
            r"{\rtf1\ansi{\fonttbl{\f0\fswiss Arial;}}{\colortbl;\red0\green0\blue0;}\f0\fs20 {\b bold} plain}",
            "bold plain",
        ),
        (r"{\rtf1\ansi\ansicpg1252 Fi\'e8vre \u8805?38\~C, 5\emdash 6}", "Fièvre ≥38\xa0C, 5—6"),
        (r"{\rtf1\ansi\ansicpg1251 \'e4\'e0}", "да"),
        (r"{\rtf1\ansi \u-10179?\u-8694?}", "\U0001f60a"),
        (r"{\rtf1\ansi \u-10179? alone}", "� alone"),
        (r"{\rtf1\trowd Na\cell 140\cell\row K\cell 4\cell\row}", "Na|140\nK|4"),
        (r"{\rtf1{\info{\title hidden}}{\*\generator hidden}{\header hidden}shown}", "shown"),
        (r'{\rtf1 see {\field{\*\fldinst{HYPERLINK "http://x"}}{\fldrslt the letter}}}', "see the letter"),
        (r"{\rtf1 braces \{ \} and \\}", "braces { } and \\"),
        (r"{\rtf1 cut off in the middle \'e9", "cut off in the middle é"),
        (r"{\rtf1\u9999999999?\uc x\bin y\ansicpg77777 z}", "�xyz"),
        ("plain text", "plain text"),
        ("", ""),
    ],
)
def test_rtf(given_: str, text: str) -> None:
    assert rtf_to_text(given_) == text


def test_the_charset_of_html() -> None:
    assert html_charset(b'<html><meta http-equiv="x" content="text/html; charset=ISO-8859-15">') == "ISO-8859-15"
    assert html_charset(b"<META charset='utf-8'>") == "utf-8"
    assert html_charset(b"<p>charset=none</p>") is None


@given(st.lists(WORDS, min_size=1), st.sampled_from(["p", "div", "td", "li", "b", "unknown"]))
def test_every_word_of_html_survives(words: list[str], tag: str) -> None:
    text = html_to_text("".join(f"<{tag} class='x'>{html.escape(word)}</{tag}> " for word in words))
    place = 0
    for word in words:
        place = text.index(word, place) + len(word)


@given(st.lists(WORDS, min_size=1))
def test_every_word_of_rtf_survives(words: list[str]) -> None:
    def written(word: str) -> str:
        units = word.encode("utf-16-le")
        numbers = [int.from_bytes(units[place : place + 2], "little", signed=True) for place in range(0, len(units), 2)]
        return "".join(f"\\u{number}?" for number in numbers)

    text = rtf_to_text(r"{\rtf1\ansi " + "".join(rf"{{\b {written(word)}}}\par " for word in words) + "}")
    place = 0
    for word in words:
        word = word.replace("\xad", "").removesuffix("|")  # soft hyphens go; a bar at the end of a line is a cell's
        place = text.index(word, place) + len(word)


HTML_PIECES = st.sampled_from(
    [
        "<",
        ">",
        "</",
        "/>",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<!",
        "<?",
        "&",
        "&#x",
        "&lt",
        "<script>",
        "<pre>",
        "</head>",
    ]
)
RTF_PIECES = st.sampled_from(
    [
        "\\",
        "{",
        "}",
        "\\'",
        "\\u",
        "\\uc",
        "\\bin",
        "\\pict",
        "\\f1",
        "\\fonttbl",
        "\\fcharset80 ",
        "\\ansicpg",
        "-99999",
    ]
)


@settings(max_examples=300)
@given(st.lists(HTML_PIECES | st.text(max_size=5)).map("".join))
def test_no_html_raises(markup: str) -> None:
    html_to_text(markup)


@settings(max_examples=300)
@given(st.lists(RTF_PIECES | st.text(max_size=5)).map("".join))
def test_no_rtf_raises(markup: str) -> None:
    rtf_to_text(markup).encode("utf-8")


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_raise(content: bytes) -> None:
    html_to_text(content.decode("utf-8", "replace"))
    html_charset(content)
    rtf_to_text("{\\rtf1 " + content.decode("cp1252", "replace")).encode("utf-8")


@pytest.mark.parametrize("piece", ["<!--", "<a b='", "</", "<![", "<a ", "&#", "<pre>", "<br>\n"])
def test_html_takes_time_linear_in_its_length(piece: str) -> None:
    began = time.process_time()
    html_to_text(piece * 50_000)
    assert time.process_time() - began < 3  # the standard library's parser takes minutes for some of them


@pytest.mark.parametrize(
    "piece", [r'{\field{\*\fldinst{HYPERLINK "a"', "\\'8", r"\f0\fcharset", r"\pict\bin5", "{", r"\u1"]
)
def test_rtf_takes_time_linear_in_its_length(piece: str) -> None:
    began = time.process_time()
    rtf_to_text("{\\rtf1 " + piece * 20_000)
    assert time.process_time() - began < 3  # 400 broken links take striprtf a second, 4,000 a quarter of an hour
