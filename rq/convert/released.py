# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the released models in folders: weights, config.yaml and tokenizer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from rq.convert.names import few
from rq.data import text

CONFIG = "config.yaml"
WEIGHTS = ("model.pt", "model.safetensors")  # names that are preferred to others
_SUFFIXES = (".pt", ".safetensors")
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_STAGES = {"rq-vae": "RQ-VAE", "rq-transformer": "RQ-Transformer"}
_MAX_YAML = 2**20


@dataclasses.dataclass(frozen=True)
class Model:
    """A model's files.

    Attributes:
      weights: the file of its weights.
      config: contents of the config.yaml beside it.
    """

    weights: pathlib.Path
    config: Mapping[str, Any]

    @property
    def arch(self) -> Mapping[str, Any]:
        """The section that the network is built from."""
        return self.config["arch"]

    def section(self, name: str) -> Mapping[str, Any]:
        """Returns another section, empty if there is none."""
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of a config.yaml.

    `vocab_size`, which the released files have in `dataset`, is copied to `arch`.

    Raises:
      ValueError: if it is no YAML, or has no section `arch`.
      FileNotFoundError: if it does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: it must lie beside the checkpoint")
    if path.stat().st_size > _MAX_YAML:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: too many for it")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path} is no YAML") from None
    arch = config.get("arch") if isinstance(config, Mapping) else None
    if not isinstance(arch, Mapping):
        raise ValueError(f"{path} has no section 'arch'")
    dataset = config.get("dataset")
    if isinstance(dataset, Mapping) and "vocab_size" in dataset:
        config = config | {"arch": {"vocab_size": dataset["vocab_size"]} | dict(arch)}
    return config


def is_wanted(name: str) -> bool:
    """Returns whether a file of an archive, by its name, is one that `find` uses."""
    known = (*_SUFFIXES, _VOCABULARY, _MERGES)
    return name in (CONFIG, text.FILE) or name.endswith(known)


def find(folders: Iterable[pathlib.Path]) -> tuple[Model, Model | None]:
    """Returns the RQ-VAE and the RQ-Transformer below some folders.

    Args:
      folders: searched with all folders in them; their names do not matter.

    Returns:
      The models; None for the RQ-Transformer if there is none.

    Raises:
      ValueError: if there is no RQ-VAE, more than one of a kind, or weights without
        their config.yaml.
    """
    found: dict[str, list[Model]] = {kind: [] for kind in _STAGES}
    folders = list(folders)
    for folder in folders:
        for place in _with_weights(folder):
            config = read_config(place / CONFIG)
            kind = config["arch"].get("type")
            if kind not in _STAGES:
                raise ValueError(
                    f"{place / CONFIG}: arch.type {str(kind)[:80]!r} is neither "
                    "'rq-vae' nor 'rq-transformer'"
                )
            found[kind].append(Model(_choose(place), config))
    for kind, models in found.items():
        if len(models) > 1:
            where = few(model.weights.parent for model in models)
            raise ValueError(f"more than one {_STAGES[kind]}: in {where}; give one")
    rqvae, transformer = (models[0] if models else None for models in found.values())
    if rqvae is None:
        what = "no checkpoint" if transformer is None else "no RQ-VAE, which the"
        what += "" if transformer is None else " RQ-Transformer's codes need,"
        raise ValueError(
            f"{', '.join(map(str, folders))}: {what} in it, as model.pt and config.yaml"
        )
    return rqvae, transformer


def _with_weights(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folder and those below it that have weights."""
    files = [path for path in folder.rglob("*") if path.suffix in _SUFFIXES]
    return sorted({path.parent for path in files if path.is_file()})


def _choose(place: pathlib.Path) -> pathlib.Path:
    """Returns the weights in a folder that has some."""
    for name in WEIGHTS:
        if (place / name).is_file():
            return place / name
    files = sorted(path for path in place.iterdir() if path.suffix in _SUFFIXES)
    if len(files) > 1:
        names = few(path.name for path in files)
        raise ValueError(f"{place} has {names}: rename one to {WEIGHTS[0]}")
    return files[0]


def find_tokenizer(folders: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """Returns what `rq.data.text.load` takes, from below some folders, or None."""
    for folder in folders:
        for pattern in (text.FILE, f"*{_VOCABULARY}"):
            for path in sorted(folder.rglob(pattern)):
                return path if pattern == text.FILE else path.parent
    return None
