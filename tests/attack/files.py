"""Bad files: (what makes it in an empty folder, the other flags, what the message says).

One line a case. `{folder}` in a flag is the folder.
"""

import json
import os
import pathlib
import shutil

from gen_ssd.models import hf

RUN = ("run", "--config=configs/quickstart.py", "--workdir={folder}/run")


# ---------------------------------------------------------------- what makes a file


def write(name, content):
  """A file with this content: bytes, text, or anything else as JSON."""

  def make(folder):
    path = pathlib.Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

  return make


def model(**changes):
  """The bundled student in `{folder}/model`; changes to its files, as file name -> change.

  A dict changes entries of a JSON file (None removes one), anything else replaces the file, and None
  removes it. `__` in the name of a file stands for a dot.
  """

  def make(folder):
    home = pathlib.Path(folder, "model")
    shutil.copytree(hf.locate("bundled/student"), home)
    for name, change in changes.items():
      path = home / name.replace("__", ".")
      if change is None:
        path.unlink()
      elif isinstance(change, dict):
        entries = json.loads(path.read_text()) | change if path.exists() else change
        path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
      else:
        path.write_bytes(change if isinstance(change, bytes) else change.encode())

  return make


def weights(change):
  """The bundled student in `{folder}/model` with the bytes of its weights changed."""

  def make(folder):
    model()(folder)
    path = pathlib.Path(folder, "model", "model.safetensors")
    path.write_bytes(change(path.read_bytes()))

  return make


def header(change):
  """`weights` with the header changed: a function of the dict."""

  def changed(data):
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]

  return weights(changed)


def rows(*found, name="train.jsonl"):
  """A problem file of these rows, which are JSON or bytes, between two good ones."""
  good = lambda n: json.dumps({"problem": f"What is {n} + {n}?", "answer": str(2 * n)}).encode()
  lines = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in found]
  return write(name, b"\n".join([good(1), *lines, good(2)]))


def sweep(body, more=""):
  """`{folder}/mine.py`: the quickstart with the line `body` as sweep(), and `more` lines."""
  head = "from configs.quickstart import get_config\n\ndef sweep():\n"
  return write("mine.py", f"{head}  {body}\n{more}\n")


def several(*makers):
  return lambda folder: [make(folder) for make in makers]


def kept(pairs, collection="0123456789"):
  """A workdir in `{folder}/run` in which every arm has collected, with this kept.json."""

  def make(folder):
    for arm in ("standard_kd", "random", "posthoc", "gen_ssd"):
      write(f"run/arms/{arm}/kept.json", pairs)(folder)
      if collection:
        write(f"run/arms/{arm}/traces.json", {"collection": collection})(folder)

  return make


MODEL = (*RUN, "--config.student.path={folder}/model")
TRAIN = (
  *RUN,
  "--config.problems.source={folder}/train.jsonl",
  "--config.problems.test_source=bundled",
)
CONFIG = ("run", "--config={folder}/mine.py", "--workdir={folder}/run")
MODEL_TEMPLATE = (*RUN, "--config.student.chat_template={folder}/t.jinja")
EARLIER = (*RUN, "--config.stages=train")
PLAN = ("plan", "--config=configs/quickstart.py")
REPORT = ("report", "--workdir={folder}")
SWEEP = ("sweep", "--config={folder}/mine.py", "--workdir={folder}/sweep")

