"""Systems from the literature as arms: --config=configs/recipes.py:gkd, or a pair's file with :gkd.

Each function takes the config of a pair, which sets models, lengths and batch sizes, and returns the
arms of one system. In most, standard_kd is trained first, and the other arms start from its student.
Numbers are from the papers; those marked "ours" are our choice. Arms of one name are the same arm in
every recipe. Without a name, all recipes and the arms of the quickstart are
compared in one run: `gen-ssd run --config=configs/recipes.py --workdir=runs/recipes`.

What other libraries call the settings of `train`:

  here                    TRL                           NeMo-RL                      tinker-cookbook
  samples                 lmbda of GKD
  terms.NAME.beta of jsd  beta, with normalize=False
  terms.NAME.temperature  temperature
  terms.NAME.top_k                                      topk_logits_k
  answers                 num_generations               num_generations_per_prompt
  credit="gap"                                                                       kl_penalty_coef
  discount                                                                           kl_discount_factor
"""

from configs import quickstart
from gen_ssd.errors import UserError

PLAIN = dict(k=1, threshold="off")
WHOLE = dict(granularity="trace", threshold="off")  # the best of k traces


def asked(c, every, share=1.0, answers=1):
  """Problems whose answers fill `every` updates when an example takes half a row; ours."""
  rows = c.train.batch_size * c.train.accumulate * every
  return max(1, min(c.problems.train, int(2 * rows * share / answers)))


def after(c, **train):
  """An arm that goes on from standard_kd, for half as many updates (ours)."""
  steps = c.train.steps // 2
  return dict(PLAIN, train=dict(start="standard_kd", steps=steps) | train)


def own(c, every=10, share=1.0, answers=1, **train):
  """An arm that goes on from standard_kd with what the student writes itself."""
  rounds = dict(samples=share, every=every, asked=asked(c, every, share, answers), answers=answers)
  return after(c, **rounds | train)


