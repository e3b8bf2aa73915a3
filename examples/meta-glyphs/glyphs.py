"""Letters of matplotlib's own fonts as small pictures: classes for few-shot learning without a download."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

SIZE = 28
FACES = 10  # a letter that fewer faces have is left out
_GRID = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5), -1).reshape(-1, 2)


def glyphs(letters: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [R, 1, 28, 28], ink 255 on 0, of the first `letters` that ten faces have, and each one's letter [R]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = defaultdict(list)
    for path in sorted(folder.glob("*.ttf")):
        if not path.stem.startswith(("LastResort", "cmsy", "cmex", "STIXSiz")):
            for code in FT2Font(str(path)).get_charmap():
                if chr(code).isalpha():
                    faces[chr(code)].append(path)
    chosen = [letter for letter in sorted(faces) if len(faces[letter]) >= FACES][:letters]
    pictures = [(letter, _picture(letter, path)) for letter in chosen for path in faces[letter][:FACES]]
    return np.stack([picture for _, picture in pictures])[:, None], np.array([letter for letter, _ in pictures])


def _picture(letter: str, font: Path) -> np.ndarray:
    """The letter, filling the picture but for its margin."""
    outline = TextPath((0, 0), letter, size=SIZE, prop=FontProperties(fname=font))
    low, high = outline.vertices.min(0), outline.vertices.max(0)
    scale = (SIZE - 6) / max(*(high - low), 1e-6)
    vertices = (outline.vertices - (low + high) / 2) * scale + SIZE / 2
    inside = np.zeros(len(_GRID), dtype=bool)
    for polygon in Outline(vertices, outline.codes).to_polygons():
        # Holes are drawn as outlines of their own: what is within an odd number of them is ink.
        inside ^= Outline(polygon).contains_points(_GRID)
    return (255 * inside.reshape(SIZE, SIZE)[::-1]).astype(np.uint8)
