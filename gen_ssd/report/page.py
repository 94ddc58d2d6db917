"""One self-contained HTML page per run: arms, intervals, distributions, branch trees."""

import base64
import datetime
import hashlib
import importlib.metadata
import json
import math
from pathlib import Path
import platform

from gen_ssd.report import figures
from gen_ssd.report.figures import escape
from gen_ssd.report.figures import fixed
from gen_ssd.report.style import SCRIPT
from gen_ssd.report.style import STYLE

KNOWN_ARMS = ("standard_kd", "random", "posthoc", "gen_ssd")  # these keep their colour in every run


def write_report(workdir, trees=6) -> Path:
  """Draws `workdir/report.html` from what the run has written so far and returns its path.

  `trees` is the number of branch trees to show. Raises OSError when config.json cannot be read and
  ValueError when it is not a JSON object; any other missing or broken file is named in the footer.
  """
  workdir, notes = Path(workdir), []
  config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  if not isinstance(config, dict):
    raise ValueError(f"{workdir / 'config.json'}: expected a JSON object, got {config!r:.80}")
  results = _dict(_read(workdir / "results.json", notes))
  folders = [p for p in sorted(workdir.glob("arms/*")) if p.is_dir()]
  found = {p.name: _collected(p, _home(p, notes), trees, notes) for p in folders}
  names = {**_dict(results.get("arms")), **found, **_dict(config.get("arms"))}
  names = sorted(names, key=lambda a: (KNOWN_ARMS.index(a) if a in KNOWN_ARMS else 99, a))
  extra = [a for a in names if a not in KNOWN_ARMS]
  shared = _dict(config.get("select"))  # arms are shown by what they change
  arms = [
    {
      "name": a,
      "look": (KNOWN_ARMS + tuple(extra)).index(a),
      "found": found.get(a),
      "given": _dict(_dict(results.get("arms")).get(a)),
      "config": {
        k: v
        for k, v in _dict(_dict(config.get("arms")).get(a)).items()
        if k not in shared or shared[k] != v
      },
    }
    for a in names
  ]
  body = [
    _heading(config, arms),
    _table(arms),
    _accuracy(arms, results),
    _distributions(arms),
    _trees(workdir, arms, _dict(config.get("select")), trees, notes),
    _footer(config, notes),
  ]
  script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
  name = escape(config.get("name", "Gen-SSD run"))
  page = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<meta name="color-scheme" content="light dark"><title>{name}</title>'
    f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main>"
    f"<script>{SCRIPT}</script></body></html>\n"
  )
  path, part = workdir / "report.html", workdir / "report.html.part"
  part.write_bytes(page.encode("utf-8", errors="replace"))  # JSON may hold lone surrogates
  return part.replace(path)


# Reading. Everything under workdir is untrusted and may be half-written.


def _dict(x):
  return x if isinstance(x, dict) else {}


def _number(x):
  """x as a float, or None for anything that is not a finite number."""
  if isinstance(x, bool) or not isinstance(x, (int, float)):
    return None
  return float(x) if abs(x) < 1e300 else None


def _numbers(x):
  """The numbers of a list; none of anything else."""
  return [n for v in x if (n := _number(v)) is not None] if isinstance(x, list) else []


def _pair(x):
  """A (low, high) pair of numbers, or None."""
  return tuple(_numbers(x)) if len(_numbers(x)) == 2 == len(x) else None


def _read(path, notes):
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError):
    notes.append(f"{path.name}: not readable as JSON, left out")


def _records(folder, pattern, notes):
  """Yields each line of each shard as a dict; broken lines are skipped and noted."""
  for path in sorted(folder.glob(pattern)):
    bad, where = 0, "/".join(path.parts[-3:])
    try:
      with path.open("rb") as lines:
        for line in lines:
          try:
            if line.strip():
              yield dict(json.loads(line))
          except (ValueError, TypeError, RecursionError):
            bad += 1
    except OSError as error:
      notes.append(f"{where}: {error.strerror}")
    if bad:
      notes.append(f"{where}: {bad} broken line{'s' * (bad > 1)} skipped")


