"""The peers: the same rounds over transformers and torch (CPU), and the machine's own limit.

Run each contender in its own process, one after another:
  python -m tests.benchmarks.torch_loops --loop cached --workload mid
  python -m tests.benchmarks.torch_loops --workload bundled --teacher DIR --student DIR
The machine must be quiet: OpenMP threads wait for each other after every operation, so one other
busy process per core slows torch by ten times and more. The load at the start is printed.
Every row has the same length and no EOS, so every chunk has exactly C tokens: this favours torch,
which needs no padding. One JSON line is printed.

Long, because every loop is complete in itself.
"""

import argparse
import functools
import json
import os
import time

import torch
from torch import nn
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers import GenerationConfig
from transformers import Qwen2Config
from transformers import Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.benchmarks import contenders


def random_model(seed, **sizes):
  """A Qwen2 with random f32 weights and no EOS; `sizes` are Qwen2Config fields."""
  torch.manual_seed(seed)
  config = Qwen2Config(
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
    max_position_embeddings=8192,
    **sizes,
  )
  return Qwen2ForCausalLM(config).float().eval()


def random_pair(workload):
  """(teacher, student) of a workload that has shapes."""
  return [random_model(seed, **sizes) for seed, sizes in enumerate(workload["pair"])]


def load_pair(teacher_dir, student_dir):
  """(teacher, student) from two HF directories, f32."""
  load = functools.partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
  return load(teacher_dir).eval(), load(student_dir).eval()


def random_prompts(teacher, student, B, length, seed=2):
  """Token ids [B, length], known to both models."""
  vocab = min(teacher.config.vocab_size, student.config.vocab_size)
  return torch.randint(vocab, (B, length), generator=torch.Generator().manual_seed(seed))


def token_nll(logits, tokens):
  """-log p of `tokens` [..., t] under `logits` [..., t, v], in nats -> [..., t]."""
  nll = F.cross_entropy(logits.float().flatten(0, -2), tokens.flatten(), reduction="none")
  return nll.view(tokens.shape)


def timed_rounds(round_fn, rounds, tokens_per_round):
  """Calls `round_fn() -> (scoring seconds, trail)` once to warm up, then `rounds` measured times.

  `trail` is (candidates [B, K, C], mean nll [B, K], chosen index [B]).
  """
  trails, seconds, scoring = [], [], []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    scoring_s, trail = round_fn()
    seconds.append(time.perf_counter() - start)
    scoring.append(scoring_s)
    trails.append(trail)
  return dict(
    tokens=tokens_per_round * rounds,
    seconds=sum(seconds[1:]),
    scoring_seconds=sum(scoring[1:]),
    round_seconds=seconds[1:],
    trails=trails,
  )


@torch.inference_mode()
def generate_loop(teacher, student, prompts, *, K, C, rounds, temperature=1.0, seed=0):
  """The usual way: `generate` on the whole prefix, then the student reads prefix + candidate again.

  Returns tokens (proposed), seconds, scoring_seconds (also in seconds), round_seconds, trails,
  and `text` [B, prompt + (rounds + 1) * C].
  """
  torch.manual_seed(seed)
  # Replaced, not passed: `generate` fills gaps from the model's own settings (EOS, top_p).
  teacher.generation_config = GenerationConfig(
    do_sample=True,
    temperature=temperature,
    top_k=0,
    top_p=1.0,
    max_new_tokens=C,
    num_return_sequences=K,
    eos_token_id=None,
    pad_token_id=0,
  )
  text, rows = prompts, torch.arange(len(prompts))

  def one_round():
    nonlocal text
    out = teacher.generate(text, attention_mask=torch.ones_like(text))
    start = time.perf_counter()
    logits = student(out[:, :-1], use_cache=False, logits_to_keep=C).logits
    chunks = out[:, -C:].view(-1, K, C)
    score = token_nll(logits, out[:, -C:]).mean(-1).view(-1, K)
    best = score.argmin(-1)
    scoring_s = time.perf_counter() - start
    text = torch.cat([text, chunks[rows, best]], 1)
    return scoring_s, (chunks, score, best)

  result = timed_rounds(one_round, rounds, len(prompts) * K * C)
  return dict(result, text=text)


