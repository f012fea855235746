# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizes captions: byte-pair encoding with dropout (Provilkov et al. 2020).

The library `tokenizers` normalises, splits and merges. BPE dropout is implemented here,
since the library's cannot be seeded and resumed training would see other tokens.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from absl import logging
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rq.data import DataError
from rq.parallel import atomic_files

PAD, UNKNOWN = "[PAD]", "[UNK]"
FILE = "tokenizer.json"
LONG = 32  # words of more characters are merged with a heap
COUNTED = 10_000  # captions of which `make` logs how many are cut


class TextTokenizer:
    """Tokenizes captions to sequences of fixed length, padded or cut at the end.

    Attributes:
      length: sequence length S.
      vocab_size: number of tokens, padding included.
      null: tokens of the empty text, only padding, int32 `[S]`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, length: int):
        """Takes a BPE tokenizer of the library."""
        tokenizer.add_special_tokens([PAD])
        self._pad = tokenizer.token_to_id(PAD)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self.length = tokenizer, length
        self.vocab_size = tokenizer.get_vocab_size()
        self.null = np.full(length, self._pad, np.int32)

    def __call__(
        self, text: str, dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns the tokens of a caption, int32 `[S]`.

        Args:
          text: any Unicode text, possibly empty.
          dropout: probability of skipping a possible merge.
          rng: generator of the dropout.
        """
        if dropout:
            tokens = self._with_dropout(text, dropout, rng)
        else:
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        padded = self.null.copy()
        padded[: len(tokens)] = tokens[: self.length]
        return padded

    def choose(
        self, captions: Sequence[str], dropout: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the tokens of a random caption; `null` if there are no captions."""
        if not captions:
            return self.null
        return self(captions[int(rng.integers(len(captions)))], dropout, rng)

    def save(self, path) -> None:
        """Writes the tokenizer to one file, which `load` reads."""
        with atomic_files.atomic_write(path) as temporary:
            temporary.write_text(self._tokenizer.to_str(pretty=True))

    def is_same(self, other: TextTokenizer) -> bool:
        """Returns whether another tokenizer gives the same tokens, before cutting."""
        return self._tokenizer.to_str() == other._tokenizer.to_str()

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, in the normalised form of the tokenizer."""
        kept = [int(token) for token in tokens if token != self._pad]
        return self._tokenizer.decode(kept)

    @functools.cached_property
    def _model(self):
        """Returns merge ranks, vocabulary, end-of-word suffix and unknown token."""
        model = json.loads(self._tokenizer.to_str())["model"]
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        unknown = model["vocab"].get(model.get("unk_token"))
        return ranks, model["vocab"], model.get("end_of_word_suffix") or "", unknown

    def _with_dropout(self, text, dropout, rng) -> list[int]:
        normalizer = self._tokenizer.normalizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [i for word, _ in words for i in self._merge(word, dropout, rng)]

    def _merge(self, word, dropout, rng) -> list[int]:
        """Returns the tokens of one word."""
        ranks, vocab, suffix, unknown = self._model
        parts = [*word[:-1], word[-1] + suffix]
        # Characters outside the vocabulary are never merged.
        merge = _merge_all_pairs if len(parts) <= LONG else _merge_from_heap
        tokens = [
            vocab.get(part, unknown) for part in merge(parts, ranks, dropout, rng)
        ]
        return [token for token in tokens if token is not None]

    def count_cut(self, captions: Iterable[str]) -> tuple[int, int]:
        """Returns the number of captions, and of those with more than S tokens."""
        number = cut = 0
        captions = iter(captions)
        while some := list(itertools.islice(captions, 1024)):
            encoded = self._tokenizer.encode_batch(some, add_special_tokens=False)
            number += len(some)
            cut += sum(len(tokens) > self.length for tokens in encoded)
        return number, cut


def _merge_all_pairs(parts, ranks, dropout, rng) -> list[str]:
    """Merges the best-ranked pair that is not dropped, until none is left.

    Each iteration draws a number for every pair: quadratic in the length of a word.
    """
    never = len(ranks)
    found = [ranks.get(pair, never) for pair in itertools.pairwise(parts)]
    while places := [i for i, rank in enumerate(found) if rank < never]:
        draws = rng.random(len(places)).tolist()
        kept = [i for i, draw in zip(places, draws, strict=True) if draw >= dropout]
        if not kept:
            break
        place = min(kept, key=found.__getitem__)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del found[place]
        for i in (place - 1, place):
            if 0 <= i < len(found):
                found[i] = ranks.get((parts[i], parts[i + 1]), never)
    return parts


def _merge_from_heap(parts, ranks, dropout, rng) -> list[str]:
    """Merges as `_merge_all_pairs` in distribution, with other draws, in O(n log n).

    Each iteration draws for the pairs in order of rank, up to the first one that is not
    dropped. Dropped pairs are candidates again in the next iteration.
    """
    after, before = list(range(1, len(parts) + 1)), list(range(-1, len(parts) - 1))
    heap = []

    def push(place):
        if 0 <= place and after[place] < len(parts):
            pair = parts[place], parts[after[place]]
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], place, pair))

    for place in range(len(parts)):
        push(place)
    while heap:
        left_out = []
        while heap:
            rank, place, pair = heapq.heappop(heap)
            second = after[place]
            if second == len(parts) or (parts[place], parts[second]) != pair:
                continue  # one of the two was merged with another part
            if rng.random() < dropout:
                left_out.append((rank, place, pair))
                continue
            parts[place], parts[second] = "".join(pair), None
            after[place] = after[second]
            if after[place] < len(parts):
                before[after[place]] = place
            push(before[place])
            push(place)
            break
        else:
            break  # all were dropped
        for entry in left_out:
            heapq.heappush(heap, entry)
    return [part for part in parts if part is not None]