def _round(chunk):
  scores, choice = [_number(s) for s in chunk.get("scores") or []], int(chunk.get("choice", -1))
  if not -1 <= choice < max(len(scores), 1):
    raise ValueError(f"choice {choice} of {len(scores)} candidates")
  return {
    "text": str(chunk.get("text", "")),
    "count": _number(chunk.get("count")),
    "scores": scores,
    "choice": choice,
    "resamples": _number(chunk.get("resamples")),
  }


def _spread(trace):
  """How much the student's scores differ within a round, mean over rounds; shorter trees first."""
  spreads = []
  for r in trace["rounds"]:
    known = [s for s in r["scores"] if s is not None]
    spreads.append(max(known) - min(known) if len(known) > 1 else 0.0)
  return (1.0 if 2 <= len(spreads) <= figures.LONG else 0.4) * sum(spreads) / max(len(spreads), 1)


def _home(arm, notes):
  """Folder of an arm's traces, which other arms may share; one that is not there without any."""
  home = _dict(_read(arm / "traces.json", notes)).get("collection")
  if not isinstance(home, str) or not home.isalnum():
    return arm / "traces"
  return arm.parent.parent / "traces" / home


def _collected(arm, home, trees, notes):
  """Totals of one arm's traces, numbers of its kept ones, and a few traces worth drawing."""
  kept = _read(arm / "kept.json", notes)
  if kept is not None:
    try:
      kept = {(str(uuid), int(attempt)) for uuid, attempt in kept}
    except (TypeError, ValueError, OverflowError):
      notes.append(f"{arm.name}/kept.json: not pairs of uuid and attempt; right traces are taken")
      kept = None
  out = {"traces": 0, "kept": 0, "pruned": 0, "teacher_tokens": None, "nll": [], "length": []}
  seen, problems, best, odd = set(), set(), {}, 0
  for r in _records(home, "traces-*.jsonl", notes):
    try:
      key, rounds = (str(r["uuid"]), int(r.get("attempt", 0))), list(map(_round, r["chunks"]))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
      odd += 1
      continue
    if key in seen:  # a resumed run may write a trace twice
      continue
    seen.add(key)
    problems.add(key[0])
    verdict, nll, length, spent = (
      r.get("verdict"),
      _number(r.get("student_nll")),
      _number(r.get("num_tokens")),
      _number(r.get("teacher_tokens")),
    )
    outcome = "pruned" if r.get("stop") == "pruned" else str(verdict)
    out["traces"] += 1
    out["pruned"] += outcome == "pruned"
    if spent is not None:
      out["teacher_tokens"] = (out["teacher_tokens"] or 0) + spent
    if key in kept if kept is not None else verdict == "right":
      out["kept"] += 1
      out["nll"] += [nll] * (nll is not None)
      out["length"] += [length] * (length is not None)
    if any(len(c["scores"]) > 1 for c in rounds):
      trace = {
        "key": key,
        "rounds": rounds,
        "outcome": outcome,
        "stop": r.get("stop"),
        "nll": nll,
        "length": length,
        **{k: r.get(k) for k in ("problem", "answer", "level", "source")},
      }
      trace["spread"] = _spread(trace)
      group = [t for t in best.setdefault(outcome, []) if t["key"][0] != key[0]]
      rival = [t for t in best[outcome] if t["key"][0] == key[0]]
      group.append(max([*rival, trace], key=lambda t: t["spread"]))
      best[outcome] = sorted(group, key=lambda t: -t["spread"])[: max(trees, 1)]
  if odd:
    notes.append(f"{arm.name}: {odd} trace{'s' * (odd > 1)} without usable uuid or chunks skipped")
  return {**out, "problems": len(problems), "best": best}


# Words and numbers.


