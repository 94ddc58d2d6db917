"""A made-up run: the files of a finished run with four arms, and checks of its page."""

import base64
import hashlib
from html.parser import HTMLParser
import json
import random
import re

from gen_ssd.report.page import write_report

K = 4
NAMES = ("Mia", "Tom", "Ada", "Omar", "Lena", "Raj")
THINGS = ("apples", "marbles", "stickers", "books", "shells")
CONFIG = {
  "name": "bundled-sums",
  "stages": ["collect", "train", "evaluate", "report"],
  "seed": 7,
  "teacher": {"path": "bundled/teacher"},
  "student": {"path": "bundled/student"},
  "select": {
    "k": K,
    "c": 16,
    "slots": 32,
    "max_tokens": 96,
    "temperature": 0.8,
    "scorer": "perplexity",
    "threshold": 1.4,
  },
  "arms": {
    "standard_kd": {"k": 1},
    "random": {"scorer": "random"},
    "posthoc": {"c": 96},
    "gen_ssd": {},
  },
}
RESULTS = {
  "arms": {
    "standard_kd": {
      "accuracy": 0.672,
      "ci": [0.62, 0.722],
      "n": 320,
      "mean_tokens": 44.2,
      "truncated": 0.022,
      "student_nll": 0.61,
      "kept": 118,
      "problems": 150,
      "teacher_tokens": 6912,
      "pruned": 0.0,
    },
    "random": {
      "accuracy": 0.669,
      "ci": [0.616, 0.719],
      "n": 320,
      "mean_tokens": 43.7,
      "truncated": 0.019,
      "student_nll": 0.60,
      "kept": 117,
      "problems": 150,
      "teacher_tokens": 27648,
      "pruned": 0.0,
    },
    "posthoc": {
      "accuracy": 0.703,
      "ci": [0.653, 0.751],
      "n": 320,
      "mean_tokens": 39.5,
      "truncated": 0.012,
      "student_nll": 0.47,
      "kept": 124,
      "problems": 150,
      "teacher_tokens": 27511,
      "pruned": 0.0,
    },
    "gen_ssd": {
      "accuracy": 0.738,
      "ci": [0.688, 0.783],
      "n": 320,
      "mean_tokens": 36.1,
      "truncated": 0.009,
      "student_nll": 0.38,
      "kept": 126,
      "problems": 150,
      "teacher_tokens": 26804,
      "pruned": 0.053,
    },
  },
  "paired": {
    "random-standard_kd": {"difference": -0.003, "ci": [-0.04, 0.034]},
    "posthoc-standard_kd": {"difference": 0.031, "ci": [-0.006, 0.069]},
    "gen_ssd-standard_kd": {"difference": 0.066, "ci": [0.025, 0.106]},
    "gen_ssd-posthoc": {"difference": 0.035, "ci": [-0.001, 0.07]},
  },
}


def _steps(rng, total, add, who, what):
  """Ways in which a teacher might write `total + add`, from plain to laborious."""
  new = total + add
  return rng.sample(
    [
      f"{who} has {total} {what} and gets {add} more . {total} + {add} = {new} .",
      f"{total} + {add} = {new} .",
      f"So we add {add} to {total} , that is {total} + {add} = {new} {what} .",
      f"Adding , we see that {total} + {add} comes to {new} .",
      f"Let x be the {what} . Then x = {total} + {add} , hence x = {new} .",
      f"{add} + {total} = {new} , so now there are {new} {what} altogether .",
    ],
    K,
  )


