"""Files that strangers bring, in the process that takes them in: what each is, or one sentence that says why not."""

import bz2
import io
import json
import lzma
import stat
import struct
import zipfile

import pytest

from inspector.intake import Refusal
from inspector.intake.__main__ import take_in

ROW = '{"messages": []}\n'
MIB = 1 << 20


def take(tmp_path, name, content, most_bytes=MIB, most_files=50):
    folder = tmp_path / "data"
    folder.mkdir()
    file = tmp_path / name if name.endswith(".zip") else folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    task = {"file": str(file), "name": name, "folder": str(folder), "bytes": most_bytes, "files": most_files}
    return take_in(task)


def pack(*entries, method=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, text) pairs, as bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, text in entries:
            archive.writestr(name, text)
    return buffer.getvalue()


def rename(data, old, new):
    """Another name of the same length in both places where a zip has it."""
    assert len(old) == len(new)
    assert data.count(old) == 2
    return data.replace(old, new)


def marked(name, mode, flags=0):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.flag_bits |= flags
    return entry


def damaged(method):
    data = pack(("a.jsonl", ROW * 400), method=method)
    start = 30 + len("a.jsonl")
    return data[: start + 12] + b"\xff" * 20 + data[start + 32 :]


def encrypted():
    data = bytearray(pack(("a.jsonl", ROW)))
    data[6] |= 1
    data[data.rfind(b"PK\1\2") + 8] |= 1
    return bytes(data)


def method(number):
    data = bytearray(pack(("a.jsonl", ROW)))
    data[8:10] = struct.pack("<H", number)
    at = data.rfind(b"PK\1\2") + 10
    data[at : at + 2] = struct.pack("<H", number)
    return bytes(data)


def not_utf8():
    data = pack(("é.jsonl", ROW))  # its flag says UTF-8
    return rename(data, "é".encode(), b"\xff\xfe")


def later():
    """An archive that wants a program of the future."""
    data = bytearray(pack(("a.jsonl", ROW)))
    data[data.rfind(b"PK\1\2") + 6] = 255
    return bytes(data)


def many(count):
    """An archive whose end claims ``count`` entries."""
    data = bytearray(pack(("a.jsonl", ROW)))
    at = data.rfind(b"PK\5\6")
    data[at + 8 : at + 12] = struct.pack("<HH", count, count)
    return bytes(data)


def many_zip64(count, size=None, start=None):
    data = pack(("a.jsonl", ROW))
    at = data.rfind(b"PK\5\6")
    true_size, true_start = struct.unpack_from("<LL", data, at + 12)
    size, start = size or true_size, start or true_start
    end64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:at] + end64 + locator + end


def overlapping():
    """Thirty entries that are all the same compressed bytes."""
    data = pack(("a.jsonl", "x" * 20_000), method=zipfile.ZIP_STORED)
    at = data.rfind(b"PK\1\2")
    end = data.rfind(b"PK\5\6")
    central = b"".join(data[at:end].replace(b"a.jsonl", b"a%02d.jsn" % number) for number in range(30))
    return data[:at] + central + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 30, 30, len(central), at, 0)


def short_claim():
    """An entry that says it has 10 bytes and has two million."""
    data = bytearray(pack(("a.jsonl", "x" * 2 * MIB)))
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", 10)
    return bytes(data)


