"""Automatic interpretation with planted rules: the right explanation predicts, another one does not."""

import doctest
import http.server
import importlib
import json
import random
import threading

import pytest
import torch
from tiny import build

from fewer.layout import Codes
from fewer.measure.explainers import Endpoint, Local, Rules, Talker
from fewer.measure.interpretation import Example, Shown, detection, fuzzing, interpret, shown, shuffled_control

STEMS = ["walk", "talk", "jump", "read", "sing", "cook", "help", "look", "turn", "play"]
WORDS = STEMS + [s + "ing" for s in STEMS] + [s + "ed" for s in STEMS] + [str(n) for n in range(10, 100, 9)]
RULES = {  # what wakes each planted latent
    0: lambda w: w.endswith("ing"),
    1: lambda w: w in ("jump", "cooked"),
    2: lambda w: w.isnumeric(),
    3: lambda w: w.startswith("pl"),
}


@pytest.fixture(scope="module")
def planted():
    """Codes of 4 latents over windows of random words, most of them dull."""
    draw = random.Random(0)
    dull = [f"w{i}" for i in range(60)]
    ids = torch.tensor(
        [
            [draw.randrange(40) if draw.random() < 0.06 else 40 + draw.randrange(60) for _ in range(64)]
            for _ in range(300)
        ]
    )
    words = [" " + w for w in WORDS + dull]
    z = torch.tensor(
        [[[float(rule(words[i].strip())) for rule in RULES.values()] for i in row] for row in ids.tolist()]
    )
    z = z.view(-1, 4) * (1 + torch.rand(300 * 64, 1, generator=torch.Generator().manual_seed(0)))
    codes = Codes.pack(z, z != 0)
    return {n: shown(codes, ids, words.__getitem__, n, count=100, context=8) for n in RULES}


@pytest.mark.parametrize("file", ["explainers", "interpretation"])
def test_examples_in_docstrings_hold(file):
    module = importlib.import_module(f"fewer.measure.{file}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_right_explanation_predicts_and_a_shuffled_one_does_not(planted):
    found = {n: interpret(Rules(), seen) for n, seen in planted.items()}
    assert {n: f.explanation for n, f in found.items()} == {
        0: "ends: ing",
        1: "tokens: cooked | jump",
        2: "number",
        3: "begins: pla",
    }
    for one in found.values():
        assert one.detection.value >= 0.95 and one.fuzzing.value >= 0.95 and one.detection.higher_is_better
    chance = shuffled_control(Rules(), planted, {n: f.explanation for n, f in found.items()})
    assert 0.45 <= chance.value <= 0.55
    for n, seen in planted.items():
        assert fuzzing(Rules(), found[(n + 2) % 4].explanation, seen).value == pytest.approx(0.5, abs=0.08)


def test_texts_that_are_shown_are_those_where_the_latent_speaks(planted):
    for n, seen in planted.items():
        assert len(seen.silent) == 100 and 20 < len(seen.active) <= 100
        assert all(any(e.loud) for e in seen.active) and not any(any(e.loud) for e in seen.silent)
        assert all(bool(x) == RULES[n](t.strip()) for e in seen.active for t, x in zip(e.tokens, e.loud, strict=True))
    peaks = sorted(max(e.loud) for e in planted[0].active)
    assert peaks[0] < 1.1 and peaks[-1] > 1.9, "from the quietest to the loudest"
    with pytest.raises(ValueError, match="at least 4 and 2"):
        interpret(Rules(), Shown(planted[0].active[:3], planted[0].silent))


class Scripted(Talker):
    """Answers votes by looking for a word in each listed text, and remembers what it was asked."""

    def __init__(self, word, mute=False):
        self.word, self.mute, self.asked = word, mute, []

    def say(self, prompt):
        self.asked.append(prompt)
        if "EXPLANATION:" in prompt:
            return f"Thinking ...\nEXPLANATION: the word {self.word}\n"
        texts = [line for line in prompt.split("\n\n")[2].splitlines()]
        return "no idea" if self.mute else f"Votes: {json.dumps([int(self.word in t) for t in texts])}"


def examples(n=12):
    on = tuple(Example((" a", " cat", f" {i}"), (0.0, 1.0, 0.0)) for i in range(n))
    return Shown(on, tuple(Example((" a", " dog", f" {i}"), (0.0, 0.0, 0.0)) for i in range(n)))


def test_a_talker_is_shown_marks_to_explain_and_none_to_detect():
    one = Scripted("cat")
    found = interpret(one, examples())
    assert found.explanation == "the word cat" and found.detection.value == 1
    assert "<< cat>>" in one.asked[0] and all("<<" not in p for p in one.asked if "contain what" in p)
    marked = Scripted("<< cat>>")
    assert fuzzing(marked, "x", examples()).value == 1 and detection(Scripted("a"), "x", examples()).value == 0.5
    with pytest.raises(ValueError, match="24 answers 0 can be read"):
        detection(Scripted("cat", mute=True), "x", examples())


@pytest.fixture
def served():
    """An endpoint that answers what it is told to, and keeps what it was sent."""
    sent, answers = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((self.path, self.headers.get("Authorization"), body))
            code, text = answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", sent, answers
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_is_asked_in_openais_form(served):
    url, sent, answers = served
    one = Endpoint(url, "mine", key="secret")
    answers += [(200, json.dumps({"choices": [{"message": {"content": "EXPLANATION: cats"}}]}))]
    assert one.explain(examples().active[:2]) == "cats" and "secret" not in repr(one)
    (path, key, body) = sent[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "mine"
    assert "<< cat>>" in body["messages"][0]["content"] and body["temperature"] == 0


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((404, "{}"), "answered 404 .* is 'mine' served there"),
        ((200, "<html>"), "did not answer in JSON"),
        ((200, '{"choices": []}'), r"no text at choices\[0\]"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), r"no text at choices\[0\]"),
        ((200, "[]"), r"no text at choices\[0\]"),
    ],
)
def test_an_endpoint_that_answers_otherwise_is_named(served, answer, match):
    url, _, answers = served
    answers.append(answer)
    with pytest.raises(ValueError, match=f"{url}/chat/completions.*{match}|{match}"):
        Endpoint(url, "mine").say("hello")


def test_an_endpoint_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9", "mine", timeout=2).say("hello")
    with pytest.raises(ValueError, match="write an address"):
        Endpoint("file:///etc/passwd", "mine")


def test_a_local_model_answers_with_its_own_greedy_words():
    model = build("llama")

    class Letters:
        chat_template = None

        def __call__(self, text, verbose=True):
            return {"input_ids": [3 + ord(c) % 90 for c in text]}

        def decode(self, ids, skip_special_tokens=True):
            return " ".join(str(i) for i in ids.tolist())

    said = Local(model, Letters(), tokens=4).say("hello")
    ids = torch.tensor([Letters()("hello")["input_ids"]])
    for _ in range(4):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert said.split() == [str(i) for i in ids[0, 5:].tolist()][: len(said.split())] and said
    with pytest.raises(ValueError, match="do not fit the model's 64"):
        Local(model, Letters(), tokens=4).say("x" * 61)