def trace(rng, arm, number, branches, ease):
  who, what, total = rng.choice(NAMES), rng.choice(THINGS), rng.randrange(4, 30)
  adds = [rng.randrange(2, 20) for _ in range(rng.randrange(2, 5))]
  problem = (
    f"{who} has {total} {what} . "
    + " ".join(f"Then {who} gets {a} {what} from {rng.choice(NAMES)} ." for a in adds)
    + f" How many {what} does {who} have now ?"
  )
  uuid, chunks, lost_rows, texts = f"sums-{number:05d}", [], [], []
  prunes = arm == "gen_ssd" and number % 19 == 3
  wrong = number % 6 == 5
  for i, add in enumerate(adds):
    options = _steps(rng, total, add, who, what)[:branches]
    scores = [
      round(max(0.05, rng.gauss(ease, 0.28)) + 0.012 * len(o) * rng.random(), 4) for o in options
    ]
    if branches > 2 and rng.random() < 0.2:
      scores[0], options[0] = None, f"{total} + {total} + {total} + {total} + {total} + {total}"
    choice = min((j for j in range(branches) if scores[j] is not None), key=lambda j: scores[j])
    if arm == "random" and scores[choice := rng.randrange(branches)] is None:
      choice = 1
    if prunes and i == len(adds) - 1:
      choice, scores = -1, [s if s is None else round(s + 1.5, 4) for s in scores]
    kept = options[choice] if choice >= 0 else ""
    chunks.append(
      {
        "count": len(kept.split()),
        "text": kept,
        "choice": choice,
        "score": scores[choice] if choice >= 0 else None,
        "scores": scores,
        "resamples": 1 if choice < 0 else 0,
      }
    )
    lost_rows += [
      {
        "uuid": uuid,
        "attempt": 0,
        "chunk": i,
        "branch": j,
        "text": o,
        "count": len(o.split()),
        "score": s,
        "student_nll": s or 2.0,
      }
      for j, (o, s) in enumerate(zip(options, scores))
      if j != choice
    ]
    texts.append(kept)
    total += add
  if not prunes:
    said = total + 1 if wrong else total
    chunks.append(
      {
        "count": 5,
        "text": f"The answer is \\boxed{{{said}}} .",
        "choice": 0,
        "score": 0.04,
        "scores": [0.04] * branches,
        "resamples": 0,
      }
    )
    lost_rows += [
      {
        "uuid": uuid,
        "attempt": 0,
        "chunk": len(adds),
        "branch": j,
        "count": 5,
        "text": chunks[-1]["text"],
        "score": 0.04,
        "student_nll": 0.04,
      }
      for j in range(1, branches)
    ]
    texts.append(chunks[-1]["text"])
  count = sum(c["count"] for c in chunks)
  known = [c["score"] for c in chunks if c["score"] is not None]
  return {
    "uuid": uuid,
    "source": "sums",
    "split": "train",
    "level": len(adds),
    "attempt": 0,
    "problem": problem,
    "answer": str(total),
    "text": "\n".join(texts),
    "ids": [1] * count,
    "num_tokens": count,
    "given_tokens": 0,
    "stop": "pruned" if prunes else "ended",
    "verdict": "unverifiable" if prunes else "wrong" if wrong else "right",
    "student_nll": sum(known) / len(known) if known else None,
    "teacher_nll": 0.3,
    "chunks": chunks,
    "teacher_tokens": count * branches,
  }, lost_rows


def write_lines(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def make(path, problems=150):
  """A finished run with four arms, two shards of traces each."""
  (path / "config.json").write_text(json.dumps(CONFIG))
  (path / "results.json").write_text(json.dumps(RESULTS))
  for arm, branches, ease in (
    ("standard_kd", 1, 0.62),
    ("random", K, 0.6),
    ("posthoc", 1, 0.48),
    ("gen_ssd", K, 0.5),
  ):
    rng = random.Random(3)
    both = [trace(rng, arm, n, branches, ease) for n in range(problems)]
    folder = path / "traces" / (home := arm.replace("_", ""))
    write_lines(path / "arms" / arm / "traces.json", [{"collection": home}])
    for shard in range(2):
      write_lines(folder / f"traces-{shard:05d}.jsonl", [t for t, _ in both[shard::2]])
      lost_rows = [candidate for _, mine in both[shard::2] for candidate in mine]
      if lost_rows:
        write_lines(folder / f"candidates-{shard:05d}.jsonl", lost_rows)
  return path


def page_of(path):
  """The text of the drawn page of the run in the folder `path`, which is checked."""
  text = write_report(path).read_text(encoding="utf-8")
  _check(text)
  assert "&lt;wbr" not in text and "Markup(" not in text
  return text.replace("<wbr>", "")


def _check(text):
  """Tags balance, and nothing in the page can load or run anything but our own script."""
  stack, void = [], {"meta", "circle", "path", "polygon", "polyline", "wbr"}

  class Check(HTMLParser):
    def handle_starttag(self, tag, attrs):
      for name, value in attrs:
        assert not name.startswith("on") and name not in ("src", "href", "action", "xlink:href")
        assert "javascript:" not in (value or "")
      if tag not in void:
        stack.append(tag)

    def handle_startendtag(self, tag, attrs):
      pass

    def handle_endtag(self, tag):
      assert stack.pop() == tag

  Check().feed(text)
  assert not stack
  script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
  assert text.startswith("<!doctype html>")
  assert text.count("<script") == 1 and "url(" not in text and "@import" not in text
  assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", text)
