"""Long-range tasks with exact answers: needles in code, chains of variables, rows of a table, at any context length.

The formats are those the reference models were trained on, so they score well above 0.9 while dense, and a method that
loses what stands far back loses the answer. Everything is drawn from the seed; nothing is downloaded.
"""

import functools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .stdlib import Document, stdlib
from .windows import encode, opener_of

# Code that could be taken for what is planted (ctypes has `HBITMAP = HANDLE` and shorter ones) is no filler.
PLANTED = re.compile(r"# note: .*|[A-Z]{6} = (\d{5}|[A-Z]{6})|TABLE = \{|\s*'[a-z]{6}': \d{3},")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class Turn(NamedTuple):
    """What is said and what must be answered, to the letter."""

    prompt: str
    answer: str

    def right(self, said: str) -> bool:
        """Whether that is the answer; blanks around it do not count."""
        return said.strip() == self.answer.strip()


class Open(NamedTuple):
    """What is said, and what an answer of `room` tokens must hold: one string of each of the parts, in upper or lower case."""

    prompt: str
    answer: str
    parts: tuple[tuple[str, ...], ...]
    room: int

    def right(self, said: str) -> bool:
        """Whether that is an answer.

        >>> Open("?", "7, 8", (("7",), ("8", "eight")), 9).right("It is Eight and 7.")
        True
        """
        return all(any(x.lower() in said.lower() for x in part) for part in self.parts)


class Task(NamedTuple):
    """A conversation: the first turn holds the context and a question, each further turn a question about the same
    context.
    """

    turns: tuple[Turn | Open, ...]

    @property
    def prompt(self) -> str:
        return self.turns[0].prompt

    @property
    def answer(self) -> str:
        return self.turns[0].answer


Block = tuple[str, ...]  # lines that stay together
Plant = tuple[list[Block], list[Turn]]


def needle(
    tokenizer: Any,
    tokens: int = 1024,
    notes: int = 4,
    questions: int = 1,
    count: int = 1,
    seed: int = 0,
    filler: Sequence[Document] | None = None,
) -> list[Task]:
    """`count` tasks: `notes` access codes at random lines of unrelated code, then `questions` of them asked for, a turn
    each.

        # note: the access code for bakomi is 48213.
        ...
        # question: what is the access code for bakomi?
        # answer: 48213

    `tokens` is the length of the whole conversation, opener and answers included, hit to the token or one or two below.
    `filler` is by default the test part of the standard library. The reference models know 1 to 16 notes.
    """

    def plant(draw: random.Random) -> Plant:
        codes = {word: _digits(draw, 5) for word in _words(draw, notes)}
        asked = draw.sample(sorted(codes), questions)
        turns = [Turn(f"# question: what is the access code for {w}?\n# answer:", f" {codes[w]}\n") for w in asked]
        blocks: list[Block] = [(f"# note: the access code for {w} is {code}.",) for w, code in codes.items()]
        return blocks, turns

    _enough(notes, questions, "notes")
    return _tasks(plant, tokenizer, tokens, count, seed, filler)


def variables(
    tokenizer: Any,
    tokens: int = 1024,
    chains: int = 1,
    length: int = 4,
    questions: int = 1,
    count: int = 1,
    seed: int = 0,
    filler: Sequence[Document] | None = None,
) -> list[Task]:
    """`count` tasks: `chains` interleaved chains of `length` assignments each, then the value of the last name of a
    chain.

        BAKOMI = 48213
        ...
        LUTEGA = BAKOMI
        ...
        assert LUTEGA == 48213

    As `needle` otherwise. The reference models were trained on 1 to 4 chains of length 1 to 4, but are sure only of one
    chain of any length and of several of length 1 (above 0.9); of several longer chains they pick one by chance, dense
    already: no test of a method.
    """

    def plant(draw: random.Random) -> Plant:
        names = [w.upper() for w in _words(draw, chains * length)]
        codes = [_digits(draw, 5) for _ in range(chains)]
        order = draw.sample([c for c in range(chains) for _ in range(length)], chains * length)
        lines: list[Block] = []
        at = [0] * chains
        for c in order:
            mine = names[c * length : (c + 1) * length]
            lines.append((f"{mine[at[c]]} = {mine[at[c] - 1] if at[c] else codes[c]}",))
            at[c] += 1
        asked = draw.sample(range(chains), questions)
        return lines, [Turn(f"assert {names[(c + 1) * length - 1]} ==", f" {codes[c]}\n") for c in asked]

    _enough(chains, questions, "chains")
    return _tasks(plant, tokenizer, tokens, count, seed, filler)


