"""A dictionary learnt for the model's predictions beside one learnt for its site: KL, cross entropy and variance at equal L0 and tokens.

`python -m bench.features.end_to_end` learns and judges them on the bundled model, into results/end_to_end.json.
"""

import argparse
import json
import pathlib
import platform
import time

import torch

HERE = pathlib.Path(__file__).parent
SITE, LENGTH, WINDOWS = "model.layers.4", 128, 4
GENTLE = 5e-4  # the rate of what was learnt already: a sixth of the usual
KEYS = ("l0", "explained", "delta_ce", "kl", "kl_low", "kl_high", "dead")


def text(tokens: int, test: int):
    from fewer.data import corpus, every_window
    from fewer.models import locate, tokenizer_of

    tokenizer = tokenizer_of(locate("bundled"))
    seen = [*corpus("stdlib", "calibration"), *corpus("stdlib", "validation")]
    ids = every_window(seen, tokenizer, LENGTH, tokens // LENGTH, 0)
    unseen = every_window(corpus("stdlib", "test"), tokenizer, LENGTH, test, 0)
    return ids, unseen, frozenset(tokenizer.all_special_ids)


def measure(steps: int, latents: int, k: int, device: str, test: int, out: pathlib.Path) -> None:
    from fewer.core import budget
    from fewer.dictionaries.judge import judge
    from fewer.features.top_k import TopK
    from fewer.models import Tap, open_model
    from fewer.train import Downstream, Kl, Lesson, Live, Pupil, Windows, learn, learn_through

    model, _ = open_model("bundled", device)
    ids, unseen, leave = text(steps * LENGTH * WINDOWS * 2, test)
    pupil = Pupil(TopK(), budget(str(k)), latents, 0, (SITE,))
    width = model.config.hidden_size
    live, windows = Live(model, [Tap(SITE)], ids, LENGTH * WINDOWS, leave), Windows(ids, WINDOWS)
    first, whole, sites = steps - steps // 4, Lesson(steps), {SITE: width}
    later = tuple(f"model.layers.{i}" for i in range(5, model.config.num_hidden_layers))

    def after_local(aim):
        (start,) = learn([pupil], live, Lesson(first), sites)
        return learn_through(pupil, model, windows, aim, Lesson(steps - first, GENTLE), start, leave)

    ways = {
        "local": lambda: learn([pupil], live, whole, sites)[0],
        "three quarters local, then end to end": lambda: after_local(Kl()),
        "three quarters local, then end to end and downstream": lambda: after_local(Downstream(later)),
        "end to end from nothing": lambda: learn_through(pupil, model, windows, lesson=whole, leave=leave),
    }
    rows: list[dict] = []
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    about = {"model": "bundled", "site": SITE, "latents": latents, "k": k, "steps": steps}
    about |= {"tokens": steps * LENGTH * WINDOWS, "test_tokens": unseen.numel(), "device": where}
    for name, way in ways.items():
        began = time.process_time()
        found = judge(way(), model, unseen, leave, batch=4, controls=False)[0]
        spent = {"cpu_s": round(time.process_time() - began, 1)}
        rows.append({"name": name} | {key: found[key] for key in KEYS} | spent)
        print(rows[-1], flush=True)
        out.write_text(json.dumps({"about": about | {"torch": torch.__version__}, "rows": rows}, indent=1) + "\n")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--latents", type=int, default=1024)
    ask.add_argument("--k", type=int, default=16)
    ask.add_argument("--test", type=int, default=64, help="windows of text that no dictionary has seen")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    a = ask.parse_args()
    measure(a.steps, a.latents, a.k, a.device, a.test, a.out / "end_to_end.json")


if __name__ == "__main__":
    main()