def _heading(config, arms):
  select = _dict(config.get("select"))
  who = [
    "/".join(str(_dict(config.get(role)).get("path", role)).rstrip("/").split("/")[-2:])
    for role in ("teacher", "student")
  ]
  sizes = [_number(select.get(k)) for k in ("k", "c")]
  k, c = (f"{x:.0f}" if x else w for x, w in zip(sizes, ("several", "a few")))
  scorer = select.get("scorer", "perplexity")
  facts = [
    ("teacher", who[0]),
    ("student", who[1]),
    ("candidates K", k),
    ("chunk C, tokens", c),
    ("score", scorer),
    *(
      (n.replace("_", " "), select[n])
      for n in ("temperature", "slots", "max_tokens")
      if n in select
    ),
    ("arms", len(arms)),
  ]
  cells = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts)
  teacher, student, k, c, scorer = map(escape, (*who, k, c, scorer))
  return (
    f"<header><p class=over>Gen-SSD run</p><h1>{escape(config.get('name', 'unnamed'))}</h1>"
    f"<p class=lead>The teacher <b>{teacher}</b> wrote chains of thought in chunks of at "
    f"most {c} tokens. Each round it proposed {k} candidates; the student <b>{student}</b> "
    f"scored them by {scorer}, the most learnable one was kept and the rest were dropped. "
    f"The arms differ in how that choice is made.</p><dl class=facts>{cells}</dl></header>"
  )


def _ranking(arms):
  """(highest arm or None, whether it stands clear of every other interval, a sentence)."""
  ranked = [
    (acc, a, _pair(a["given"].get("ci")))
    for a in arms
    if (acc := _number(a["given"].get("accuracy"))) is not None
  ]
  ranked.sort(key=lambda x: -x[0])
  if not ranked:
    return None, False, "No accuracy has been measured yet."
  acc, top, ci = ranked[0]
  name = f"<b>{escape(top['name'])}</b>"
  if len(ranked) == 1:
    return top, False, f"Only {name} has been evaluated so far: nothing to compare it with yet."
  near = [a["name"] for _, a, other in ranked[1:] if not (ci and other and ci[0] > other[1])]
  if not near:
    return top, True, f"{name} is best: its 95% interval lies above that of every other arm."
  rest = ", ".join(f"<b>{escape(n)}</b>" for n in near)
  return (
    top,
    False,
    (
      f"{name} has the highest accuracy ({fixed(acc, 1, 100, '%')}), but the "
      f"intervals do not separate it from {rest}: by these intervals the arms "
      "can’t be told apart. Paired differences, where shown, are the sharper test."
    ),
  )


def _table(arms):
  top, clear, sentence = _ranking(arms)
  rows, counted = [], False
  for arm in arms:
    found = arm["found"] if arm["found"] and arm["found"]["traces"] else {}
    given = {name: _number(x) for name, x in arm["given"].items()}
    given = {name: x for name, x in given.items() if x is not None}
    total = {name: found.get(name) for name in ("kept", "problems", "teacher_tokens")}
    total["pruned"] = found["pruned"] / found["traces"] if found else None
    both, ci = {**total, **given}, _pair(arm["given"].get("ci"))
    stars = {
      n: "<span class=note>*</span>" if n not in given and total[n] is not None else ""
      for n in total
    }
    counted = counted or any(stars.values())
    cells = [
      f"{_badge(clear) if arm is top else ''}<b>{fixed(both.get('accuracy'), 1, 100, '%')}</b>",
      f"<span class=ci>[{ci[0] * 100:.1f}, {ci[1] * 100:.1f}]</span>" if ci else "–",
      fixed(both.get("n"), 0),
      fixed(both.get("mean_tokens"), 1),
      fixed(both.get("truncated"), 1, 100, "%"),
      fixed(both.get("student_nll"), 3),
      f"{fixed(both['kept'], 0)} / {fixed(both['problems'], 0)}".replace("– / –", "–")
      + stars["kept"],
      fixed(both["teacher_tokens"], 0) + stars["teacher_tokens"],
      fixed(both["pruned"], 1, 100, "%") + stars["pruned"],
    ]
    changed = ", ".join(
      f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in arm["config"].items()
    )
    changed = f"<small>{escape(changed)}</small>" if changed else ""
    rows.append(
      f"<tr{' class=top' * (arm is top)}><th scope=row>{figures.key(arm['look'])} "
      f"{escape(arm['name']).replace('_', '_<wbr>')}{changed}</th>"
      + "".join(f"<td>{c}</td>" for c in cells)
      + "</tr>"
    )
  heads = (
    "arm",
    "accuracy",
    "95% interval",
    "n",
    "mean tokens",
    "truncated",
    "student nll",
    "kept / problems",
    "teacher tokens",
    "pruned",
  )
  foot = "<p class=hint>* counted from the trace files written so far.</p>" if counted else ""
  return (
    f'<section><h2>Arms</h2><p class="verdict{" clear" * clear}">{sentence}</p>'
    '<div class=scroll tabindex=0 role=region aria-label="Table of arms"><table><thead><tr>'
    + "".join(f"<th scope=col>{h}</th>" for h in heads)
    + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{foot}</section>"
  )


