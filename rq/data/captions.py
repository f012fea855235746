# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads captions from text files and tables in any common encoding.

The captions of an image are stored as one text, one caption a line. Only line feeds
and carriage returns end a line: U+2028, U+0085 and the like are part of a caption.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import pathlib
import re
import sys
from collections.abc import Iterator

from rq.data import DataError

_MARKS = (  # byte-order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DELIMITERS = ",;\t|"
csv.field_size_limit(sys.maxsize)  # the default is 131,072 characters


def decode_text(content: bytes) -> tuple[str, str]:
    """Returns the decoded text and its encoding.

    The byte-order mark decides. Without one it is UTF-16 if there are zero bytes, UTF-8
    if it decodes, else cp1252, which Windows programs write in Europe and America.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace"), encoding
    if b"\0" in content:
        big_endian = content[::2].count(0) > content[1::2].count(0)
        encoding = "utf-16-be" if big_endian else "utf-16-le"
        return content.decode(encoding, "replace"), encoding
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), "cp1252"


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text, split at \\n, \\r and \\r\\n only."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def caption_lines(text: str) -> list[str]:
    """Returns the captions in a text, one a line, without blank lines."""
    return [stripped for line in split_lines(text) if (stripped := line.strip())]


def one_line(caption: str) -> str:
    """Returns a caption as one line that can be encoded as UTF-8."""
    caption = re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", caption.strip())
    return caption.encode("utf-8", "replace").decode("utf-8")


def json_captions(text: str) -> list[str]:
    """Returns the captions in the field `caption` (string or list) of a JSON object.

    Raises:
      ValueError: if the text is not a JSON object.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    found = found.get("caption")
    found = found if isinstance(found, list) else [found]
    lines = [one_line(caption) for caption in found if isinstance(caption, str)]
    return [line for line in lines if line]


def read_csv(path: pathlib.Path) -> tuple[list[tuple[str, str]], str]:
    """Reads the columns `file` and `caption` of a table.

    Columns are separated by commas, semicolons, tabs or bars. The delimiter is taken
    from the first line, which names the columns.

    Returns:
      (file, caption) of each row, and the encoding of the table.

    Raises:
      DataError: if the columns are missing or a quote is never closed.
    """
    text, encoding = decode_text(path.read_bytes())
    if separator := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # Excel's
        text = text[separator.end() :]
    delimiter, file, caption = _columns(path, text)
    rows = []
    for number, row in _rows(path, text, delimiter):
        if number > 1 and len(row) > max(file, caption):
            rows.append((row[file].strip(), one_line(row[caption])))
        elif number > 1 and row:
            raise DataError(
                f"{path}, row {number} has {len(row)} columns: it needs a file and a "
                "caption, in quotes where they contain the separator"
            )
    return rows, encoding


def _columns(path, text) -> tuple[str, int, int]:
    """Returns the delimiter and the indices of the two columns."""
    header = split_lines(text[: 1 << 16])[:1] or [""]
    for delimiter in _DELIMITERS:
        try:
            row = next(csv.reader(header, delimiter=delimiter), [])
        except csv.Error:
            continue
        names = [name.strip().lower() for name in row]
        if "file" in names and "caption" in names:
            return delimiter, names.index("file"), names.index("caption")
    raise DataError(
        f"{path} needs the columns file and caption in its first line, which is "
        f"{header[0][:60]!r}"
    )


def _rows(path, text, delimiter) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from enumerate(reader, 1)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; a quote within quotes is "
            "written twice"
        ) from error


def read_tsv(path: pathlib.Path) -> tuple[list[tuple[str, str]], str]:
    """Reads a table with a file, a tab and a caption on each line.

    Quotes are literal, as in the table of Conceptual Captions, unless the whole table
    is quoted in the style of spreadsheets. A header `file`, `caption` is skipped.

    Returns:
      (file, caption) of each row, and the encoding of the table.

    Raises:
      DataError: if a line has no tab.
    """
    text, encoding = decode_text(path.read_bytes())
    rows = _quoted(text) or [
        (number, line.split("\t", 1))
        for number, line in enumerate(split_lines(text), 1)
    ]
    found = []
    for number, row in rows:
        if len(row) < 2:
            if not "".join(row).strip():
                continue
            raise DataError(f"{path}, line {number}: no tab after the file")
        found.append((row[0].strip(), one_line("\t".join(row[1:]))))
    if found and [name.lower() for name in found[0]] == ["file", "caption"]:
        del found[0]
    return found, encoding


def _quoted(text) -> list[tuple[int, list[str]]] | None:
    """Returns the rows of a table with quoted fields; None if quotes are literal."""
    if '\t"' not in text:
        return None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    rows = []
    try:
        for row in reader:
            # A quote that spans a tab and a line break is literal.
            if any("\n" in field and "\t" in field for field in row):
                return None
            rows.append((reader.line_num, row))
    except csv.Error:
        return None
    return rows
