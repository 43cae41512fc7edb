"""What packages are calibrated and compared on: built-in texts and drawn pictures, or the user's own files.

Needs no network. Contents go through the deployment's own prompts, so what is measured is what the model will see.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from runtime.errors import InputError
from runtime.json_lines import as_item, numbered_json_lines
from runtime.search.documents import MEDIA_KEYS, located

TEXT_SUFFIXES, IMAGE_SUFFIXES, ITEMS_SUFFIX = (".txt", ".md"), (".png", ".jpg", ".jpeg", ".webp"), ".jsonl"
PICTURE_SIZES = ((512, 512), (640, 384), (256, 480), (320, 320))
SENTENCES = (
    "The last train leaves at ten past eleven, so please be at the station a little earlier.",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht drei Monate vorher gekündigt wird.",
    "Où se trouve la pharmacie la plus proche qui soit ouverte le dimanche matin ?",
    "El informe compara los precios del aceite de oliva en cuatro provincias desde 2019.",
    "O barco atravessa o rio duas vezes por dia, exceto quando há nevoeiro.",
    "Если сервер не отвечает, проверьте кабель и перезапустите маршрутизатор.",
    "请把发票扫描件和合同一起发送到财务部门，金额为 3,480.50 元。",
    "この商品は在庫切れのため、発送は来週の水曜日になります。",
    "버스 정류장 옆에 있는 작은 빵집은 새벽 여섯 시에 문을 엽니다.",
    "يبدأ المعرض يوم الخميس ويستمر حتى نهاية الشهر في قاعة المدينة القديمة.",
    "बारिश के कारण आज का मैच दो घंटे देर से शुरू होगा।",
    "Toplantı notlarını akşama kadar paylaşırsanız yarın birlikte gözden geçirebiliriz.",
)
LONG = (
    "Installing the pump takes about an hour. Close the main valve first and let the water run into a bucket. "
    "Unscrew the four bolts of the old pump, note which cable sits where, and clean the seat of the gasket with a soft "
    "cloth. Put the new gasket in dry; grease makes it slip. Tighten the bolts crosswise to 12 Nm, connect the cables, "
    "open the valve slowly and watch the joint for five minutes. If it drips, tighten by a quarter turn. A pump that "
    "hums without turning is usually blocked: switch it off at once, because the winding overheats within minutes.",
    "| quarter | revenue | costs | margin |\n| --- | --- | --- | --- |\n| Q1 2023 | 1,204,300 | 988,112 | 17.9 % |\n"
    "| Q2 2023 | 1,310,870 | 1,002,654 | 23.5 % |\n| Q3 2023 | 1,187,020 | 1,011,400 | 14.8 % |\n\nThe third quarter "
    "suffered from the strike at the port; two shipments worth 96,000 were booked in October. Management expects the "
    "margin to return to 20 % by the end of the year, provided that energy prices stay below the level of last winter.",
    "def moving_average(values, width):\n    if width < 1 or width > len(values):\n        raise ValueError(width)\n"
    "    total = sum(values[:width])\n    result = [total / width]\n    for new, old in zip(values[width:], values):\n"
    "        total += new - old\n        result.append(total / width)\n    return result\n\n# 404 Not Found\n"
    'https://example.org/search?q=red+shoes&page=2\n{"id": 17, "tags": ["new", "sale"], "price": 59.90}',
)
QUERY = "Which of these belongs to the order of last week?"
SHORT = ("red shoes", "invoice 2024", "猫", "how to boil eggs", "SELECT name FROM users WHERE id = 7;")


def builtin_items() -> list[dict[str, Any]]:
    """Short and long texts in several languages, drawn pictures, and mixtures, the same at every call."""
    items: list[dict[str, Any]] = [{"text": text} for text in (*SHORT, *SENTENCES)]
    items += [{"text": text} for text in (*LONG, "\n".join(SENTENCES[::-1]), "\n\n".join(LONG))]
    pictures = [draw(size) for draw, size in zip(_DRAWINGS, PICTURE_SIZES, strict=True)]
    items += [{"image": picture} for picture in pictures[:-1]]
    items.append({"image": pictures[-1], "text": SENTENCES[0]})
    return items


def items_from(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The user's own samples with the places they are from: .txt, .md, .png, .jpg, .jpeg, .webp, and .jsonl.

    A line is a text or a dict as `process` takes it, whose paths start at the file's folder. Hidden files are left out.
    Raises InputError.
    """
    if not folder.is_dir():
        raise InputError(
            f"--calibrate {folder} is not a folder; pass one with .txt, .png, .jpg or .jsonl files, or none."
        )
    # macOS puts ._a.png beside a.png, where a disk has no place for what it notes of a file.
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    items = [item for path in paths for item in _items_of(path)]
    if not items:
        raise InputError(
            f"--calibrate {folder} holds no sample; put .txt, .md, .png, .jpg, .jpeg, .webp or .jsonl files there."
        )
    return items


def _items_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        yield str(path), {"image": str(path)}
    elif suffix in TEXT_SUFFIXES:
        try:
            yield str(path), {"text": path.read_text(encoding="utf-8-sig")}  # Windows' tools put a byte order mark
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be used for calibration ({error}); correct it or take it out.") from error
    elif suffix == ITEMS_SUFFIX:
        for number, value in numbered_json_lines(str(path)):
            where = f"{path}, line {number}"
            item = as_item(value, where)
            media = {key: located(item[key], str(path.parent)) for key in MEDIA_KEYS if key in item}
            yield where, {**item, **media}


def _shapes(size: tuple[int, int]) -> Image.Image:
    """Discs and boxes over a gradient."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(picture)
    width, height = size
    for index in range(12):
        x, y = index * 97 % width, index * 61 % height
        colour = (index * 83 % 256, index * 47 % 256, index * 131 % 256)
        (draw.ellipse if index % 2 else draw.rectangle)([x, y, x + 60 + 5 * index, y + 40 + 4 * index], fill=colour)
    return picture


def _screenshot(size: tuple[int, int]) -> Image.Image:
    """Lines of text under a title bar."""
    picture = Image.new("RGB", size, (248, 248, 250))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, size[0], 26], fill=(52, 73, 120))
    for row, sentence in enumerate(SENTENCES[:4] * 5):
        draw.text((12, 34 + 16 * row), f"{row:02d}  {sentence.encode('ascii', 'ignore').decode()}", fill=(30, 30, 30))
    return picture


def _landscape(size: tuple[int, int]) -> Image.Image:
    """Smooth hills with grain, closer to a photograph than to a drawing."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    hills = 0.5 * height + 0.15 * height * np.sin(columns / 45) + 0.08 * height * np.sin(columns / 17 + 2)
    sky = np.stack([120 + rows / 4, 160 + rows / 5, 220 - rows / 9], axis=-1)
    grass = np.stack([60 + columns / 12, 120 - rows / 8, 50 + rows / 12], axis=-1)
    grain = np.random.default_rng(7).normal(0, 9, (height, width, 3))
    pixels = np.where((rows > hills)[..., None], grass, sky) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_chart(size: tuple[int, int]) -> Image.Image:
    """A bar chart with an axis."""
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    width, height = size
    draw.line([30, 10, 30, height - 24, width - 10, height - 24], fill="black", width=2)
    for index, value in enumerate((0.3, 0.7, 0.45, 0.9, 0.6, 0.2)):
        left = 44 + index * (width - 60) // 6
        draw.rectangle([left, height - 24 - value * (height - 50), left + 28, height - 25], fill=(40 * index, 90, 180))
    return picture


_DRAWINGS = (_landscape, _screenshot, _shapes, draw_chart)
