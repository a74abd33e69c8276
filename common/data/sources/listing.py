"""Lists a folder of data, finds files by names that other programs wrote, and reports what was read and left out.

Hidden files and what operating systems leave behind never count as data. Links to folders are followed.
"""

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from common.errors import UserError, listed

WINDOWS_NAMES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler"}
OTHER_SYSTEM_NAMES = {"__macosx", "icon\r", "@eadir", "#recycle", "lost+found", "__pycache__"}
SYSTEM_NAMES = WINDOWS_NAMES | OTHER_SYSTEM_NAMES | {"system volume information"}
# downloads and copies that were not completed
UNFINISHED = (".partial", ".part", ".crdownload", ".download", ".tmp", ".temp", "~")
# Pillow knows the name, but has no decoder, or calls a program
NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "FITS", "WMF", "EPS", "MPEG", "IPTC", "GBR", "PIXAR"}
# picture kinds that Pillow reads through these
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
COMMON_KINDS = ".png, .jpg, .webp, .bmp, .gif, .tiff"  # for messages; suffixes() has them all


@cache
def suffixes() -> frozenset[str]:
    """Suffixes, in small letters, of the kinds of pictures that the installed Pillow and its plugins open."""
    from PIL import Image

    for plugin in ("pillow_heif.HeifImagePlugin", "pillow_jxl"):  # they register themselves when they are imported
        with suppress(ImportError):
            __import__(plugin)
    Image.init()
    return frozenset(suffix.lower() for suffix, kind in Image.registered_extensions().items() if kind in formats())


@cache
def formats() -> tuple[str, ...]:
    """Names of the formats that Image.open may try."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in NOT_PICTURES)


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    return suffix_of(name) in suffixes()


# ------------------------------------------------------------------------------------------------------------- listing


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    files  every file that is not hidden, relative to the folder, "/" between its parts, in one order on all file
           systems
    links  links that were not followed: what they point to is missing, or is listed already
    """

    folder: Path
    files: tuple[str, ...]
    links: tuple[str, ...] = ()

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if is_picture(name))

    def with_suffix(self, *wanted: str) -> tuple[str, ...]:
        return tuple(name for name in self.files if suffix_of(name) in wanted)

    def paths(self, names: Iterable[str]) -> list[Path]:
        return [self.folder / name for name in names]

    def holds(self, used: Iterable[str] = ()) -> Counter:
        """How many files there are of each kind besides those that are used."""
        return kinds(set(self.files) - set(used)) + Counter({"links that lead nowhere new": len(self.links)})


def list_folder(folder: Path) -> Listing:
    """All files below the folder. Links to folders are followed;
    each real folder is listed once, so that circles end.
    """
    files: list[str] = []
    broken: list[str] = []
    waiting: list[tuple[str, str]] = [(str(folder), "")]  # folders, and how the names of their files begin
    links: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        if not waiting:  # links come after all real folders, so that these keep their own names
            waiting, links = sorted(links, key=lambda link: order(link[1]), reverse=True), []
        place, prefix = waiting.pop()
        try:
            stat = os.stat(place)
            if (stat.st_dev, stat.st_ino) in seen:
                broken.append(prefix.rstrip("/"))
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        (links if entry.is_symlink() else waiting).append((entry.path, name + "/"))
                    elif entry.is_symlink() and not entry.is_file():
                        broken.append(name)
                    else:
                        files.append(name)
        except OSError as problem:
            raise UserError(f"the folder {place} cannot be listed ({problem.strerror or problem})") from problem
    return Listing(folder, tuple(sorted(files, key=order)), tuple(broken))


def is_hidden(name: str) -> bool:
    low = name.lower()
    return low.startswith((".", "~$")) or low in SYSTEM_NAMES or low.endswith(UNFINISHED)


def order(name: str) -> list[str]:
    """The key that files are sorted by: folder by folder, and composed letters as one,
    however the file system writes them.
    """
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).split("/")


def kinds(names: Iterable[str]) -> Counter:
    """Files by suffix, with a reason where there is one: {".heic: needs pillow-heif": 3, ".md": 1}."""
    found = sorted(map(suffix_of, names))
    return Counter(f"{s}: needs {PLUGINS[s]}" if s in PLUGINS else s or "without a suffix" for s in found)


def described(counts: Counter) -> str:
    """{".heic: needs pillow-heif": 3, ".md": 1} -> "3 .heic: needs pillow-heif, 1 .md" """
    return listed([f"{n} {kind}" for kind, n in counts.items() if n], 6)


# --------------------------------------------------------------------------------------------------------------- names


class Outside(ValueError):
    """A name that does not lie in the folder."""


