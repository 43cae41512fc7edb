"""What packages are calibrated on: the same every time without a network, or a folder's files, bad ones named."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quant.samples import builtin_items, items_from
from runtime.errors import InputError


def pixels(item: dict[str, object]) -> np.ndarray:
    picture = item["image"]
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    return np.asarray(picture)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        items_from(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_built_in_samples_are_the_same_every_time_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("calibration samples opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    one, other = builtin_items(), builtin_items()
    assert [each.get("text") for each in one] == [each.get("text") for each in other]
    pictures = [(pixels(a), pixels(b)) for a, b in zip(one, other, strict=True) if "image" in a]
    assert len(pictures) == 4 and all((a == b).all() for a, b in pictures)
    assert len({a.shape for a, _ in pictures}) == 4 and all(a.std() > 10 for a, _ in pictures)


def test_built_in_samples_are_of_every_kind() -> None:
    items = builtin_items()
    texts = [each["text"] for each in items if "image" not in each]
    assert len(texts) == len(set(texts)) > 20
    assert min(map(len, texts)) < 5 and max(map(len, texts)) > 1000
    written = "".join(texts)
    for alphabet in ("a", "ш", "の", "请", "버", "ي", "ह", "|", "{"):
        assert alphabet in written
    assert any("image" in each and "text" in each for each in items)


def test_a_folder_of_every_kind_of_file_in_order_of_names(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "b.PNG")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "c.jpg")
    (tmp_path / "a.txt").write_text("größer\nzweite Zeile", encoding="utf-8")
    (tmp_path / "d.md").write_text("# Title", encoding="utf-8")
    lines = [{"text": "one", "instruction": "Find it"}, {"image": "b.PNG", "text": "with\u2028it"}, "a text"]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "e.jsonl").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "notes.csv").write_text("left, out")
    (tmp_path / "folder").mkdir()
    pictures = [{"image": str(tmp_path / name)} for name in ("b.PNG", "c.jpg")]
    # Paths in a line start at its file, as those of an indexed folder do.
    expected = [lines[0], {"image": tmp_path / "b.PNG", "text": "with\u2028it"}, {"text": "a text"}]
    found = items_from(tmp_path)
    assert [item for _, item in found] == [
        *({"text": "größer\nzweite Zeile"}, *pictures, {"text": "# Title"}, *expected)
    ]
    assert [place for place, _ in found] == [
        *(str(tmp_path / name) for name in ("a.txt", "b.PNG", "c.jpg", "d.md")),
        *(f"{tmp_path / 'e.jsonl'}, line {number}" for number in (1, 3, 5)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("latin.txt", "größer".encode("latin-1"), " cannot be used for calibration ('utf-8"),
        ("cut.jsonl", b'{"text": "a"}\n{"text": ', ", line 2: not JSON (Expecting value"),
        ("list.jsonl", b'["a"]', ", line 1 is neither a text nor a dict; write"),
        ("latin.jsonl", '"größer"'.encode("latin-1"), " is not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / name}{reason}")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Windows' tools put one before UTF-8."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "line"}\r\n')
    assert [item for _, item in items_from(tmp_path)] == [{"text": "text"}, {"text": "line"}]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'a.txt'} cannot be used for calibration (")


def test_no_folder_and_nothing_in_it(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing").startswith(f"--calibrate {tmp_path / 'missing'} is not a folder; pass one")
    (tmp_path / "a.csv").write_text("left, out")
    assert refusal(tmp_path / "a.csv").startswith(f"--calibrate {tmp_path / 'a.csv'} is not a folder; pass one")
    (tmp_path / "a.jsonl").touch()
    assert refusal(tmp_path).startswith(f"--calibrate {tmp_path} holds no sample; put .txt")
