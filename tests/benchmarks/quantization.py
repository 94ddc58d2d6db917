"""What int8 weights do to a model: mean nll of solved problems, in nats per token. Prints JSON.

  python tests/benchmarks/quantization.py MODEL gsm8k/test.jsonl --texts=100

MODEL is what `teacher.path` may be; the file has a `question` and an `answer` in each line, as GSM8K
has. A text is both, without the calculator's `<<2*3=6>>`. The same tokens are read with weights and
activations in float32, in bfloat16, and in both with int8 weights. `difference` is from float32, and
`error` its standard error over texts.
"""

import argparse
import json
import pathlib
import re
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
WAYS = {
  "float32": ("float32", "off"),
  "float32 int8": ("float32", "int8"),
  "bfloat16": ("bfloat16", "off"),
  "bfloat16 int8": ("bfloat16", "int8"),
}
BATCH = 4


def solved(file, count):
  """The first texts of a file: question and answer."""
  with open(file, encoding="utf-8") as f:
    rows = [json.loads(line) for _, line in zip(range(count), f)]
  return [re.sub(r"<<.*?>>", "", f"{r['question']}\n{r['answer']}") for r in rows]


def sums(model, texts, layout):
  """Sum of nll of each text [texts], in nats, with the weights that a layout gives."""
  from gen_ssd.collect import posthoc
  from gen_ssd.models import weights

  net = weights.load(model, layout)
  parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
  pairs = [[(ids[:1], ids[1:]) for ids in part] for part in parts]
  return np.array([nll.sum() for part in pairs for nll in posthoc.nlls(net, part, batch=BATCH)])


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("model")
  parser.add_argument("problems")
  parser.add_argument("--texts", type=int, default=100)
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  import jax

  from gen_ssd import mesh
  from gen_ssd.models import hf
  from gen_ssd.models import tokenization
  from gen_ssd.models.architecture import Layout

  mesh.start(devices=jax.devices()[:1])
  folder = hf.locate(args.model)
  encode = tokenization.load_tokenizer(folder).encode
  texts = sorted(map(encode, solved(args.problems, args.texts)), key=len)  # little padding
  count = np.array([len(ids) - 1 for ids in texts])
  found = {"model": pathlib.Path(args.model).name, "texts": len(texts), "tokens": int(count.sum())}
  first = None
  for name, (dtype, quantization) in WAYS.items():
    nll = sums(folder, texts, Layout(dtype=dtype, quantization=quantization))
    first = nll if first is None else first
    difference = (nll - first).sum() / count.sum()
    error = np.std(nll - first - difference * count) / np.sqrt(len(texts)) / count.mean()
    mean = nll.sum() / count.sum()
    row = {"nll": mean, "difference": difference, "error": error}
    found[name] = {key: round(float(x), 5) for key, x in row.items()}
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