class Names:
    """Finds the files of a folder by names written elsewhere, where they may look different.

    Tried in this order: as it is written; with "/" between folders and without "./"; with any letter case, Unicode
    form and blanks at its ends; with %20 and the like decoded; without the name of the folder itself; by the end of
    its path; without its suffix. The last five only where one file fits.
    """

    def __init__(self, files: Sequence[str], folder: str = ""):
        self.files, self.folder = files, folder
        self.exact = set(files)

    @cached_property
    def loose(self) -> dict[str, list[str]]:
        return grouped((plain(name), name) for name in self.files)

    @cached_property
    def endings(self) -> dict[str, list[str]]:
        return grouped((plain(name).rsplit("/", 1)[-1], name) for name in self.files)

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        return grouped((os.path.splitext(key)[0], name) for key, names in self.endings.items() for name in names)

    def find(self, written: str, base: str = "") -> str | None:
        """The file that is meant, or None. base: the folder that the name is relative to.
        Raises Outside for names beyond the whole folder.
        """
        if (joined := f"{base}/{written}" if base else written) in self.exact:
            return joined
        ways = [tidy(written, base)]
        if "%" in written:
            ways.append(tidy(unquote(written), base))
        head, _, rest = written.strip().replace("\\", "/").removeprefix("./").partition("/")
        if self.folder and head == self.folder:
            ways.append(rest)
        for way in ways:
            if way in self.exact:
                return way
        for way in ways:
            if found := only(self.loose.get(plain(way), [])):
                return found
        below = f"{base}/" if base else ""
        for way in ways:
            tail = plain(way.removeprefix(below))
            last = tail.rsplit("/", 1)[-1]
            near = [name for name in self.endings.get(last, []) if plain(name).endswith("/" + tail)]
            bare = [name for name in self.stems.get(last, []) if f"/{plain_stem(name)}".endswith("/" + tail)]
            for names in (near, bare):
                if found := only([name for name in names if name.startswith(below)]):
                    return found
        return None


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return found


def only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def tidy(written: str, base: str = "") -> str:
    """A name with "/" between folders, joined to its base, with "." and ".." worked out.
    Raises Outside where it leaves the folder.
    """
    name = written.strip().replace("\\", "/")
    if name.startswith("/") or re.match(r"[a-zA-Z]:|file:", name):
        raise Outside("is an absolute path")
    parts: list[str] = [part for part in base.split("/") if part]
    for part in name.split("/"):
        if part == ".." and not parts:
            raise Outside("leads out of the folder")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def plain(name: str) -> str:
    """A name as it is compared: composed letters, no case, no blanks at the ends of its parts."""
    name = name if name.isascii() else unicodedata.normalize("NFC", name)
    return "/".join(part.strip() for part in name.casefold().split("/"))


def plain_stem(name: str) -> str:
    return os.path.splitext(plain(name))[0]


# -------------------------------------------------------------------------------------------------------------- splits

SYNONYMS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "heldout": ("heldout",),
}
SPLIT_NAMES = {synonym: split for split, synonyms in SYNONYMS.items() for synonym in synonyms}


def split_named(name: str) -> str | None:
    """The split that a folder, a file or a column's value is named after, or None."""
    return SPLIT_NAMES.get(name.strip().lower())


def split_in(name: str) -> str | None:
    """The split that is part of a file's name, or None: "train-00000-of-00002.parquet", "x_train" -> "train";
    "mnist_test.csv" -> "test".
    """
    found = {
        SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", PurePosixPath(name.lower()).stem) if word in SPLIT_NAMES
    }
    return found.pop() if len(found) == 1 else None


def level_of_splits(names: Sequence[str]) -> int | None:
    """The depth at which all pictures lie in folders named as splits: 0 for train/a.png, test/b.png;
    None where there is none.

    A folder named "test" beside one named "cat" is a class: folders are splits only where all of them are.
    """
    folders = [name.split("/")[:-1] for name in names]
    for level in range(min((len(parts) for parts in folders), default=0)):
        if all(split_named(part) for part in {parts[level] for parts in folders}):
            return level
    return None


def choose_split(where: str, available: Iterable[str], split: str, tenth: bool = True) -> str | None:
    """Which of the available splits is used as `split`. None, if tenth allows it: there is only one, of which every
    tenth item is for testing.

    "test" may also be a validation split, as many sets have one instead.
    """
    there = sorted(set(available))
    if tenth and len(there) == 1 and split in ("train", "test"):
        return None
    if split in there:
        return split
    if split == "test" and "validation" in there:
        return "validation"
    raise UserError(f"{where} has no split '{split}'; it has {', '.join(there)}")


# -------------------------------------------------------------------------------------------------------------- report


@dataclass
class Tally:
    """Counts of what a load has left out, and notes about it, for one printed line."""

    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def tell(self, name: str, n: int, split: str | None = None) -> None:
        """Print "NAME (SPLIT): N read, M left out (why); notes", once in all processes."""
        if os.environ.get("RANK", "0") != "0":
            return
        lost = sum(self.left_out.values())
        why = f" ({described(self.left_out)})" if lost else ""
        title = f"{name} ({split})" if split else name
        print("; ".join([f"{title}: {n:,} read, {lost:,} left out{why}", *self.notes]), file=sys.stderr)
