"""Who puts into words what a latent stands for: a model behind an endpoint, a local model, or plain rules."""

import json
import re
import urllib.error
import urllib.request
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .interpretation import Example, Explainer, Marked, Vote

TASK = """Some words in these texts are marked <<like this>>. Say in one short sentence what the marked words, or what leads
to them, have in common. Begin your answer with EXPLANATION:"""
DETECT = "Which of these texts contain what the explanation describes?"
FUZZ = "In which of these texts are the words marked <<like this>> what the explanation describes?"
FORM = "Answer only with a JSON list that holds, for each of the {n} texts in order, 1 for yes or 0 for no."


class Talker(Explainer):
    """Explains and votes by being asked in words."""

    @abstractmethod
    def say(self, prompt: str) -> str:
        """The answer to one prompt."""

    def explain(self, examples: Sequence[Example]) -> str:
        answer = self.say(f"{TASK}\n\n{_listed([e.marked() for e in examples])}")
        lines = [line for line in answer.rpartition("EXPLANATION:")[2].splitlines() if line.strip()]
        return lines[0].strip() if lines else ""

    def detect(self, explanation: str, texts: Sequence[tuple[str, ...]]) -> list[Vote]:
        return self._votes(explanation, DETECT, ["".join(tokens) for tokens in texts])

    def fuzz(self, explanation: str, texts: Sequence[Marked]) -> list[Vote]:
        return self._votes(explanation, FUZZ, [str(m) for m in texts])

    def _votes(self, explanation: str, question: str, texts: Sequence[str], at_once: int = 5) -> list[Vote]:
        votes: list[Vote] = []
        for i in range(0, len(texts), at_once):
            some = texts[i : i + at_once]
            form = FORM.format(n=len(some))
            votes += read_votes(
                self.say(f"Explanation: {explanation}\n\n{question} {form}\n\n{_listed(some)}"), len(some)
            )
        return votes


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"{i}. {text!r}" for i, text in enumerate(texts, 1))


def read_votes(answer: str, n: int) -> list[Vote]:
    """The last list of `n` zeros and ones in an answer; None for each if there is none.

    >>> read_votes("Let me see: [1, 0, 1]", 3), read_votes("I cannot say.", 2)
    ([True, False, True], [None, None])
    """
    lists = [re.findall("[01]", found) for found in re.findall(r"\[[01,\s]*\]", answer)]
    fitting = [votes for votes in lists if len(votes) == n]
    return [v == "1" for v in fitting[-1]] if fitting else [None] * n


@dataclass(frozen=True)
class Endpoint(Talker):
    """A chat model behind `url`/chat/completions in OpenAI's form: vLLM, llama.cpp, Ollama, hosted ones.

    `url` ends before that, as in "http://localhost:8000/v1". `key` is sent as a bearer token and never printed.
    ValueError: an address that is not http(s), no answer, or an answer in another form, naming the address.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    tokens: int = 200
    timeout: float | int = 120

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.url!r}: write an address such as 'http://localhost:8000/v1'")

    def say(self, prompt: str) -> str:
        where = self.url.rstrip("/") + "/chat/completions"
        told = {"model": self.model, "temperature": 0, "max_tokens": self.tokens}
        told["messages"] = [{"role": "user", "content": prompt}]
        head = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(where, json.dumps(told).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as e:
            raise ValueError(f"endpoint {where} answered {e.code} {e.reason}: is {self.model!r} served there?") from e
        except OSError as e:
            raise ValueError(f"endpoint {where} cannot be reached: {e}") from e
        except ValueError as e:
            raise ValueError(f"endpoint {where} did not answer in JSON: {e}") from e
        try:
            text = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"endpoint {where}: the answer has no text at choices[0].message.content")
        return text


@dataclass(frozen=True, eq=False)
class Local(Talker):
    """A causal model of transformers with its tokenizer, greedily; in chat form if the tokenizer has one."""

    model: Any
    tokenizer: Any
    tokens: int = 100

    def say(self, prompt: str) -> str:
        text = prompt
        if getattr(self.tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer(text, verbose=False)["input_ids"]], device=self.model.device)
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and ids.shape[1] + self.tokens > most:
            raise ValueError(
                f"a prompt of {ids.shape[1]} tokens and an answer of {self.tokens} do not fit the model's {most}:"
                " give fewer or shorter examples"
            )
        with torch.no_grad():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.tokens, do_sample=False, pad_token_id=0
            )
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@dataclass(frozen=True)
class Rules(Explainer):
    """No model at all, for tests: the rule, of a few kinds, that best tells loud tokens from quiet ones.

    `tokens: a | b` (at most `most` of them), `begins: x`, `ends: x`, `number`.

    >>> e = Example(("I", " ran", " home", " and", " ran"), (0.0, 2.0, 0.0, 0.0, 1.0))
    >>> Rules().explain([e]), Rules().detect("tokens: ran", [(" we", " ran"), (" he",)])
    ('tokens: ran', [True, False])
    """

    most: int = 8

    def explain(self, examples: Sequence[Example]) -> str:
        seen = [(t.strip(), loud > 0) for e in examples for t, loud in zip(e.tokens, e.loud, strict=True)]
        loud = [t for t, on in seen if on]
        often = sorted(set(loud), key=lambda t: (-loud.count(t), t))[: self.most]
        rules = ["number", "tokens: " + " | ".join(often)]
        rules += sorted({f"{kind}: {part}" for t in often for kind, part in _parts(t)})
        return max(
            rules, key=lambda rule: (_balance(rule, seen), -rule.count(" | "), len(rule))
        )  # few words, and exact

    def detect(self, explanation: str, texts: Sequence[tuple[str, ...]]) -> list[Vote]:
        return [any(_fits(explanation, t.strip()) for t in tokens) for tokens in texts]

    def fuzz(self, explanation: str, texts: Sequence[Marked]) -> list[Vote]:
        marked = [[t.strip() for t, on in zip(m.tokens, m.marks, strict=True) if on] for m in texts]
        return [2 * sum(_fits(explanation, t) for t in words) > len(words) for words in marked]


def _parts(token: str) -> list[tuple[str, str]]:
    return [
        (kind, part)
        for n in (1, 2, 3)
        if n < len(token)
        for kind, part in (("begins", token[:n]), ("ends", token[-n:]))
    ]


def _fits(rule: str, token: str) -> bool:
    kind, _, what = rule.partition(": ")
    tests = {
        "tokens": lambda: token in what.split(" | "),
        "begins": lambda: token.startswith(what),
        "ends": lambda: token.endswith(what),
        "number": token.isnumeric,
    }
    return bool(token) and kind in tests and tests[kind]()


def _balance(rule: str, seen: Sequence[tuple[str, bool]]) -> float:
    said = [(_fits(rule, t), on) for t, on in seen]
    rates = [
        sum(s == on for s, on in said if on is kind) / max(1, sum(on is kind for _, on in said))
        for kind in (True, False)
    ]
    return sum(rates) / 2
