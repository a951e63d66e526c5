"""Text files as they come from people's machines: UTF-8 with or without a mark, UTF-16, Windows-1252."""

import codecs

MARKS = (  # UTF-32's begins with UTF-16's, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes) -> str:
    """The text in a file's bytes, line ends as they are. Raises ValueError for bytes that are no text.

    A byte-order mark decides; then UTF-8, which other encodings hardly ever are by accident; then UTF-16
    without a mark, where every other byte is zero; then Windows-1252, which Notepad called ANSI.
    """
    text = _decoded(data)
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        raise ValueError("bytes that are no text")
    return text


def _decoded(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    zeros = (data[0::2].count(0), data[1::2].count(0))
    if max(zeros) * 4 > len(data) and len(data) % 2 == 0:
        return data.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")