# The fastest loop found. Tried on 2 quiet cores of an AVX-512 AMD CPU, medians, tokens/s for "mid"
# and for a pair of 0.9M / 0.1M parameters with B=32:
#   DynamicCache, batch_repeat_interleave and batch_select_indices, sdpa         990    17600
#   one preallocated buffer per branch, written in place                         1190    20000
#   one buffer per row, branches as masked queries (below), sdpa                 1400    29300
#   the same with matmul + softmax in place of sdpa                              1310    33000
#   + weights packed for oneDNN, one uniform number per sample (below)           2750    38000
# Within noise or under 5 %, so left out: F.rms_norm, silu and product inside the packed linears,
# one rope for q and k. As products alone, no faster at 32 rows: fused qkv and gate-up, transposed
# weights, weights packed for MKL.
# torch.compile(dynamic=True) on the teacher before packing, on a less quiet machine: two minutes of
# warm-up, then 150-650 tokens/s for "mid", slower than not compiled. It refuses packed weights.


class RowCache:
  """Keys and values [L, B, n, S, h] of whole rows, with room for the chunk tokens of K branches.

  `length` slots are in use. It has what transformers asks of a cache, and never moves a prefix.
  """

  is_compileable = False
  is_sliding = [False]

  def __init__(self, config, B, slots, dtype):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, B, config.num_key_value_heads, slots, head_dim)
    self.keys, self.values = (torch.zeros(shape, dtype=dtype) for _ in range(2))
    self.length = 0

  def update(self, keys, values, layer, *args, **kwargs):
    end = self.length + keys.shape[2]
    self.keys[layer, :, :, self.length : end] = keys
    self.values[layer, :, :, self.length : end] = values
    seen = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
    if layer == len(self.keys) - 1:
      self.length = end
    return seen

  def get_seq_length(self, *args):
    return self.length

  get_query_offset = get_seq_length

  def get_mask_sizes(self, query_length, *args):
    return self.length + query_length, 0

  def get_max_length(self, *args):
    return -1

  def commit(self, start, sizes, take):
    """Keeps of the slots from `start`, seen as `sizes`, what `take([L, B, n, *sizes, h])` returns.

    `take` returns [L, B, n, kept, h], which moves to `start`.
    """
    used = sizes[0] * sizes[1]
    for buffer in (self.keys, self.values):
      kept = take(buffer[:, :, :, start : start + used].unflatten(3, sizes))
      buffer[:, :, :, start : start + kept.shape[3]] = kept
    self.length = start + kept.shape[3]


def branch_attention(module, query, key, value, mask, scaling=None, **kwargs):
  """query [B, n*g, t, h] over a row's key and value [B, n, S, h]; mask [1, 1, g*t, S], added.

  Query heads of one kv head are folded into t, so keys are neither repeated nor read twice.
  """
  t = query.shape[2]
  if mask is None and t > 1:  # prefill of an empty cache
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, scaling=scaling)
  folded = query.reshape(*key.shape[:2], -1, key.shape[3]) * scaling
  weights = torch.matmul(folded, key.transpose(2, 3))
  if mask is not None:
    weights += mask.to(weights.dtype)
  out = torch.matmul(weights.softmax(-1), value)
  return out.view(len(key), -1, t, key.shape[3]).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("branches", branch_attention)


def packed_linear(weight, bias, x):
  return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack_linears(model, rows):
  """Gives every Linear weights in oneDNN's own layout for `rows` inputs: still exact f32.

  torch sends f32 products to MKL, which lays out the weights again at every call; at 32 rows of
  "mid" that ran at 100 GFLOP/s where oneDNN with packed weights ran at 315.
  """
  if not torch.backends.mkldnn.is_available():
    return
  for module in model.modules():
    if isinstance(module, nn.Linear):
      weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), rows)
      module.forward = functools.partial(packed_linear, weight, module.bias)


