"""What the benchmarks share: shapes of models, and contenders that take turns.

A contender is a process of its own, so that no two libraries share threads or memory. Contenders take
turns and the best of each counts: on a machine that others use, too, noise only ever slows one down.
"""

import json
import os
import pathlib
import subprocess
import sys

from tests import paths

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent


def shape(vocab, width, layers, heads, kv_heads, hidden, head=64):
  """Sizes of a model by their names in a Hugging Face config."""
  return dict(
    vocab_size=vocab,
    hidden_size=width,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    intermediate_size=hidden,
    head_dim=head,
  )


MID = (shape(4096, 512, 8, 8, 4, 1536), shape(4096, 192, 4, 3, 3, 512))
# Qwen2.5-0.5B and a student with a tenth of its parameters: 494M and 46M when the head is tied.
REAL = (shape(151936, 896, 24, 14, 2, 4864), shape(151936, 256, 8, 4, 1, 1024))
SMOLLM2_135M = shape(49152, 576, 30, 9, 3, 1536)

# Engine: b rows, k candidates of c tokens, after a prompt. `pair` is absent for the bundled models.
ENGINE = {
  "mid": dict(pair=MID, b=8, k=4, c=32, prompt=128),
  "bundled": dict(b=32, k=4, c=32, prompt=48),
  "real": dict(pair=REAL, b=4, k=4, c=16, prompt=128),
  "real_bfloat16": dict(pair=REAL, b=4, k=4, c=16, prompt=128, dtype="bfloat16"),
}

# Training: 4 x 512 tokens an update. Examples fill their row, or have the lengths of GSM8K.
TRAIN = {"full": dict(b=4, t=512), "mixed": dict(b=4, t=512)}
# Deciles of tokens of question and answer in GSM8K's training set under Qwen3's tokenizer, as
# `lengths` measures them: 7,473 examples, 181.4 tokens on average.
DECILES = (64, 106, 124, 138, 153, 168, 187, 207, 232, 275, 536)
GSM8K, TOKENIZER = paths.DATA / "gsm8k" / "train.jsonl", paths.DATA / "tokenizers" / "qwen3"


def lengths(workload, count, measured=True):
  """(tokens of each of `count` examples, where the lengths are from); none is above `t`."""
  import numpy as np

  t, rng = TRAIN[workload]["t"], np.random.default_rng(0)
  if workload == "full":
    return np.full(count, t), "full rows"
  if measured and GSM8K.exists() and TOKENIZER.exists():
    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    texts = [texts[i] for i in rng.choice(len(texts), count, replace=False)]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    found, source = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]]), "GSM8K"
  else:
    found = np.interp(rng.uniform(0, len(DECILES) - 1, count), range(len(DECILES)), DECILES)
    source = "made up from GSM8K's deciles"
  return np.minimum(found.astype(int), t), source


def examples(workload, vocab, count=320):
  """(`count` lists of random token ids, where their lengths are from), the same in every process."""
  import numpy as np

  found, source = lengths(workload, count)
  rng = np.random.default_rng(1)
  return [rng.integers(1, vocab, n).tolist() for n in found], source


def architecture(sizes, **facts):
  """The Architecture of `shape(...)`; `facts` are further fields."""
  from gen_ssd.models.architecture import Architecture

  kv_heads = sizes["num_key_value_heads"]
  return Architecture(
    vocab=sizes["vocab_size"],
    width=sizes["hidden_size"],
    layers=sizes["num_hidden_layers"],
    kv_heads=kv_heads,
    groups=sizes["num_attention_heads"] // kv_heads,
    head=sizes["head_dim"],
    hidden=sizes["intermediate_size"],
    **facts,
  )


def weights(sizes):
  """{name: (inputs, outputs, how many)} of the products with weights of one token's forward pass."""
  d, f, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
  q = sizes["num_attention_heads"] * sizes["head_dim"]
  kv = sizes["num_key_value_heads"] * sizes["head_dim"]
  return {
    "q": (d, q, layers),
    "kv": (d, kv, 2 * layers),
    "o": (q, d, layers),
    "gate_up": (d, f, 2 * layers),
    "down": (f, d, layers),
    "head": (d, sizes["vocab_size"], 1),
  }


def child(file, *args, devices=1):
  """The last line that a contender prints, as JSON."""
  env = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_force_host_platform_device_count={devices}",
  }
  found = subprocess.run(
    [sys.executable, str(file), *map(str, args)],
    env=env,
    text=True,
    capture_output=True,
  )
  if found.returncode:
    sys.exit(f"{pathlib.Path(file).name} {' '.join(map(str, args))}: {found.stderr[-2000:]}")
  return json.loads(found.stdout.strip().splitlines()[-1])


def in_turns(contenders, turns):
  """{name: the fastest result, by its `tok_s`} of {name: function}; they run one after another."""
  best = {}
  for _ in range(turns):
    for name, run in contenders.items():
      found = run()
      if name not in best or found["tok_s"] > best[name]["tok_s"]:
        best[name] = found
  return best


def show(rows, as_json):
  """Prints one table for each row, or one JSON object."""
  if as_json:
    print(json.dumps({"workloads": rows}, indent=1))
    return
  for row in rows:
    print(row["name"])
    for key, value in row.items():
      if key != "name":
        value = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"  {key:<26}{value:>14}")