def _badge(clear):
  return f"<em class=badge>{'★ best' if clear else '▲ highest'}</em>"


def _accuracy(arms, results):
  drawn, looks = [], {a["name"]: a["look"] for a in arms}
  tests = {
    name: _dict(_dict(test).get("arms")) for name, test in _dict(results.get("tests")).items()
  }
  for test, found in {"": {a["name"]: a["given"] for a in arms}, **tests}.items():
    rows, most = [], 0
    for name, look in looks.items():
      given = _dict(found.get(name))
      seeds, acc = _numbers(given.get("seeds")), _number(given.get("accuracy"))
      most = max(most, len(seeds))
      if acc is not None:
        rows.append(
          (
            look,
            name,
            acc,
            _pair(given.get("ci")),
            fixed(acc, 1, 100, "%"),
            seeds if len(seeds) > 1 else [],
          )
        )
    if rows:
      n = max((_number(_dict(g).get("n")) or 0 for g in found.values()), default=0)
      title = (
        f"Accuracy on {test}, {n:.0f} problems"
        if test
        else "Accuracy" + " on all tests" * bool(tests)
      )
      hint = "small rings: training seeds; " * (most > 1) + "whiskers: 95% interval; "
      drawn.append(
        figures.intervals(
          title, hint + "the axis does not start at 0", rows, lambda v: f"{v * 100:.4g}%"
        )
      )
  paired = _dict(results.get("paired"))
  rows = []
  for key, value in sorted(paired.items(), key=lambda x: not x[0].endswith("-standard_kd")):
    names = next(((a, b) for a in looks for b in looks if key == f"{a}-{b}"), None)
    mid, ci = _number(_dict(value).get("difference")), _pair(_dict(value).get("ci"))
    if mid is not None:
      side = "" if not ci else "above 0" if ci[0] > 0 else "below 0" if ci[1] < 0 else "includes 0"
      rows.append(
        (
          looks[names[0]] if names else 0,
          " − ".join(names) if names else key,
          mid,
          ci,
          f"{mid * 100:+.1f} {side}".replace("-", "−"),
        )
      )
  if rows:
    drawn.append(
      figures.intervals(
        "Paired difference in accuracy",
        "percentage points, same problems; hollow: includes 0",
        rows,
        lambda v: f"{v * 100:+.3g}".replace("-", "−") if v else "0",
        zero=True,
      )
    )
  return (
    f"<section><h2>Accuracy</h2><div class=figures>{''.join(map(figures.page, drawn))}</div>"
    "</section>"
  ) * bool(drawn)


