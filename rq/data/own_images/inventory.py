# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the files of a data set while it is prepared: kept, left out and others."""

from __future__ import annotations

import collections
import re

from rq.data import walk

LISTED = 1000  # files left out that are named in the report
NAMED = 20  # examples that are named for each note
CLASSES_SHOWN = 50


class Inventory:
    """Counts of files: seen = images kept + images left out + other files.

    Attributes:
      kept: number of images kept, by split.
      classes: number of images kept, by class and split.
      converted: number of images kept that are not plain RGB, by kind.
      small: number of images kept of which a side is below the config's resolution.
      captioned: number of images kept that have captions.
      left_out: number of images left out.
      reasons: number of images left out, by the general part of the reason.
      files_left_out: reason by name, for the first images left out.
      other: number of files that are not images, by kind.
      notes: other lines that a person should read.
    """

    def __init__(self):
        self.kept = collections.Counter()
        self.classes: dict[str, collections.Counter] = {}
        self.converted = collections.Counter()
        self.small = self.captioned = self.left_out = 0
        self.reasons = collections.Counter()
        self.files_left_out: dict[str, str] = {}
        self.other = collections.Counter()
        self.notes: list[str] = []
        self._named: dict[str, list] = {}

    def leave_out(self, name: str, reason: str) -> None:
        """Counts an image that is left out."""
        self.left_out += 1
        reason = reason or "no reason known"
        group = _group(reason)
        known = group in self.reasons or len(self.reasons) < LISTED
        self.reasons[group if known else "other reasons"] += 1
        if len(self.files_left_out) < LISTED:
            while name in self.files_left_out:
                name += " (again)"
            self.files_left_out[name] = reason

    def keep(self, split: str, label: str | None, captioned: bool) -> None:
        """Counts an image that is kept."""
        self.kept[split] += 1
        self.captioned += captioned
        if label is not None:
            self.classes.setdefault(label, collections.Counter())[split] += 1

    def note(self, what: str, name: str = "") -> None:
        """Counts a note, and names an example of it."""
        if what not in self._named:
            self._named[what] = [0, []]
        entry = self._named[what]
        entry[0] += 1
        if name and len(entry[1]) < NAMED:
            entry[1].append(walk.printable(name))

    def as_dict(self, class_names=()) -> dict:
        """Returns the report as a JSON-compatible dict.

        Args:
          class_names: class names in order of the labels.
        """
        kept = sum(self.kept.values())
        notes = [_note(what, *entry) for what, entry in self._named.items()]
        return {
            "files_seen": kept + self.left_out + sum(self.other.values()),
            "images_seen": kept + self.left_out,
            "kept": dict(self.kept),
            "left_out": self.left_out,
            "reasons": dict(self.reasons.most_common()),
            "files_left_out": dict(self.files_left_out),
            "converted": dict(self.converted),
            "small": self.small,
            "images_with_captions": self.captioned,
            "images_without_captions": kept - self.captioned,
            "classes": [
                {"number": number, "name": name, **self.classes.get(name, {})}
                for number, name in enumerate(class_names)
            ],
            "other_files": dict(self.other.most_common()),
            "notes": [*self.notes, *notes],
        }


def _group(reason: str) -> str:
    """Returns a reason without the details of one file, which follow a colon."""
    return re.split(r": | \(", reason, maxsplit=1)[0]


def _note(what: str, number: int, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if number > 3 else "")
    return f"{what}: {number}" + (f" ({shown})" if names else "")


def count_other(inventory: Inventory, name: str) -> None:
    """Counts a file that is not an image and does not belong to one, by kind."""
    if walk.is_system_file(name):
        inventory.other["system files (._*, __MACOSX, .DS_Store, Thumbs.db)"] += 1
    else:
        inventory.other[walk.suffix(name) or "without suffix"] += 1


def summary(report: dict, title: str) -> str:
    """Returns a report of `Inventory.as_dict` as readable text.

    Args:
      report: report of this version or an earlier one, which lacks some counts.
      title: first line of the text.
    """
    lines = [title]
    kept = sum(report["kept"].values())
    splits = ", ".join(f"{number} {split}" for split, number in report["kept"].items())
    if "files_seen" in report:
        lines.append(f"  files       {report['files_seen']} seen")
    lines.append(f"  images      {kept + report['left_out']} seen = {kept} kept "
                 f"({splits}) + {report['left_out']} left out")  # fmt: skip
    if report.get("images_with_captions"):
        lines.append(
            f"  captions    {report['images_with_captions']} images with, "
            f"{report['images_without_captions']} without"
        )
    lines += _class_lines(report.get("classes", []))
    lines += _counted("converted", report["converted"])
    if report["small"]:
        lines.append(f"  small       {report['small']} below the resolution: enlarged")
    examples = {}
    for name, reason in report["files_left_out"].items():
        examples.setdefault(_group(reason), f"{reason}: {name}")
    for reason, number in list(report.get("reasons", {}).items())[:NAMED]:
        lines.append(f"  left out    {number} x {examples.get(reason, reason)}")
    lines += _counted("other files", report.get("other_files", {}))
    lines += [f"  note        {note}" for note in report.get("notes", [])]
    return "\n".join(lines)


def _class_lines(classes: list[dict]) -> list[str]:
    if not classes:
        return []
    lines = [f"  classes     {len(classes)}: number, name, images"]
    for entry in classes[:CLASSES_SHOWN]:
        splits = {k: n for k, n in entry.items() if k not in ("number", "name")}
        counts = ", ".join(f"{n} {split}" for split, n in splits.items()) or "none"
        lines.append(f"    {entry['number']:>8}  {entry['name']}: {counts}")
    if len(classes) > CLASSES_SHOWN:
        lines.append(f"              and {len(classes) - CLASSES_SHOWN} more")
    return lines


def _counted(name: str, counts: dict) -> list[str]:
    if not counts:
        return []
    text = ", ".join(f"{kind}: {number}" for kind, number in counts.items() if number)
    return [f"  {name:<11} {text}"]