def prepare(model, rows, packed):
  """Branch attention and packed weights, in place. A sliding window would need another mask."""
  if "sliding_attention" in (getattr(model.config, "layer_types", None) or []):
    raise ValueError("layer_types: cached_loop needs full attention in every layer")
  model.set_attn_implementation("branches")
  if packed:
    pack_linears(model, rows)


def sample(logits, temperature):
  """One token id per distribution, logits [..., v] -> [...]. One uniform number for each:
  drawing v exponentials, as torch.multinomial does, took 2 of the 21 ms of a token step."""
  edges = torch.softmax(logits.float() / temperature, -1).cumsum(-1)
  point = torch.rand(*logits.shape[:-1], 1) * edges[..., -1:]
  return torch.searchsorted(edges, point).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def group_size(model):
  return model.config.num_attention_heads // model.config.num_key_value_heads


@torch.inference_mode()
def cached_loop(teacher, student, prompts, *, K, C, rounds, temperature=1.0, seed=0, packed=True):
  """Both caches kept across rounds, one prefix per row, K branches as masked queries of that row.

  Changes both models in place (attention, packed weights). Returns what `generate_loop` returns,
  and `caches` (teacher's, student's), which hold `text` without its last token.
  """
  torch.manual_seed(seed)
  B, P = prompts.shape
  rows, steps = torch.arange(B), torch.arange(C)
  prepare(teacher, B * K, packed)
  prepare(student, B * K * C, packed)
  slots = P + (rounds + 1) * C + K * C
  t_cache, s_cache = (RowCache(m.config, B, slots, m.dtype) for m in (teacher, student))
  for model, cache in ((teacher, t_cache), (student, s_cache)):
    model(prompts[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)

  inf = float("inf")
  # Teacher chunk slots are ordered [C, K]: a step adds K slots at the end. Student's are [K, C].
  own = torch.zeros(K, K).masked_fill_(~torch.eye(K, dtype=torch.bool), -inf)
  t_own = own.repeat(group_size(teacher), C)
  s_own = own[:, None, :, None] + torch.full((C, C), -inf).triu_(1)[None, :, None, :]
  s_own = s_own.reshape(K * C, K * C).repeat(group_size(student), 1)

  def masked(own_mask, prefix):
    return torch.cat([torch.zeros(len(own_mask), prefix), own_mask], 1)[None, None]

  text = prompts

  def one_round():
    nonlocal text
    last = text[:, -1:]
    # The branches share their first input, so it is one query per row and part of the prefix.
    logits = teacher(last, past_key_values=t_cache, use_cache=True).logits
    tokens = [sample(logits.expand(B, K, -1), temperature)]
    t_start = t_cache.length
    mask = masked(t_own, t_start)
    for t in range(1, C):
      logits = teacher(
        tokens[-1],
        past_key_values=t_cache,
        use_cache=True,
        attention_mask=mask[..., : t_start + t * K],
        position_ids=torch.full((1, K), t_start + t - 1),
      ).logits
      tokens.append(sample(logits, temperature))
    chunks = torch.stack(tokens, -1)

    start = time.perf_counter()
    s_start = s_cache.length
    inputs = torch.cat([last[:, None].expand(B, K, 1), chunks[..., :-1]], -1)
    logits = student(
      inputs.view(B, K * C),
      past_key_values=s_cache,
      use_cache=True,
      attention_mask=masked(s_own, s_start),
      position_ids=(s_start + steps).repeat(K)[None],
    ).logits
    score = token_nll(logits, chunks.view(B, K * C)).view(B, K, C).mean(-1)
    best = score.argmin(-1)
    scoring_s = time.perf_counter() - start

    # Advanced indices apart from each other put [B] first.
    t_cache.commit(t_start, (C - 1, K), lambda x: x[:, rows, :, :, best].transpose(0, 1))
    s_cache.commit(s_start, (K, C), lambda x: x[:, rows, :, best].transpose(0, 1))
    text = torch.cat([text, chunks[rows, best]], 1)
    return scoring_s, (chunks, score, best)

  result = timed_rounds(one_round, rounds, B * K * C)
  return dict(result, text=text, caches=(t_cache, s_cache))


@torch.inference_mode()
def check(teacher, student, prompts, *, K, C, rounds=2):
  """Largest differences of `cached_loop` from plain full forwards: chunk nll and cache entries."""
  out = cached_loop(teacher, student, prompts, K=K, C=C, rounds=rounds)
  for model in (teacher, student):
    model.set_attn_implementation("eager")
    for module in model.modules():
      module.__dict__.pop("forward", None)  # back to the class's own, unpacked
  prefix, rows, nll_diff = prompts, torch.arange(len(prompts)), 0.0
  for chunks, score, best in out["trails"]:
    whole = torch.cat([prefix.repeat_interleave(K, 0), chunks.flatten(0, 1)], 1)
    logits = student(whole[:, :-1], use_cache=False, logits_to_keep=C).logits
    full = token_nll(logits, whole[:, -C:]).mean(-1).view(-1, K)
    nll_diff = max(nll_diff, (full - score).abs().max().item())
    if not torch.equal(score.argmin(-1), best):
      raise AssertionError("a candidate was kept that has not the lowest nll")
    prefix = torch.cat([prefix, chunks[rows, best]], 1)
  if not torch.equal(prefix, out["text"]):
    raise AssertionError("the text is not the prompt and the chosen chunks")
  cache_diff = 0.0
  for model, cache in zip((teacher, student), out["caches"]):
    fresh = model(prefix[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
    assert cache.length == prefix.shape[1] - 1
    for i, layer in enumerate(fresh.layers):
      for kept, new in ((cache.keys[i], layer.keys), (cache.values[i], layer.values)):
        cache_diff = max(cache_diff, (kept[:, :, : cache.length] - new).abs().max().item())
  if max(nll_diff, cache_diff) > 1e-4:
    raise AssertionError(f"nll differs by {nll_diff}, caches by {cache_diff}; at most 1e-4 allowed")
  return dict(nll_diff=nll_diff, cache_diff=cache_diff)


def best_seconds(fn, repeats):
  """Shortest time of `fn()` after two calls to warm up: a limit is the best the machine did."""
  fn(), fn()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return min(times)


@torch.inference_mode()
def machine_limit(dtype=torch.float32):
  """Peak GFLOP/s of matrix products (f32, plain torch and packed oneDNN; `dtype`) and memory GB/s."""
  peak = {}
  for m, k, n in ((1024, 1024, 1024), (2048, 2048, 2048), (32, 512, 1536), (128, 512, 4096)):
    layer, flops = nn.Linear(k, n, bias=False), 2e-9 * m * k * n
    product = functools.partial(layer, torch.randn(m, k))
    plain = flops / best_seconds(product, 30)
    pack_linears(layer, m)
    peak[f"{m}x{k}x{n}"] = (plain, flops / best_seconds(product, 30))
  if dtype != torch.float32:
    x = torch.randn(1024, 1024).to(dtype)
    peak[str(dtype)] = (2e-9 * 1024**3 / best_seconds(lambda: x @ x, 3),)
  source = torch.ones(1 << 26)  # 256 MiB: far beyond the caches
  target = torch.empty_like(source)
  size = source.numel() * 4e-9
  copy = 2 * size / best_seconds(lambda: target.copy_(source), 8)
  read = size / best_seconds(lambda: source.sum(), 8)
  return dict(
    peak_gflops=max(max(p) for p in peak.values()),
    bandwidth_gbs=max(copy, read),
    gflops_plain_packed=peak,
    copy_gbs=copy,
    read_gbs=read,
  )


def work(config, prefix, B, K, C, weight_reads, prefix_reads, size):
  """(FLOPs, bytes at `size` for a number) of B*K*C tokens after a shared prefix.

  Weights are read `weight_reads` times, each row's prefix keys and values `prefix_reads` times,
  shared by its branches. Input embeddings count for nothing, an output embedding does.
  """
  d, L = config.hidden_size, config.num_hidden_layers
  h = getattr(config, "head_dim", None) or d // config.num_attention_heads
  q, kv = config.num_attention_heads * h, config.num_key_value_heads * h
  weights = L * (2 * d * q + 2 * d * kv + 3 * d * config.intermediate_size) + d * config.vocab_size
  seen = C * prefix + C * (C + 1) / 2  # over the tokens of one candidate
  flops = B * K * (C * 2 * weights + L * 4 * q * seen)
  return flops, size * (weight_reads * weights + prefix_reads * B * L * 2 * kv * prefix)


def limit(teacher_config, student_config, *, B, K, C, prefix, dtype):
  """The most proposed tokens per second that this machine's peaks allow at a prefix length.

  Teacher: C token steps of B*K branches; student: one forward of B*K*C tokens. Each phase takes the
  longer of its arithmetic and its memory traffic, which overlap; the phases follow each other.
  """
  machine = machine_limit(dtype)
  phases = dict(
    teacher=work(teacher_config, prefix, B, K, C, C, C, dtype.itemsize),
    student=work(student_config, prefix, B, K, C, 1, 1, dtype.itemsize),
  )
  peak, bandwidth = machine["peak_gflops"] * 1e9, machine["bandwidth_gbs"] * 1e9
  seconds = {name: max(flops / peak, size / bandwidth) for name, (flops, size) in phases.items()}
  return dict(
    machine,
    prefix=prefix,
    limit_tok_s=B * K * C / sum(seconds.values()),
    teacher_seconds=seconds["teacher"],
    student_seconds=seconds["student"],
    gflop={k: v[0] * 1e-9 for k, v in phases.items()},
    gbytes={k: v[1] * 1e-9 for k, v in phases.items()},
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--loop",
    choices=("generate", "public", "cached", "limit"),
    default="cached",
    help="public: cached without the private packed products",
  )
  parser.add_argument("--workload", choices=tuple(contenders.ENGINE), default="mid")
  parser.add_argument("--teacher", help="HF directory, for workload bundled")
  parser.add_argument("--student", help="HF directory, for workload bundled")
  parser.add_argument("--rounds", type=int, default=6, help="measured rounds after one to warm up")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--temperature", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  parser.add_argument("--check", action="store_true", help="compare cached with full forwards")
  args = parser.parse_args()

  torch.set_num_threads(args.threads)
  workload, dtype = contenders.ENGINE[args.workload], getattr(torch, args.dtype)
  B, K, C, P = (workload[name] for name in ("b", "k", "c", "prompt"))
  if "pair" in workload:
    teacher, student = (model.to(dtype) for model in random_pair(workload))
  else:
    if not (args.teacher and args.student):
      parser.error("--workload bundled needs --teacher DIR and --student DIR")
    teacher, student = load_pair(args.teacher, args.student)

  line = dict(
    loop=args.loop,
    workload=args.workload,
    dtype=args.dtype,
    B=B,
    K=K,
    C=C,
    prompt=P,
    threads=args.threads,
    torch=torch.__version__,
    load=os.getloadavg()[0],
  )
  prompts = random_prompts(teacher, student, B, P)
  if args.check:
    line.update(loop="check", **check(teacher, student, prompts, K=K, C=C))
  elif args.loop == "limit":
    # The mean prefix of the rounds that the loops measure.
    prefix = P + C + C * (args.rounds - 1) // 2
    line.update(limit(teacher.config, student.config, B=B, K=K, C=C, prefix=prefix, dtype=dtype))
  else:
    loop = {
      "generate": generate_loop,
      "cached": cached_loop,
      "public": functools.partial(cached_loop, packed=False),
    }[args.loop]
    out = loop(
      teacher,
      student,
      prompts,
      K=K,
      C=C,
      rounds=args.rounds,
      temperature=args.temperature,
      seed=args.seed,
    )
    median = sorted(out["round_seconds"])[args.rounds // 2]
    line.update(
      rounds=args.rounds,
      tokens=out["tokens"],
      seconds=out["seconds"],
      scoring_seconds=out["scoring_seconds"],
      mean_tok_s=out["tokens"] / out["seconds"],
      tok_s=B * K * C / median,
    )
  print(json.dumps(line))


if __name__ == "__main__":
  main()
