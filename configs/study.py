"""The study of RESULTS.md with the bundled models: does selection during generation matter?

`gen-ssd sweep --config=configs/study.py --workdir=runs/study` does all RUNS and compares them;
`gen-ssd run --config=configs/study.py:NAME` does one of them, or `quick`, a smaller version of arms.
"""

from configs import quickstart
from gen_ssd.errors import UserError

RUNS = (
  "arms",
  "sweeps",
  "cold_start=40",
  "cold_start=320",
  "student=small",
  "student=large",
)

WHOLE = dict(granularity="trace", threshold="off")  # the best of K complete traces
ARMS = {
  "standard_kd": dict(k=1, threshold="off"),
  "standard_kd_all": dict(k=1, threshold="off", attempts=4),
  "unverified_kd": dict(k=1, threshold="off", keep="all"),
  "rejection": dict(scorer="random", **WHOLE),
  "random": dict(scorer="random", threshold="off"),
  "posthoc": dict(scorer="perplexity", **WHOLE),
  "posthoc_rsr": dict(scorer="rsr", **WHOLE),
  "morsd": dict(scorer="morsd", **WHOLE),
  "shortest": dict(scorer="shortest", **WHOLE),
  "mix_long": dict(scorer="mix_long", **WHOLE),
  "gen_ssd": dict(),
  "gen_ssd_rsr": dict(scorer="rsr"),
  "gen_ssd_no_cold_start": dict(chooser="base"),
  "gen_ssd_no_stop": dict(threshold="off"),
  "anti": dict(scorer="anti", threshold="off"),
}

# The sweeps: each value is the gen_ssd arm with these changes; {} is gen_ssd itself.
CHANGES = {
  "k": {1: dict(k=1), 2: dict(k=2), 4: {}, 8: dict(k=8), 16: dict(k=16)},
  "c": {
    "step": {},
    **{
      c: dict(c=c, prompt=prompt, delimiters=())  # fixed chunks of c tokens
      for c, prompt in ((4, 48), (8, 48), (16, 48), (40, 80), (80, 80))
    },
  },
  "temperature": {
    0.6: dict(temperature=0.6),
    0.8: dict(temperature=0.8),
    1.0: {},
    1.2: dict(temperature=1.2),
  },
  "quantile": {
    "off": dict(threshold="off"),
    0.99: {},
    0.95: dict(quantile=0.95),
    0.9: dict(quantile=0.9),
    0.8: dict(quantile=0.8),
  },
  "scorer": {
    "perplexity": {},
    "perplexity_sum": dict(scorer="perplexity_sum", selector="softmin", threshold="off"),
    "teacher_share": dict(teacher_share=0.5),
    "branch_entropy": dict(branch_entropy=0.5),
    "local": dict(scorer="local", context=2),
    **{
      name: dict(scorer=name, step_delimiters=(".",), threshold="off")
      for name in ("drop_first", "teacher_gap", "teacher_count", "shortest", "longest")
    },
  },
}
STUDENT_ARMS = ("standard_kd", "posthoc", "gen_ssd")


def arm(sweep, value):
  return f"{sweep}={value}".replace(".", "_") if CHANGES[sweep][value] else "gen_ssd"


# The lines of every figure: {sweep: {line: [(value, run, arm), ...]}}.
SWEEPS = {
  **{
    sweep: {"gen_ssd": [(value, "sweeps", arm(sweep, value)) for value in values]}
    for sweep, values in CHANGES.items()
  },
  "cold_start": {
    "gen_ssd": [
      (40, "cold_start=40", "gen_ssd"),
      (128, "arms", "gen_ssd"),
      (320, "cold_start=320", "gen_ssd"),
    ]
  },
  "student": {
    line: [
      ("small", "student=small", line),
      ("base", "arms", line),
      ("large", "student=large", line),
    ]
    for line in STUDENT_ARMS
  },
}


def sweep():
  return RUNS


def get_config(arg="arms"):
  if arg not in (*RUNS, "quick"):
    raise UserError(f"configs/study.py:{arg}: the name must be one of {', '.join(RUNS)}, quick")
  c = quickstart.get_config()
  c.name = f"study-{arg}"
  # We tuned the settings on problems of seed 0. Seed 1 is the quickstart's, and seed 2 was that of
  # an earlier study with fixed chunks.
  c.problems.update(test=1000, seed=3)
  c.seeds = {"arms": 5, "quick": 2}.get(arg, 3)
  what, _, value = arg.partition("=")
  if what in ("arms", "quick"):
    c.arms = ARMS
  elif what == "sweeps":
    c.arms = {
      arm(sweep, v): changes for sweep, values in CHANGES.items() for v, changes in values.items()
    }
  elif what == "cold_start":
    c.problems.cold_start = int(value) + c.problems.held_out
    c.arms = {"gen_ssd": {}}
  else:
    c.student.path = f"bundled/student_{value}"
    c.arms = {name: ARMS[name] for name in STUDENT_ARMS}
  if what == "quick":
    c.problems.update(train=320, test=300)
    c.train.steps = 150
  return c