def table(
    tokenizer: Any,
    tokens: int = 1024,
    rows: int = 16,
    questions: int = 1,
    count: int = 1,
    seed: int = 0,
    filler: Sequence[Document] | None = None,
) -> list[Task]:
    """`count` tasks: a table of `rows` somewhere in unrelated code, then the value of one key.

        TABLE = {
            'bakomi': 482,
            ...
        }
        ...
        assert TABLE['bakomi'] == 482

    As `needle` otherwise. The reference models know 8 to 64 rows.
    """

    def plant(draw: random.Random) -> Plant:
        values = {word: _digits(draw, 3) for word in _words(draw, rows)}
        block = ("TABLE = {", *(f"    '{w}': {v}," for w, v in values.items()), "}")
        asked = draw.sample(sorted(values), questions)
        blocks: list[Block] = [block]
        return blocks, [Turn(f"assert TABLE['{w}'] ==", f" {values[w]}\n") for w in asked]

    _enough(rows, questions, "rows")
    return _tasks(plant, tokenizer, tokens, count, seed, filler)


def _tasks(
    plant: Callable[[random.Random], Plant],
    tokenizer: Any,
    tokens: int,
    count: int,
    seed: int,
    filler: Sequence[Document] | None,
) -> list[Task]:
    files = _test_part() if filler is None else tuple(filler)
    draws = [random.Random(f"{seed} {i}") for i in range(count)]  # a text as seed: the same on every machine
    return [_task(*plant(draw), tokenizer, tokens, files, draw) for draw in draws]


def _task(
    blocks: list[Block], turns: list[Turn], tokenizer: Any, tokens: int, files: Sequence[Document], draw: random.Random
) -> Task:
    """Fill up with lines of code until the conversation has `tokens` tokens, and cut the first line to fit."""

    def size(text: str) -> int:
        return len(encode(tokenizer, text))

    places = sorted(draw.random() for _ in blocks)
    spoken = "".join(t.prompt + t.answer for t in turns)
    room = tokens - len(opener_of(tokenizer)) - size(spoken)
    least = size(_context([], blocks, places))
    if room < least:
        raise ValueError(f"{tokens} tokens do not hold what must be found: ask for at least {tokens - room + least}")
    lines: list[str] = []
    code, guess = _code(files, draw), least
    while guess < room or size(_context(lines, blocks, places)) < room:
        lines.insert(0, next(code))
        guess += size(lines[0] + "\n")
    while (over := size(text := _context(lines, blocks, places)) - room) > 0:
        if over > len(lines[0]):
            lines.pop(0)
        else:
            lines[0] = lines[0][over:]  # a token is at least one character
    return Task((Turn(text + turns[0].prompt, turns[0].answer), *turns[1:]))


def _context(lines: list[str], blocks: list[Block], places: list[float]) -> str:
    """The blocks in their order among the lines, never before the first."""
    before = [1 + int(p * len(lines)) for p in places]
    out, at = [], 0
    for block, stop in zip(blocks, before, strict=True):
        out += [*lines[at:stop], *block]
        at = max(at, stop)
    return "".join(f"{line}\n" for line in [*out, *lines[at:]])


def _code(files: Sequence[Document], draw: random.Random) -> Iterator[str]:
    """Lines of code, last first: stretches of files in random order, over and over."""
    found = 0
    while True:
        for file in draw.sample(files, len(files)):
            lines = [line for line in file.text.splitlines() if line.strip() and len(line) <= 120]
            lines = [line for line in lines if not PLANTED.fullmatch(line)]
            stop = draw.randint(min(len(lines), 1), len(lines))
            found += stop
            yield from reversed(lines[max(0, stop - 200) : stop])
        if not found:
            raise ValueError(
                "the filler holds no line of code: give documents with text, or none for the standard library"
            )


@functools.cache
def _test_part() -> tuple[Document, ...]:
    return tuple(stdlib("test"))


def _words(draw: random.Random, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3))] = None
    return list(words)


def _digits(draw: random.Random, count: int) -> str:
    return str(draw.randrange(10 ** (count - 1), 10**count))


def _enough(there: int, questions: int, what: str) -> None:
    if not 1 <= questions <= there:
        raise ValueError(f"{questions} questions about {there} {what}: ask at least 1 and at most as many as there are")