CASES = [
  # ---- config files
  (write("other.py", ""), CONFIG, "mine.py': it must be a Python file that exists"),
  (write("mine.py", ""), CONFIG, "it must define get_config()"),
  (write("mine.py", "get_config = 3"), CONFIG, "it must define get_config()"),
  (write("mine.py", "def get_config(:"), CONFIG, "line 1: SyntaxError: invalid syntax"),
  (write("mine.py", "import nothing_here"), CONFIG, "line 1: ModuleNotFoundError: No module"),
  (write("mine.py", "x = 1\n1 / 0"), CONFIG, "mine.py, line 2: ZeroDivisionError: division by zero"),
  (write("mine.py", "def get_config():\n  raise OSError('no')"), CONFIG, "line 2: OSError: no"),
  (write("mine.py", "def get_config():\n  exit(0)"), CONFIG, "line 2: SystemExit: 0"),
  (write("mine.py", "def get_config(a, b):\n  pass"), CONFIG, "mine.py: TypeError: get_config() missing"),
  (write("mine.py", "def get_config():\n  pass"), CONFIG, "returned None: it must return the ConfigDict"),
  (write("mine.py", "def get_config():\n  return {}"), CONFIG, "returned {}: it must return the Config"),
  (write("mine.py", "def get_config():\n  return get_config()"), CONFIG, "RecursionError"),
  (write("mine.py", b"x = '\xff\xfe'"), CONFIG, "SyntaxError"),
  (write("mine.py", b"\x00"), CONFIG, "Error: source code string cannot contain null bytes"),
  (write("mine.py", "from configs import quickstart\ndef get_config():\n  c = quickstart.get_config()\n"
         "  c.select.kk = 3\n  return c"), CONFIG, "select.kk is not a field; did you mean k?"),
  (write("mine.py", "from configs import quickstart\ndef get_config():\n  c = quickstart.get_config()\n"
         "  c.select.k = '4'\n  return c"), CONFIG, "select.k is '4': it must be of type int"),
  (write("mine.py", "from configs import quickstart\ndef get_config():\n  c = quickstart.get_config()\n"
         "  c.arms = ['gen_ssd']\n  return c"), CONFIG, "arms is ['gen_ssd']: it must be a dict"),
  (None, ("run", "--config=configs/own.py", "--workdir={folder}/run"), "needs three or four names"),
  (None, ("run", "--config=configs/own.py:a,b,c", "--workdir={folder}/run"), "needs TEST when PROBLEMS"),
  (None, ("run", "--config=configs/study.py:no", "--workdir={folder}/run"), "must be one of arms, sweeps"),
  (None, ("run", "--config=configs/paper.py:no", "--workdir={folder}/run"), "it must be arms joined by"),
  (None, ("run", "--config=configs/bundled.py:no", "--workdir={folder}/run"), "the name must be one of"),
  (None, ("run", "--config=configs/quickstart.py"), "the following arguments are required: --workdir"),
  (None, ("run", "--workdir={folder}/run"), "the following arguments are required: --config"),
  (None, ("run",), "the following arguments are required: --config, --workdir; see gen-ssd run --help"),
  # ---- the workdir
  (None, (*RUN[:2], "--workdir="), "it is '', which is not the path of a folder"),
  (None, (*RUN[:2], "--workdir=a\x1bb"), "it is 'a\\x1bb', which is not the path of a folder"),
  (write("run", "a file"), RUN, "it must be a folder that can be made and written (File exists)"),
  (write("run", "a file"), (*RUN[:2], "--workdir={folder}/run/below"), "written (Not a directory)"),
  (None, (*RUN[:2], "--workdir=/proc/nothing"), "it must be a folder that can be made and written ("),
  (None, (*RUN[:2], "--workdir={folder}/" + 300 * "x"), "written (File name too long)"),
  (write("run/config.json", "{"), RUN, "run/config.json is damaged (not JSON as it should be"),
  (write("run/config.json", b"\xff"), RUN, "run/config.json is damaged (not UTF-8 text)"),
  (write("run/config.json", "[" * 100000), RUN, "run/config.json is damaged (nested more than 100 levels deep)"),
  (write("run/config.json", []), RUN, "config.json holds no settings"),
  (write("run/config.json", {"name": "other"}), RUN, "belongs to another config"),
  # ---- other commands
  (None, ("plan",), "the following arguments are required: --config; see gen-ssd plan --help"),
  (None, (*PLAN, "--topology=v9:2x2"), "--topology is 'v9:2x2': it must be v4, v5e, v5p, v6e, tpu7x"),
  (None, (*PLAN, "--topology=v5p:7"), "--topology is 'v5p:7': it must be v4, v5e, v5p, v6e, tpu7x"),
  (None, (*PLAN, "--arm=gen_sdd"), "--arm is 'gen_sdd': it must be one of gen_ssd, posthoc"),
  (None, (*PLAN, "--tokens=-5"), "--tokens is -5: it must be 0 (half of select.max_tokens) or more"),
  (None, (*PLAN, "--price=nan"), "--price is nan: it must be 0 or more"),
  (None, (*PLAN, "--config.teacher.path=a/b"), "read as a hub name"),
  (None, (*PLAN, "--config.select.k=0"), "select.k is 0: it must be at least 1"),
  (None, ("sweep", "--config=nowhere.py", "--workdir={folder}"), "it must be a Python file that exists"),
  (None, ("sweep", "--config=configs/quickstart.py", "--workdir={folder}"), "it must define sweep(), which yields"),
  (None, ("sweep", "--config=configs/study.py:arms", "--workdir={folder}"), "yields the arguments itself, such as 'arms'; leave :arms out"),
  (None, ("sweep", "--config=configs/ablation.py"), "the following arguments are required: --workdir"),
  (None, ("sweep",), "the following arguments are required: --config, --workdir"),
  (sweep("yield {}"), (*SWEEP, "--quik"), "unrecognized arguments: --quik"),
  (sweep("yield {}"), (*SWEEP, "--config.seeds", "3"), "unrecognized arguments: 3"),
  (sweep("yield {}"), (*SWEEP, "--parallel=0"), "--parallel is 0: it must be at least 1"),
  (sweep("yield {}"), (*SWEEP, "--parallel=two"), "argument --parallel: invalid int value: 'two'"),
  (sweep("yield {}"), (*SWEEP, "--to=nowhere"), "--to is 'nowhere': it must be print, local, tpu_vm, mig, xpk, slurm"),
  (sweep("yield {}"), (*SWEEP, "--to=../launch/local"), "--to is '../launch/local': it must be print, local, tpu_vm"),
  (sweep("yield {}"), (*SWEEP, "--collect"), "--collect: none of the 1 items in"),
  (sweep("1 / 0; yield {}"), SWEEP, "line 4: ZeroDivisionError: division by zero"),
  (sweep("yield {}; exit(0)"), SWEEP, "line 4: SystemExit: 0"),
  (sweep("pass"), SWEEP, "returned None: it must yield items"),
  (sweep("return {'select.k': 3}"), SWEEP, "returned {'select.k': 3}: it must yield items"),
  (sweep("yield from ()"), SWEEP, "yields no items: it must be 1 to 1,000"),
  (sweep("while True: yield {}"), SWEEP, "yields more than 1,000 items: it must be 1 to 1,000"),
  (sweep("yield 3"), SWEEP, "yields 3: an item must be a dict of changed settings"),
  (sweep("yield ''"), SWEEP, "yields '': an item must be a dict of changed settings"),
  (sweep("yield 'a', {}, 3"), SWEEP, "yields ('a', {}, 3): an item must be a dict of changed settings"),
  (sweep("yield {}; yield {}"), SWEEP, "yields two items named base: give them different names"),
  (sweep("yield '../up', {}"), SWEEP, "yields an item named '../up': a name must be 1 to 100 of the characters"),
  (sweep("yield 3, {}"), SWEEP, "yields an item named 3: a name must be"),
  (sweep("yield 'sweep.json', {}"), SWEEP, "yields an item named 'sweep.json': a name must be"),
  (sweep("yield 'logs', {}"), SWEEP, "and be none of sweep.json, sweep.md"),
  (sweep("yield 'x' * 999, {}"), SWEEP, "xxx... (1,001 characters): a name must be"),
  (sweep("yield {'select.k': None}"), SWEEP, "yields None for select.k: it must be a number, True or False, text on one"),
  (sweep("yield {'select': {'k': 3}}"), SWEEP, "yields {'k': 3} for select: it must be a number"),
  (sweep("yield {'problems.system': 'a\\nb'}"), SWEEP, "for problems.system: it must be a number, True or False, text on one line"),
  (sweep("yield {'stages': ('train', 3)}"), SWEEP, "for stages: it must be a number, True or False, text on one line, or a tuple of texts"),
  (sweep("yield {3: 3}"), SWEEP, "yields the field 3: it must be one such as 'select.k'"),
  (sweep("yield {'select.k=3 --x': 3}"), SWEEP, "yields the field 'select.k=3 --x': it must be one such as"),
  (sweep("yield {'select.kk': 3}"), SWEEP, "item select.kk=3: select.kk is not a field; did you mean k?"),
  (sweep("yield {'arms.no.k': 3}"), SWEEP, "item arms.no.k=3: arms.no is not a field; known: "),
  (sweep("yield {'select.k': 'x'}"), SWEEP, "item select.k=x: select.k is 'x': it must be of type int"),
  (sweep("yield {}; yield {'select.c': 7}"), SWEEP, "item select.c=7: "),
  (sweep("yield {'teacher.path': 'bundled/x'}"), SWEEP, "bundled/x: there is no such bundled model"),
  (sweep("yield {}", "SWEEPS = 3"), SWEEP, "it must be {sweep: {line: [(value, item, arm)]}}"),
  (sweep("yield {}", "SWEEPS = {'k': {'a': [(1, 2)]}}"), SWEEP, "is {'k': {'a': [(1, 2)]}}: it must be {sweep: {line:"),
  (several(sweep("yield {}"), write("sweep/base/config.json", {"name": "other"})), SWEEP, "belongs to another config"),
  (several(sweep("yield {}"), write("sweep", "a file")), SWEEP, "it must be a folder that can be made and written"),
  (several(sweep("yield {}"), write("sweep/logs", "a file")), SWEEP, "sweep/logs is a file: it must be a folder"),
  (several(sweep("yield {}"), write("sweep/base/results.json", {}), write("sweep/base/report.html", "")), (*SWEEP, "--collect"), "base/config.json is missing"),
  (None, ("report",), "the following arguments are required: --workdir"),
  (None, ("report", "--workdir={folder}/none"), "does not exist: it must be the workdir of a run"),
  (write("file", ""), ("report", "--workdir={folder}/file"), "is not a folder: it must be the workdir"),
  (None, ("report", "--workdir={folder}"), "config.json is missing"),
  (write("config.json", "{"), REPORT, "config.json is damaged (not JSON as it should be"),
  (write("config.json", "[]"), REPORT, "config.json is damaged (it is [], not an object)"),
  (write("config.json", b"\xff"), REPORT, "config.json is damaged (not UTF-8 text)"),
  (write("config.json", "[" * 100000), REPORT, "nested more than 100 levels deep"),
  (None, ("weights",), "give either --check MODEL, or --convert FILE.gguf and --out DIR"),
  (None, ("weights", "--check", "nowhere"), "nowhere: there is no config.json"),
  (None, ("weights", "--check", "bundled/x"), "bundled/x: there is no such bundled model"),
  (None, ("weights", "--check", "a/b@*"), "is not the name of a branch, tag or commit"),
  (None, ("weights", "--check", "a--b/c"), "read as a hub name"),
  (None, ("weights", "--check", "models/x.gguf"), "models/x.gguf: there is no such file"),
  (model(config__json="{"), ("weights", "--check", "{folder}/model"), "not JSON in UTF-8"),
  (weights(lambda data: data[:99]), ("weights", "--check", "{folder}/model"), "not a whole safetensors file"),
  # ---- what earlier stages left in the workdir
  (kept("{"), EARLIER, "kept.json is damaged (not JSON as it should be"),
  (kept(b"\xff"), EARLIER, "kept.json is damaged (not UTF-8 text)"),
  (kept({}), EARLIER, "must be a list of pairs of uuid and attempt"),
  (kept([["a"]]), EARLIER, "must be a list of pairs of uuid and attempt"),
  (kept([["a", True]]), EARLIER, "must be a list of pairs of uuid and attempt"),
  (kept([["a", 0]]), EARLIER, "which is not among the traces in"),
  (kept([], None), EARLIER, "traces.json is missing"),
  (kept([], "../../x"), EARLIER, "must name a folder of traces/"),
  (kept([]), EARLIER, "there is nothing to train on: no trace was kept"),
  # ---- problem files
  (write("train.jsonl", ""), TRAIN, "train.jsonl has no rows: it must have at least one problem"),
  (write("train.jsonl", "not JSON"), TRAIN, "train.jsonl:1 is not JSON"),
  (rows(b"{"), TRAIN, "train.jsonl:2 is not JSON"),
  (rows(b"[" * 100000), TRAIN, "train.jsonl:2 is nested too deeply"),
  (rows(b"\xff\xfe"), TRAIN, "train.jsonl:2 is not UTF-8: byte"),
  (rows([]), TRAIN, "train.jsonl:2 is []: it must be an object"),
  (rows(3), TRAIN, "train.jsonl:2 is 3: it must be an object"),
  (rows({"answer": "3"}), TRAIN, "train.jsonl:2 has no field problem (or question)"),
  (rows({"problem": "1 + 2?"}), TRAIN, "train.jsonl:2 has no field answer"),
  (rows({"problem": 3, "answer": "3"}), TRAIN, "train.jsonl:2: problem is 3: it must be text"),
  (rows({"problem": "", "answer": "3"}), TRAIN, "train.jsonl:2: problem is '': it must not be empty"),
  (rows({"problem": " \n", "answer": "3"}), TRAIN, "it must not be empty"),
  (rows({"problem": "1 + 2?", "answer": ""}), TRAIN, "train.jsonl:2: answer is '': it must not be empty"),
  (rows({"problem": "1 + 2?", "answer": "  "}), TRAIN, "it must not be empty"),
  (rows({"problem": "1 + 2?", "answer": None}), TRAIN, "train.jsonl:2: answer is null: it must be there"),
  (rows({"problem": "1 + 2?", "answer": ["3"]}), TRAIN, "it must be text or a finite number"),
  (rows({"problem": "1 + 2?", "answer": {"a": 3}}), TRAIN, "it must be text or a finite number"),
  (rows({"problem": "1 + 2?", "answer": True}), TRAIN, "it must be text or a finite number"),
  (rows(b'{"problem": "1 + 2?", "answer": NaN}'), TRAIN, "it must be text or a finite number"),
  (rows(b'{"problem": "1 + 2?", "answer": 1e999}'), TRAIN, "it must be text or a finite number"),
  (rows(b'{"problem": "1 + \\ud800?", "answer": 3}'), TRAIN, "it must be Unicode, without half a pair"),
  (rows(b'{"problem": "1 + 2?", "answer": "\\ud800"}'), TRAIN, "it must be Unicode, without half a pair"),
  (rows({"problem": "What is 1 + 1?", "answer": "3"}), TRAIN, "has the same problem with the answer"),
  (rows({"problem": "what is  1 + 1?", "answer": "3"}), TRAIN, "has the same problem with the answer"),
  (rows({"uuid": "a", "problem": "1?", "answer": "1"}, {"uuid": "a", "problem": "2?", "answer": "2"}),
   TRAIN, "has for another problem"),
  (rows({"problem": "\u2603 \u2603", "answer": "3"}), (*TRAIN, "--config.problems.cold_start=1", "--config.problems.held_out=0", "--config.select.threshold=off", "--config.problems.train=0", "--config.problems.test=1"), "it must have a word that both tokenizers know"),
  (write("train.json", {"a": 1}), (*RUN, "--config.problems.source={folder}/train.json",
   "--config.problems.test_source=bundled"), "it must be a list of rows"),
  (write("train.parquet", "no"), (*RUN, "--config.problems.source={folder}/train.parquet",
   "--config.problems.test_source=bundled"), "is not Parquet"),
  (rows(name="train.jsonl"), (*TRAIN, "--config.problems.train=0"), "problems.cold_start is 160: the source"),
  (rows(), (*RUN, "--config.problems.source=gsm8k:{folder}/train.jsonl",
   "--config.problems.test_source=bundled"), "train.jsonl has 2 rows, gsm8k has 1319 (test) or 7473"),
  (rows(), (*RUN, "--config.problems.source={folder}/train.jsonl"), "problems.test_source is '': it must be set"),
  # ---- model directories
  (model(config__json=None), MODEL, "model: there is no config.json"),
  (model(config__json=""), MODEL, "config.json"),
  (model(config__json="{"), MODEL, "config.json"),
  (model(config__json=b"\xff\xfe\x00"), MODEL, "config.json"),
  (model(config__json="[]"), MODEL, "config.json"),
  (model(config__json="[" * 100000), MODEL, "config.json"),
  (model(config__json=dict(model_type="gpt2")), MODEL, "model_type 'gpt2' is not supported, only"),
  (model(config__json=dict(model_type=None)), MODEL, "model_type None is not supported, only"),
  (model(config__json=dict(model_type=["qwen3"])), MODEL, "is not supported, only"),
  (model(config__json=dict(hidden_size="abc")), MODEL, "hidden_size"),
  (model(config__json=dict(hidden_size=0)), MODEL, "hidden_size is 0, wanted a whole number from 1 to"),
  (model(config__json=dict(hidden_size=-64)), MODEL, "hidden_size is -64, wanted a whole number from 1 to"),
  (model(config__json=dict(hidden_size=10**12)), MODEL, "hidden_size is 1000000000000, wanted a whole number from 1 to"),
  (model(config__json=dict(num_hidden_layers=0)), MODEL, "num_hidden_layers is 0, wanted a whole number from 1"),
  (model(config__json=dict(num_hidden_layers=2)), MODEL, "transformers refuses it"),
  (model(config__json=dict(num_attention_heads=0)), MODEL, "num_attention_heads is 0, wanted a whole number from 1"),
  (model(config__json=dict(num_attention_heads=3)), MODEL, "key-value heads"),
  (model(config__json=dict(head_dim=15)), MODEL, "RoPE requires an even rotary dimension"),
  (model(config__json=dict(vocab_size=7)), MODEL, "shape: model.embed_tokens.weight has [128, 64], wanted [7, 64]"),
  (model(config__json=dict(rms_norm_eps="x")), MODEL, "rms_norm_eps"),
  (model(config__json=dict(rms_norm_eps=-1)), MODEL, "rms_norm_eps is -1, wanted a finite number above 0"),
  (model(config__json=dict(hidden_act="relu")), MODEL, "hidden_act 'relu' is not supported, only"),
  (model(config__json=dict(attention_bias=True)), MODEL, "attention_bias"),
  (model(config__json=dict(quantization_config={"quant_method": "gptq"})), MODEL, "a quantised checkpoint"),
  (model(generation_config__json="{"), MODEL, "generation_config.json"),
  (model(generation_config__json=dict(eos_token_id="end")), MODEL, "eos_token_id"),
  (model(generation_config__json=dict(eos_token_id=10**9)), MODEL, "1000000000"),
  (model(generation_config__json=dict(eos_token_id=-5)), MODEL, "-5"),
  (model(generation_config__json=dict(eos_token_id=[[1]])), MODEL, "eos_token_id"),
  (model(model__safetensors=None), MODEL, "it has no model.safetensors"),
  (model(model__safetensors=""), MODEL, "model.safetensors"),
  (model(model__safetensors=b"\x00" * 100), MODEL, "model.safetensors"),
  (weights(lambda data: data[:-100]), MODEL, "model.safetensors"),
  (weights(lambda data: data + b"\x00" * 100), MODEL, "model.safetensors"),
  (header(lambda h: {n: {**e, "data_offsets": [0, e["data_offsets"][1] - e["data_offsets"][0]]}
                     if n != "__metadata__" else e for n, e in h.items()}), MODEL, "model.safetensors"),
  (header(lambda h: {n: {**e, "shape": [1, *e["shape"]]} if n != "__metadata__" else e
                     for n, e in h.items()}), MODEL, "the weights are not those asked for"),
  (header(lambda h: {n: e for n, e in h.items() if n != "model.norm.weight"}), MODEL, "model.safetensors"),
  (header(lambda h: {n: {**e, "dtype": "I8"} if n == "model.norm.weight" else e for n, e in h.items()}),
   MODEL, "model.safetensors"),
  (model(**{"model__safetensors__index__json": "{"}), MODEL, "model.safetensors.index.json"),
  (model(**{"model__safetensors__index__json": "[]"}), MODEL, "model.safetensors.index.json"),
  (model(**{"model__safetensors__index__json": dict(weight_map={"a": "../../x"})}), MODEL, "../../x"),
  (model(**{"model__safetensors__index__json": dict(weight_map={"a": "/etc/passwd"})}), MODEL, "passwd"),
  (model(**{"model__safetensors__index__json": dict(weight_map={"a": 3})}), MODEL, "index"),
  (model(**{"model__safetensors__index__json": dict(weight_map={"a": "b.safetensors"})}), MODEL,
   "b.safetensors: the index names this file, but it does not exist"),
  (model(tokenizer_config__json=None), MODEL, "no tokenizer_config.json"),
  (model(tokenizer_config__json="{"), MODEL, "transformers refuses its tokenizer"),
  (model(tokenizer__json=None), MODEL, "transformers refuses its tokenizer"),
  (model(tokenizer__json=""), MODEL, "transformers refuses its tokenizer"),
  (model(tokenizer__json="{}"), MODEL, "transformers refuses its tokenizer"),
  (model(tokenizer__json=b"\xff\xfe"), MODEL, "transformers refuses its tokenizer"),
  (model(tokenizer__json='{"version": 3, "model": []}'), MODEL, "transformers refuses its tokenizer"),
  # ---- chat templates
  (write("t.jinja", ""), MODEL_TEMPLATE, "t.jinja: the file is empty"),
  (write("t.jinja", "hello"), MODEL_TEMPLATE, "does not contain the problem"),
  (write("t.jinja", "{{"), MODEL_TEMPLATE, "fails on roles user, assistant: line 1"),
  (write("t.jinja", "{% for m in messages %}"), MODEL_TEMPLATE, "fails on roles user, assistant: line 1"),
  (write("t.jinja", "{{ 1 / 0 }}"), MODEL_TEMPLATE, "fails on roles user, assistant: ZeroDivisionError"),
  (write("t.jinja", "{{ nothing.there }}"), MODEL_TEMPLATE, "fails on roles user, assistant: "),
  (write("t.jinja", "{{ messages[9].content }}"), MODEL_TEMPLATE, "fails on roles user, assistant: "),
  (write("t.jinja", "{{ raise_exception('never') }}"), MODEL_TEMPLATE, "never"),
  (write("t.jinja", "{% include 'x' %}"), MODEL_TEMPLATE, "fails on roles user, assistant: "),
  (write("t.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), MODEL_TEMPLATE, "fails on roles user, assistant: RecursionError"),
  (write("t.jinja", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
   MODEL_TEMPLATE, "takes more than 10 seconds"),
  (write("t.jinja", "{{ range(10**9) | list }}"), MODEL_TEMPLATE, "fails on roles user, assistant: OverflowError"),
  (write("t.jinja", b"\xff\xfe"), MODEL_TEMPLATE, "t.jinja"),
]  # fmt: skip


def make(case, folder):
  """Makes the files of a case and returns its command."""
  maker, flags, _ = case
  if maker:
    maker(folder)
  return [flag.replace("{folder}", os.fspath(folder)) for flag in flags]