def policy(c, credit, answers=1, **train):
  """`own` with a policy gradient, which is noisy: four times the batch, a twentieth of the rate (ours).

  There are as many examples as in standard_kd. With the batch and the rate of SFT, students of the
  bundled pair fell to 0 % right answers.
  """
  batch = dict(accumulate=4 * c.train.accumulate, asked=asked(c, 4, answers=answers))
  batch |= dict(steps=c.train.steps // 4)
  rate = c.train.learning_rate / 20
  return own(c, every=1, answers=answers, credit=credit, learning_rate=rate, **batch, **train)


def gkd(c):
  """GKD (2306.13649): a divergence to the teacher, on its traces and on the student's own."""
  half = dict(objective="jsd", beta=0.5, normalize=False)
  return {
    "standard_kd": PLAIN,
    "longer": after(c),
    "kd_offline": after(c, terms={"kd": dict(objective="fkl")}),
    "gkd": own(c, share=0.5, terms={"kd": half}),
    "on_policy_rkl": own(c, terms={"kd": dict(objective="rkl")}),
  }


def redi(c):
  """REDI (2505.24850): SFT on right traces, then wrong ones repel 0.8 times as much."""
  four = dict(PLAIN, attempts=4)  # ours
  rate = c.train.learning_rate / 50  # 5e-5 and 1e-6 there
  second = lambda alpha: dict(four, keep="all", train=dict(
    start="standard_kd_all", credit="signed", alpha=alpha, steps=c.train.steps // 4, learning_rate=rate
  ))  # fmt: skip
  arms = {"redi_0": second(0.0), "redi": second(0.8), "redi_1": second(1.0)}
  return {"standard_kd": PLAIN, "standard_kd_all": four, **arms}


def tsd_kd(c):
  """TSD-KD (2603.13260) by its equations; the code that was published ranks the other way round."""
  plain = dict(objective="jsd", beta=0.9, normalize=False)
  direct = dict(plain, gate="entropy_gap")
  order = dict(objective="rank", top_k=10, where="opener", share=0.1, scale=0.1)
  sure = dict(objective="entropy", where="uncertain", share=0.1)
  return {
    "standard_kd": PLAIN,
    "gkd_09": own(c, terms={"direct": plain}),
    "direct": own(c, terms={"direct": direct}),
    "direct_order": own(c, terms={"direct": direct, "order": order}),
    "tsd_kd": own(c, terms={"direct": direct, "order": order, "sure": sure}),
  }


def curiosft(c):
  """CurioSFT (2602.02244): SFT that stays near a softened self; its temperature per token is fixed."""
  near = dict(objective="k2", whom="lagged", temperature=(1.1, 1.1))
  return {
    "standard_kd": PLAIN,
    "curiosft": dict(PLAIN, train=dict(lag=5, terms={"sft": {}, "curious": near})),
  }


def opd(c):
  """On-policy distillation (tinker): own tokens count log p_T - log p_S."""
  return {"standard_kd": PLAIN, "opd": policy(c, "gap")}


def minillm(c):
  """MiniLLM (2306.08543): as opd, with what follows a token counted, too; without its regularisers."""
  return {**opd(c), "minillm": policy(c, "gap", discount=1.0)}


def grpo(c):
  """AceReason (2505.16400): GRPO on verdicts, without KL penalty, one update for each batch."""
  return {"standard_kd": PLAIN, "grpo": policy(c, "advantage", answers=8)}


def fidelity(c):
  """Generalisation against fidelity (2505.15442): three divergences on the teacher's traces.

  Ours: SFT comes first. Trained from the base student, rkl and jsd never learn the answer's format.
  """
  kd = lambda name: after(c, terms={"kd": dict(objective=name)})
  arms = {"kd_offline": kd("fkl"), "rkl": kd("rkl"), "jsd": kd("jsd")}
  return {"standard_kd": PLAIN, "longer": after(c), **arms}


def pld(c):
  """PLD (2506.12542) on the 20 tokens (ours) that the teacher likes best, instead of all classes."""
  terms = {"pld": dict(objective="pld", top_k=20)}
  return {"standard_kd": PLAIN, "pld": dict(PLAIN, train=dict(terms=terms))}


def rmd(c):
  """Recursive meta-distillation (2601.13100): the target mixes the teacher and the last student.

  The paper proves that this contracts to the teacher; shares are ours. Two forward divergences have
  the gradient of one to the mixture.
  """
  teacher, last = dict(objective="fkl", scale=0.5), dict(objective="fkl", whom="start", scale=0.5)
  go_on = lambda name, **terms: dict(PLAIN, train=dict(start=name, terms=terms))
  return {
    "standard_kd": PLAIN,
    "fkl": dict(PLAIN, train=dict(terms={"kd": dict(objective="fkl")})),
    "second": go_on("fkl", teacher=teacher, last=last),
    "third": go_on("second", teacher=teacher, last=last),
  }


def dasd(c):
  """DASD (2601.09088): teacher sentences, at 0.6 and then 1.0, then mixed with own beginnings.

  Ours: k, and the right traces only; all of the student's are cut, not those alone that are too long.
  """
  rich = dict(WHOLE, scorer="teacher_count", step_delimiters=(".",))
  last = dict(start="t10", steps=c.train.steps // 4)  # ours
  mix = dict(also="t10", also_share=0.72)  # 20K traces of the teacher beside 7.7K
  return {
    "standard_kd": PLAIN,
    "t06": dict(rich, temperature=0.6),
    "t10": dict(rich, temperature=1.0, train=dict(start="t06")),
    "own": dict(PLAIN, writer="t10", keep="all", train=last),  # ours: what it learns is a control
    "mixed": dict(PLAIN, after="own", cut=(0.5, 1.0), train=last | mix),
    "mixed_masked": dict(PLAIN, after="own", cut=(0.5, 1.0), train=last | mix | dict(given="mask")),
  }


TABLE = {
  f.__name__: f for f in (gkd, redi, tsd_kd, curiosft, opd, minillm, grpo, fidelity, pld, rmd, dasd)
}


def get_config(arg="all"):
  if arg not in ("all", *TABLE):
    raise UserError(f"configs/recipes.py:{arg}: the name must be all or one of {', '.join(TABLE)}")
  c = quickstart.get_config()
  c.name = f"recipes-{arg}"
  if arg == "all":
    for recipe in TABLE.values():
      c.arms = c.arms.to_dict() | recipe(c)
  else:
    c.arms = TABLE[arg](c)
  return c