def _distributions(arms):
  drawn = []
  for name, title, hint, whole in (
    (
      "nll",
      "Student perplexity",
      "nats per token, mean over each kept trace; left is easier for the student",
      False,
    ),
    ("length", "Trace length", "tokens of each kept trace", True),
  ):
    rows = [
      (a["look"], a["name"], a["found"][name]) for a in arms if a["found"] and a["found"][name]
    ]
    if rows:
      show = (lambda v: f"{v:,.0f}") if whole else (lambda v: f"{v:.3g}")
      tell = (
        (lambda v: f"{v:,.5g} tokens")
        if whole
        else (lambda v: f"{v:.2f}, perplexity {math.exp(min(v, 99)):.2f}")
      )
      drawn.append(figures.ridges(title, hint, rows, show, tell, whole))
  return (
    "<section><h2>What the student is taught</h2><p class=hint>Bars: share of an arm’s kept "
    "traces, same scale for every arm. Line with a mark: median.</p><div class=figures>"
    f"{''.join(map(figures.page, drawn))}</div></section>"
  ) * bool(drawn)


def _picked(best, count):
  """Up to `count` traces: one pruned, one wrong, the others those whose scores differ most."""
  ranked = {o: list(group) for o, group in best.items()}
  chosen = [ranked[o].pop(0) for o in ("wrong", "pruned") if ranked.get(o)][: max(count - 1, 0)]
  for o in ("right", *ranked):
    while ranked.get(o) and len(chosen) < count:
      chosen.append(ranked[o].pop(0))
  order = list(figures.OUTCOMES)
  return sorted(chosen, key=lambda t: order.index(t["outcome"]) if t["outcome"] in order else 9)


def _trees(workdir, arms, select, count, notes):
  branched = [a for a in arms if a["found"] and a["found"]["best"]]
  branched.sort(key=lambda a: a["name"] != "gen_ssd")
  if not branched or count < 1:
    return ""
  arm = branched[0]
  chosen = _picked(arm["found"]["best"], count)
  losers = {t["key"]: {} for t in chosen}
  for r in _records(_home(workdir / "arms" / arm["name"], notes), "candidates-*.jsonl", notes):
    try:
      mine = losers.get((str(r["uuid"]), int(r.get("attempt", 0))))
      if mine is not None:
        mine[int(r["chunk"]), int(r["branch"])] = str(r["text"]), _number(r.get("count"))
    except (KeyError, TypeError, ValueError, OverflowError):
      continue
  cuts = figures.score_bins(
    [s for t in chosen for r in t["rounds"] for s in r["scores"] if s is not None]
  )
  kinds = list(dict.fromkeys(t["outcome"] for t in chosen if t["outcome"] in figures.OUTCOMES))
  buttons = [
    ("fold", "open", "Unfold all"),
    ("fold", "shut", "Fold all"),
    ("only", "all", "All"),
    *(("only", k, figures.OUTCOMES[k]) for k in kinds),
  ]
  drawn = "".join(f'<button type=button data-{a}="{b}">{c}</button>' for a, b, c in buttons)
  scorer = {**select, **arm["config"]}.get("scorer", "perplexity")
  return (
    f"<section><h2>How the student chose</h2><p class=hint>{figures.key(arm['look'])} "
    f"{escape(arm['name'])}: traces picked because their scores differ most, with a pruned "
    "and a wrong one where there are any. They are not a random sample.</p>"
    f"{figures.legend(cuts, scorer)}<div class=tools hidden>{drawn}</div>"
    + "".join(figures.tree(i + 1, t, losers[t["key"]], cuts) for i, t in enumerate(chosen))
    + "</section>"
  )


def _versions():
  names = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
  known = [f"{n} {names[n]}" for n in ("gen-ssd", "jax", "numpy") if n in names]
  return ", ".join([f"python {platform.python_version()}", *known])


def _footer(config, notes):
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  left = "".join(f"<li>{escape(n)}</li>" for n in dict.fromkeys(notes))
  left = f"<p><b>Left out of this page:</b></p><ul>{left}</ul>" if left else ""
  config = escape(json.dumps(config, indent=1, ensure_ascii=False))
  return (
    f"<footer>{left}<p>Drawn {now} from config.json, results.json and arms/ by "
    "<code>python -c &quot;from gen_ssd.report import write_report; "
    f"write_report('WORKDIR')&quot;</code>. Versions here: {_versions()}.</p>"
    f"<details><summary>The whole config</summary><pre>{config}</pre></details></footer>"
  )
