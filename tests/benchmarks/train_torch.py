"""The peers in training: a plain torch loop, TRL's SFTTrainer with packing, and products alone.

  python -m tests.benchmarks.train_torch --loop plain --workload mixed

f32 on a CPU, the same random weights' shape and the same examples for all. `plain` is what people
write: each batch is padded to its longest example, with transformers' model and loss (sdpa), fused
AdamW and a clipped gradient. `trl` packs rows of t tokens; gradient checkpointing, which is on by
default there, is off, because nobody else recomputes. One JSON line is printed.
"""

import argparse
import json
import os
import tempfile
import time

import torch
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers import LlamaForCausalLM

from tests.benchmarks import contenders
from tests.benchmarks import torch_loops

RATE, DECAY, CLIP, BETAS = 1e-4, 0.1, 1.0, (0.9, 0.95)


def model(sizes):
  """A Llama with random f32 weights and a tied head."""
  torch.manual_seed(0)
  return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes)).float().train()


def plain(sizes, rows, w, steps):
  """(non-padding tokens, seconds, padded tokens) of `steps` updates after one to warm up."""
  student = model(sizes)
  update = torch.optim.AdamW(
    student.parameters(), RATE, betas=BETAS, weight_decay=DECAY, fused=True
  )
  # As many examples as fill b rows of t tokens on average.
  size = round(w["b"] * w["t"] * len(rows) / sum(map(len, rows)))
  tokens = padded = seconds = 0
  for i in range(steps + 1):
    part = rows[i * size : (i + 1) * size]
    longest = max(map(len, part))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
    labels = ids.masked_fill(mask == 0, -100)
    begin = time.perf_counter()
    student(ids, attention_mask=mask, labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
    update.step()
    update.zero_grad()
    if i:
      seconds += time.perf_counter() - begin
      tokens, padded = tokens + int(mask.sum()), padded + mask.numel()
  return tokens, seconds, padded


def trl(sizes, rows, w, steps):
  """What `plain` returns, of SFTTrainer."""
  from datasets import Dataset
  from transformers import AutoTokenizer
  from transformers import TrainerCallback
  from trl import SFTConfig
  from trl import SFTTrainer

  times, counts = [], []

  class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
      times.append(time.perf_counter())

    def on_step_end(self, *args, **kwargs):
      times[-1] = time.perf_counter() - times[-1]

  class Counting(SFTTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
      mask = inputs.get("attention_mask")
      size = inputs["input_ids"].numel()
      counts.append((size if mask is None else int(mask.sum()), size))
      return super().training_step(model, inputs, *args, **kwargs)

  tokenizer = AutoTokenizer.from_pretrained(contenders.ROOT / "gen_ssd" / "bundled" / "student")
  with tempfile.TemporaryDirectory() as folder:
    config = SFTConfig(
      output_dir=folder,
      packing=True,
      max_length=w["t"],
      per_device_train_batch_size=w["b"],
      max_steps=steps + 1,
      learning_rate=RATE,
      weight_decay=DECAY,
      max_grad_norm=CLIP,
      adam_beta1=BETAS[0],
      adam_beta2=BETAS[1],
      gradient_checkpointing=False,
      use_cpu=True,
      bf16=False,
      report_to="none",
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
    )
    Counting(
      model=model(sizes),
      args=config,
      train_dataset=Dataset.from_dict({"input_ids": rows}),
      processing_class=tokenizer,
      callbacks=[Clock()],
    ).train()
  tokens, padded = map(sum, zip(*counts[1:]))
  return tokens, sum(times[1:]), padded


@torch.inference_mode()
def products(sizes, tokens):
  """Seconds of the products with weights in one update: forward, and both of the backward pass."""
  seconds = 0.0
  for inputs, outputs, count in contenders.weights(sizes).values():
    x, y = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    w = torch.randn(outputs, inputs)
    for product in (lambda: F.linear(x, w), lambda: y @ w, lambda: y.T @ x):
      seconds += count * torch_loops.best_seconds(product, 3)
  return seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--loop", choices=("plain", "trl", "limit"), default="plain")
  parser.add_argument("--workload", choices=contenders.TRAIN, default="full")
  parser.add_argument("--steps", type=int, default=4, help="measured updates after one to warm up")
  parser.add_argument("--layers", type=int, default=contenders.SMOLLM2_135M["num_hidden_layers"])
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  sizes = {**contenders.SMOLLM2_135M, "num_hidden_layers": args.layers}
  w = contenders.TRAIN[args.workload]
  line = dict(loop=args.loop, workload=args.workload, torch=torch.__version__)
  if args.loop == "limit":
    tokens = w["b"] * w["t"]
    line.update(torch_loops.machine_limit())
    line["tok_s"] = tokens / products(sizes, tokens)
  else:
    rows, _ = contenders.examples(args.workload, sizes["vocab_size"])
    run = {"plain": plain, "trl": trl}[args.loop]
    tokens, seconds, padded = run(sizes, rows, w, args.steps)
    line.update(tok_s=tokens / seconds, filled=tokens / padded)
  print(json.dumps(line))


if __name__ == "__main__":
  main()