def load(path, length: int) -> TextTokenizer:
    """Loads a tokenizer from files.

    Args:
      path: a `tokenizer.json` of the library; or a folder with that file, or with one
        `*vocab.json` and one `*merges.txt` in the authors' format (characters, '</w>'
        at the end of words, lower case, unknown token '[UNK]').
      length: tokens per caption, S.

    Raises:
      DataError: if the file does not exist or is not a BPE tokenizer.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir() and not (path / FILE).exists():
        vocab, merges = (
            sorted(path.glob("*vocab.json")),
            sorted(path.glob("*merges.txt")),
        )
        if len(vocab) != 1 or len(merges) != 1:
            raise DataError(
                f"{path} has neither {FILE} nor one *vocab.json and one *merges.txt"
            )
        made = tokenizers.CharBPETokenizer.from_file(
            str(vocab[0]), str(merges[0]), unk_token=UNKNOWN, lowercase=True
        )
        return TextTokenizer(tokenizers.Tokenizer.from_str(made.to_str()), length)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise DataError(
            f"{file} is missing; rq tokenizer, with the same --config and --workdir, "
            "trains one on the captions"
        )
    try:
        made = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{file} is not a tokenizer: {error}") from error
    if not isinstance(made.model, models.BPE):
        raise DataError(f"{file} has a {type(made.model).__name__} model, not BPE")
    return TextTokenizer(made, length)


def train(captions: Iterable[str], vocab_size: int, path) -> int:
    """Trains a byte-level BPE on lower-case captions and writes it to `path`.

    It works on bytes, so that no script and no emoji is unknown.

    Returns:
      The size of the vocabulary: `vocab_size`, or less if the captions are too few.

    Raises:
      DataError: if there are no captions, or `vocab_size` cannot hold all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise DataError(
            f"transformer.text.vocab_size = {vocab_size}: must be above "
            f"{len(alphabet)}, to hold all bytes and padding"
        )
    captions = list(captions)
    if not any(captions):
        raise DataError("the training set has no captions to train a tokenizer on")
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(captions, trainer)
    TextTokenizer(made, length=1).save(path)
    return made.get_vocab_size()


def make(options, source, file) -> None:
    """Writes the tokenizer that the config names, or one trained on captions.

    Args:
      options: the section `transformer.text` of a config.
      source: images with captions, from `rq.data.sources.open_split`.
      file: path to write to.

    Raises:
      DataError: if there are no captions, or the named files are not a tokenizer.
    """

    def captions():
        return (line for i in range(len(source)) for line in source.captions(i))

    if options.tokenizer:
        load(options.tokenizer, options.length).save(file)
    else:
        train(captions(), options.vocab_size, file)
    some = itertools.islice(captions(), COUNTED)
    number, cut = load(file, options.length).count_cut(some)
    logging.info(
        "tokenizer: %s; %d of the first %d captions have more than "
        "transformer.text.length=%d tokens and are cut",
        file,
        cut,
        number,
        options.length,
    )
