"""Layout of class folders: which folders of a tree are splits and classes, and what is wrong with the others."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from alexnet_dist.errors import UserError, printable
from alexnet_dist.sources import splits
from alexnet_dist.sources.folders import UNREAD_PICTURES, Folder
from alexnet_dist.sources.listing import EncodedImages, Labels, Listing, SourceOptions
from alexnet_dist.sources.splits import few


@dataclass(frozen=True)
class Place:
    """The root of a tree of class folders, for error messages and by name."""

    path: str
    """Of the folder or archive, absolute."""

    @property
    def source(self) -> str:
        """Return the beginning of error messages."""
        return f"--data.dataset {printable(self.path)}"

    def of(self, folder: Folder | str) -> str:
        """Return the full path of a folder or file of the tree."""
        path = folder if isinstance(folder, str) else folder.path
        return printable(f"{self.path}/{path}" if path else self.path)


def list_tree(
    tree: Folder, place: Place, options: SourceOptions, images: Callable[[list[Folder], Labels], EncodedImages]
) -> Listing:
    """Return what class folders hold, ordered by class and file name.

    Args:
        tree: of a folder or an archive.
        place: of its root.
        options: with the names of the splits, if they are given.
        images: makes the images of class folders, all in order, with these labels.

    Raises:
        UserError: the tree is no layout of class folders; the message says what lies where.
    """
    found, chosen = _splits(tree, place, options)
    notes = list(chosen.notes)
    used = {name: _classes(found[name], place, notes) for name in (chosen.train, chosen.test) if name is not None}
    train, test = used[chosen.train], used[chosen.test] if chosen.test else None
    _compare(train, test, place, notes)
    names = sorted(train)
    if len(names) < 2:
        where = place.of(found[chosen.train])
        raise UserError(f"{place.source}: {where} holds one class, {few(names)}: two or more are needed")
    number = {name: k for k, name in enumerate(names)}
    listed, made = {}, {}
    for split, classes in used.items():
        # by whole path, as `datasets` does: "a b/1.png" is before "a/1.png", although the class "a" is before "a b"
        order = sorted(classes, key=lambda name: name + "/")
        listed[split] = [classes[name] for name in order]
        numbers = np.array([number[name] for name in order], np.int64)
        made[split] = images(listed[split], np.repeat(numbers, [len(classes[name].names) for name in order]))
    _count(tree, [folder for folders in listed.values() for folder in folders], place, notes)
    shown = tuple(printable(name) for name in names)
    key = _key(listed, shown, options)
    evaluated = made[chosen.test] if chosen.test else None
    name = printable(os.path.basename(place.path))  # noqa: PTH119
    return Listing(name, shown, made[chosen.train], evaluated, chosen.test or "", key, tuple(notes))


def _key(listed: dict[str, list[Folder]], names: tuple[str, ...], options: SourceOptions) -> str:
    """Return the SHA-256 over names, sizes and times of all files, in hexadecimal."""
    digest = hashlib.sha256(repr((names, options.train_split, options.eval_split)).encode())
    for split, folders in listed.items():
        for folder in folders:
            digest.update(repr((split, printable(folder.path), len(folder.names))).encode())
            digest.update("\0".join(folder.names).encode("utf-8", "surrogateescape"))
            digest.update(np.array([folder.sizes, folder.times], np.int64).tobytes())
    return digest.hexdigest()


# ---- splits ---------------------------------------------------------------------------------------------------------


def _splits(tree: Folder, place: Place, options: SourceOptions) -> tuple[dict[str, Folder], splits.Chosen]:
    """Return the folders that are splits, by name, and those that are used; the root itself if it holds classes."""
    if not tree.count():
        raise UserError(f"{place.source}: {_nothing(tree)}")
    with_images = {name: folder for name, folder in tree.folders.items() if folder.count()}
    found = {name: folder for name, folder in tree.folders.items() if name.lower() in splits.KNOWN}
    word: Callable[[str], str | None] = str.lower
    if options.train_split or options.eval_split:
        found = with_images
    elif not any(name.lower() in splits.TRAINING for name in found):
        found = {name: folder for name, folder in with_images.items() if splits.split_word(name)}
        word = splits.split_word  # as in seg_train
        if not any(word(name) in splits.TRAINING and _labelled(folder) for name, folder in found.items()):
            return _without_splits(tree, place)
    elif with_images.keys() - found.keys() and all(map(_direct, with_images.values())):
        return _without_splits(tree, place)  # `train` is one class of several
    found = {name: _nested(folder) for name, folder in found.items()}
    return found, splits.choose(list(found), lambda name: _labelled(found[name]), options, place.source, word)


def _direct(folder: Folder) -> bool:
    """Return whether images lie in a folder itself and in no folder below it."""
    return bool(folder.names) and folder.count() == len(folder.names)


def _labelled(folder: Folder) -> bool:
    """Return whether class folders with images lie in a split."""
    return folder.count() > len(folder.names)


def _nested(folder: Folder) -> Folder:
    """Return the folder that holds the classes: itself, or the only one in it, as in seg_train/seg_train."""
    inside = [below for below in folder.folders.values() if below.count()]
    only = inside[0] if len(inside) == 1 and not folder.names else None
    deeper = only is not None and not only.names and sum(below.count() > 0 for below in only.folders.values()) > 1
    return only if only is not None and deeper else folder


def _without_splits(tree: Folder, place: Place) -> tuple[dict[str, Folder], splits.Chosen]:
    """Return the root as the training split: its folders are classes.

    Raises:
        UserError: the splits lie elsewhere: around the root, or in one of its folders.
    """
    inside = [folder for folder in tree.folders.values() if folder.count()]
    for folder in inside:
        if any(name.lower() in splits.TRAINING and below.count() for name, below in folder.folders.items()):
            there = place.of(folder)
            raise UserError(f"{place.source}: its splits lie one level down, in {there}: give --data.dataset {there}")
    if inside and all(name.lower() in splits.EVALUATION for name in tree.folders if tree.folders[name].count()):
        has = few(folder.path for folder in inside)
        raise UserError(f"{place.source}: needs a folder train of class folders, and has {has}: --data.train-split")
    above, name = os.path.split(place.path)
    if name.lower() in splits.KNOWN:
        others = [other for other in os.listdir(above) if other != name and splits.split_word(other) == other.lower()]  # noqa: PTH208
        if others:
            around = f"{printable(name)} is one split of {printable(above)}, beside {few(sorted(others))}"
            raise UserError(f"{place.source}: {around}: give --data.dataset {printable(above)}")
    return {"": tree}, splits.Chosen("", None, ("class folders without splits: all images are training images",))


# ---- classes --------------------------------------------------------------------------------------------------------


def _classes(split: Folder, place: Place, notes: list[str]) -> dict[str, Folder]:
    """Return the class folders of a split by name, those with images alone; what others hold is noted or refused."""
    if split.names:
        several = f"{len(split.names)} images lie" if len(split.names) > 1 else "an image lies"
        way = "put each image into the folder of its class, as train/CLASS/*.jpg"
        tables = [file.path for file in split.telling if file.path.rsplit("/")[-1].startswith("metadata.")]
        if tables:
            way = f"{place.of(tables[0])} is not read beside images of other splits; {way}"
        raise UserError(
            f"{place.source}: {several} right in {place.of(split)}, in no class folder ({split.names[0]!a}): {way}"
        )
    found: dict[str, Folder] = {}
    for name, folder in split.folders.items():
        if folder.count() == len(folder.names) > 0:
            found[name] = folder
        elif folder.count():
            raise UserError(f"{place.source}: {_too_deep(split, folder, place)}")
        elif unread := sorted(UNREAD_PICTURES & _kinds(folder).keys()):
            kinds = f"{_kinds(folder).total()} files, none an image that Pillow reads ({', '.join(unread)})"
            raise UserError(f"{place.source}: the class {place.of(folder)} has {kinds}: convert them to JPEG or PNG")
        else:
            notes.append(f"{place.of(folder)} holds no image and is no class ({_described(_kinds(folder))})")
    return found


def _too_deep(split: Folder, folder: Folder, place: Place) -> str:
    """Return the message for images that lie deeper than in a class folder."""
    below = [inner for inner in folder.walk() if inner.names and inner is not folder]
    if folder.names:
        both = f"{place.of(folder)} holds images, and its folder {place.of(below[0])} too"
        return f"{both}: is each a class, or are they one? All images must lie in SPLIT/CLASS/ itself"
    if len(below) == 1:
        there = f"the images of {place.of(folder)} lie one level too deep, in {place.of(below[0])}"
        return f"{there}: move them up, to {place.of(folder)}/*"
    there = f"{place.of(folder)} holds no images but folders of images ({few(i.path.rsplit('/')[-1] for i in below)})"
    remedy = "move its folders up" if split.path else f"give --data.dataset {place.of(folder)}, or move them up"
    return f"{there}, one level too many: {remedy}, or, if it is a class, its images"


def _compare(train: dict[str, Folder], test: dict[str, Folder] | None, place: Place, notes: list[str]) -> None:
    """Compare the classes of both splits.

    Raises:
        UserError: the evaluation split has a class of its own, or two names or two folders are one.
    """
    seen: dict[tuple[int, int], Folder] = {}
    for folder in (*train.values(), *(test or {}).values()):
        if folder.identity != (0, 0) and (first := seen.setdefault(folder.identity, folder)) is not folder:
            both = f"{place.of(folder)} and {place.of(first)} are the same folder, by a link"
            raise UserError(f"{place.source}: {both}: remove one")
    for one, other in splits.alike([*train, *(test or {})]):
        if len(one) == len(other) == 1 and all({one, other} <= classes.keys() for classes in (train, test or train)):
            continue  # letters: A and a
        folders = [classes[name] for classes in (train, test or {}) for name in (one, other) if name in classes]
        where = few(map(place.of, folders))
        raise UserError(f"{place.source}: {splits.difference(one, other)} ({where}): give them one name")
    if test is None:
        return
    if new := sorted(test.keys() - train.keys()):
        there = few(place.of(test[name]) for name in new)
        raise UserError(f"{place.source}: no training images of {few(new)}, which {there} holds: add some or remove it")
    if missing := sorted(train.keys() - test.keys()):
        notes.append(f"no evaluation images of {few(missing)}: {len(missing)} of {len(train)} classes")


# ---- what was left aside --------------------------------------------------------------------------------------------


def _count(tree: Folder, used: Iterable[Folder], place: Place, notes: list[str]) -> None:
    """Note which files were left aside, images in unused folders and files of other kinds.

    Raises:
        UserError: an image file that is used is empty.
    """
    chosen = {id(folder) for folder in used}
    aside: list[Folder] = []
    others: Counter[str] = Counter()
    for folder in tree.walk():
        others += folder.others
        if id(folder) not in chosen and folder.names:
            aside.append(folder)
        elif 0 in folder.sizes:
            path = f"{folder.path}/{folder.names[folder.sizes.index(0)]}"
            raise UserError(f"{place.source}: {place.of(path)} is empty (0 bytes): replace or remove it")
    if aside:
        notes.append(f"{sum(len(each.names) for each in aside)} images were left aside, in {few(map(place.of, aside))}")
    if others:
        notes.append(f"left aside, as no images: {_described(others)}")


def _kinds(folder: Folder) -> Counter[str]:
    """Return the number of files that are no images, here and below, by suffix."""
    return sum((below.others for below in folder.walk()), Counter())


def _described(kinds: Counter[str]) -> str:
    """Return kinds of files with their numbers: `.txt (10), .xml (2)`."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return few(f"{kind} ({count})" for kind, count in ordered) or "no files"


def _nothing(tree: Folder) -> str:
    """Return the message for a folder without any image."""
    layouts = "parquet files as on the Hub, tars with KEY.jpg and KEY.cls, or images as train/CLASS/*.jpg"
    scripts = [file.path for file in tree.telling if file.path.endswith(".py")]
    if scripts:
        branch = "--data.dataset OWNER/NAME --data.revision refs/convert/parquet"
        return f"{printable(scripts[0])} is a loading script, which cannot be run: give {branch}, or image folders"
    archives = [file.path for file in tree.telling if file.path.endswith((".zip", ".npz", ".tgz"))]
    if archives:
        return f"holds no images but {few(archives)}: name the archive itself, --data.dataset FOLDER/{archives[0]}"
    return f"holds no images ({_described(_kinds(tree))}); it needs {layouts}"