BAD_ZIPS = {
    "empty": (b"", "no readable zip"),
    "words": (b"PK no", "no readable zip"),
    "cut": (pack(("a.jsonl", ROW * 99))[:-40], "no readable zip"),
    "nothing in it": (pack(), "neither a table"),
    "only text": (pack(("readme.txt", "x")), "neither a table"),
    "only hidden": (pack((".a.jsonl", ROW), ("__MACOSX/b.jsonl", ROW)), "neither a table"),
    "two tables": (pack(("a.jsonl", ROW), ("b.csv", "a")), r"several tables \(a.jsonl, b.csv\)"),
    "name .": (pack((".", ROW)), "no file name"),
    "name with zero first": (rename(pack(("abcd.jsonl", ROW)), b"abcd.jsonl", b"\0bcd.jsonl"), "no file name"),
    "name with zero inside": (rename(pack(("abcdef.png", ROW)), b"abcdef.png", b"a.json\0png"), "can't be shown"),
    "name .. ": (pack(("../a.jsonl", ROW)), "leaves the archive"),
    "name a/../..": (pack(("a/../../a.jsonl", ROW)), "leaves the archive"),
    "name \\..": (pack(("..\\a.jsonl", ROW)), "leaves the archive"),
    "absolute": (pack(("/a.jsonl", ROW)), "leaves the archive"),
    "drive": (pack(("C:/a.jsonl", ROW)), "leaves the archive"),
    "long name": (pack(("a" * 5000 + ".jsonl", ROW)), "a name of 5,006 letters"),
    "long in bytes": (pack(("é" * 200 + ".jsonl", ROW)), "at most 255 bytes"),
    "deep": (pack(("a/" * 2000 + "a.jsonl", ROW)), "2,000 folders; at most 15"),
    "control letters": (pack(("a\n\x1b.jsonl", ROW)), "letters"),
    "not UTF-8": (not_utf8(), "not UTF-8"),
    "link": (pack((marked("a.jsonl", stat.S_IFLNK | 0o777), "/etc/passwd")), "the link “a.jsonl”"),
    "device": (pack((marked("a.jsonl", stat.S_IFCHR | 0o666), "")), "a device"),
    "fifo": (pack((marked("a.jsonl", stat.S_IFIFO | 0o666), "")), "a device"),
    "encrypted": (encrypted(), "encrypted"),
    "file and folder": (pack(("a", "x"), ("a/b.jsonl", ROW)), "folder"),
    "folder and file": (pack(("a/b.jsonl", ROW), ("a", "x")), "folder"),
    "corrupt deflate": (damaged(zipfile.ZIP_DEFLATED), "“a.jsonl” is damaged"),
    "corrupt bz2": (damaged(zipfile.ZIP_BZIP2), "“a.jsonl” is damaged"),
    "corrupt lzma": (damaged(zipfile.ZIP_LZMA), "“a.jsonl” is damaged"),
    "unknown method": (method(97), "packed"),
    "deflate64": (method(9), "packed"),
    "too many entries": (many(60_000), "60,000 .* 50 "),
    "a million entries": (many_zip64(1_000_000), "1,000,000 .* 50 "),
    "too many files": (pack(*((f"{n}.txt", "") for n in range(51))), "51 files.* 50"),
    "too many folders": (pack(*(("/".join(f"{n}{d}" for d in "abcdefgh"), "") for n in range(20))), "50 folders"),
    "zip64 lies about the place": (many_zip64(1, start=1 << 62), "no readable zip"),
    "zip64 lies about the size": (many_zip64(1, size=1 << 62), "entries.* 50 files"),
    "zip64 lies a little": (many_zip64(1, size=90), "no readable zip"),
    "bomb": (pack(("a.jsonl", "x" * 2 * MIB)), "more than 1 MiB"),
    "bomb in parts": (pack(*((f"{n}.txt", "x" * 200_000) for n in range(8))), "more than 1 MiB"),
    "overlapping": (overlapping(), "over one another"),
    "short claim": (short_claim(), "damaged"),
    "of a later version": (later(), "no readable zip"),
    "junk behind": (pack(("a.jsonl", ROW)) + b"x" * 70_000, "no readable zip"),
    "nested zip": (pack(("b.jsonl", ROW), ("a.zip", pack(("a.jsonl", ROW)))), "holds the archive “a.zip”"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_ZIPS.values(), ids=BAD_ZIPS.keys())
def test_a_bad_zip_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(Refusal, match=sentence) as refused:
        take(tmp_path, "up.zip", content)
    assert str(refused.value).count("\n") == 0
    assert len(str(refused.value)) < 300
    assert str(tmp_path) not in str(refused.value)


def test_the_same_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = pack(("a.jsonl", ROW), ("a.jsonl", ROW))
    with pytest.raises(Refusal, match=r"a\.jsonl"):
        take(tmp_path, "up.zip", content)


GOOD_ZIPS = {
    "plain": (pack(("a.jsonl", ROW)), "a.jsonl", "chat"),
    "in a folder": (pack(("set/", ""), ("set/a.jsonl", ROW), ("set/p/a.png", "x")), "set/a.jsonl", "chat"),
    "junk before": (b"#!/bin/sh\n" + pack(("a.jsonl", ROW)), "a.jsonl", "chat"),
    "stored": (pack(("a.jsonl", ROW), method=zipfile.ZIP_STORED), "a.jsonl", "chat"),
    "bz2": (pack(("a.jsonl", ROW), method=zipfile.ZIP_BZIP2), "a.jsonl", "chat"),
    "lzma": (pack(("a.jsonl", ROW), method=zipfile.ZIP_LZMA), "a.jsonl", "chat"),
    "brackets": (pack(("[a]*.parquet", b"PAR1" + bytes(20) + b"PAR1")), "[a]*.parquet", "rows"),
    "pictures in folders": (pack(("p/a/1.png", "x"), ("p/b/2.png", "x")), "p", "captions"),
    "mac": (pack(("a.jsonl", ROW), ("__MACOSX/._a.jsonl", "x"), (".DS_Store", "x")), "a.jsonl", "chat"),
}


@pytest.mark.parametrize(("content", "path", "source"), GOOD_ZIPS.values(), ids=GOOD_ZIPS.keys())
def test_a_good_zip(tmp_path, content, path, source):
    assert take(tmp_path, "up.zip", content) == {"path": path, "source": source}


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
BAD_FILES = {
    "empty": ("a.jsonl", b"", "is empty"),
    "empty csv": ("a.csv", b"", "is empty"),
    "empty parquet": ("a.parquet", b"", "is empty"),
    "blank lines": ("a.jsonl", "\n \n\t\n", "holds no rows"),
    "no rows": ("a.json", "[]", "holds no rows"),
    "numbers": ("a.json", "[1, 2]", "holds no rows"),
    "null": ("a.jsonl", "null\n", "holds no rows"),
    "object": ("a.json", ROW, "does not begin with"),
    "a list per line": ("a.jsonl", "[" + ROW.strip() + "]\n", r"\.json"),
    "foreign keys": ("a.jsonl", '{"foo": 1, "bar": {"messages": 2}}', "the keys foo, bar;"),
    "no keys": ("a.jsonl", "{}\n", "the keys none"),
    "cut": ("a.jsonl", '{"messages": [', "JSON"),
    "cut list": ("a.json", '[{"messages": "', "JSON"),
    "keys that are no text": ("a.jsonl", '{messages: "a"}', "JSON"),
    "no colon": ("a.jsonl", '{"messages" "a"}', "JSON"),
    "deep": ("a.jsonl", DEEP, "nested too deeply"),
    "deep list": ("a.json", f"[{DEEP}]", "nested too deeply"),
    "huge row": ("a.jsonl", '{"a": "' + "x" * (5 * MIB) + '", "messages": []}', "4 MiB"),
    "huge list": ("a.json", '[{"a": [' + "1," * (3 * MIB) + "1]}]", "4 MiB"),
    "half a pair in a key": ("a.jsonl", r'{"\ud800": 1}', "the keys �;"),
    "markup in a key": ("a.jsonl", json.dumps({"<img src=x>" * 90: 1}), "the keys <img src=x><img"),
    "UTF-16": ("a.jsonl", ROW.encode("utf-16"), "UTF-16"),
    "UTF-16 csv": ("a.csv", "a,b\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ("a.csv", "a,b\n".encode("utf-16-le"), "zero bytes"),
    "UTF-32": ("a.json", ROW.encode("utf-32"), "UTF-16 or UTF-32"),
    "Latin-1": ("a.jsonl", '{"messages": "é"}'.encode("latin-1"), r"no UTF-8 text \(byte 14\)"),
    "gzip": ("a.json", b"\x1f\x8b\x08\0rest", "a gzip file"),
    "bzip2": ("a.jsonl", bz2.compress(b"x"), "a bzip2 file"),
    "xz": ("a.jsonl", lzma.compress(b"x"), "a xz file"),
    "zip": ("a.csv", pack(("a", "b")), "a zip file"),
    "parquet as csv": ("a.csv", b"PAR1....PAR1", "a parquet file"),
    "words as parquet": ("a.parquet", b"these are words", "whole parquet"),
    "cut parquet": ("a.parquet", b"PAR1" + bytes(40), "whole parquet"),
    "encrypted parquet": ("a.parquet", b"PARE" + bytes(40) + b"PARE", "encrypted"),
    "zero bytes": ("a.csv", b"a,b\n\0,1\n", "zero bytes"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_sentence(tmp_path, name, content, sentence):
    with pytest.raises(Refusal, match=sentence) as refused:
        take(tmp_path, name, content)
    refused.value.args[0].encode("utf-8")
    assert len(str(refused.value)) < 600
    assert str(tmp_path) not in str(refused.value)


GOOD_FILES = {
    "llava": ("a.json", '[{"id": 1, "conversations": []}]', "llava"),
    "chat": ("a.jsonl", ROW, "chat"),
    "rows": ("a.jsonl", '{"texts": []}', "rows"),
    "captions": ("a.jsonl", '{"caption": ""}', "captions"),
    "csv": ("a.csv", "file_name,text\n", "captions"),
    "mark": ("a.jsonl", b"\xef\xbb\xbf" + ROW.encode(), "chat"),
    "blank lines first": ("a.jsonl", "\n\n  " + ROW, "chat"),
    "windows": ("a.jsonl", ROW.replace("\n", "\r\n"), "chat"),
    "spread": ("a.json", '\n[\n {\n  "a": {"b": [1, "}"]},\n  "messages": [] }, nonsense', "chat"),
    "escapes": ("a.jsonl", '{"a": "\\"}", "\\u006dessages": 1}', "chat"),
    "a large picture first": ("a.jsonl", '{"image": "' + "x" * MIB + '", "conversations": []}\n', "llava"),
    "letters cut by the prefix": ("a.json", '[{"messages": "' + "é" * 40_000 + '"}]', "chat"),
    "long numbers": ("a.jsonl", '{"a": ' + "9" * 6000 + ', "b": NaN, "messages": []}', "chat"),
    "cut by the prefix": ("a.json", '[{"messages": [' + "1," * (3 * MIB), "chat"),
}


@pytest.mark.parametrize(("name", "content", "source"), GOOD_FILES.values(), ids=GOOD_FILES.keys())
def test_formats_are_told_by_their_first_keys(tmp_path, name, content, source):
    assert take(tmp_path, name, content) == {"path": name, "source": source}
