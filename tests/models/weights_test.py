"""Hugging Face directories: exact round trips, and errors that name what is wrong."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from gen_ssd import mesh
from gen_ssd import weights as command
from gen_ssd.errors import UserError
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from tests.models.decoder_test import CASES
from tests.models.decoder_test import all_logits
from tests.models.decoder_test import golden
from tests.models.hf_test import edit_config


@pytest.fixture(autouse=True)
def four_devices():
  mesh.start(2, devices=jax.devices()[:4])


def tensors(folder):
  return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same_tensors(a, b):
  a, b = tensors(a), tensors(b)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    assert a[name].tobytes() == b[name].tobytes(), name


def edit_weights(folder, change):
  found = dict(tensors(folder))
  change(found)
  save_file(found, folder / "model.safetensors")


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_export_of_an_import_is_the_same_bit_by_bit(name, dtype, tmp_path):
  source, _, _ = golden(name, tmp_path / "in", jnp.dtype(dtype))
  if name == "llama_linear":  # one key-value head, which no mesh can split
    with pytest.raises(ValueError, match="leaf q .*'model': 2.*its 1 key-value heads"):
      weights.load(source)
    mesh.start(1, devices=jax.devices()[:4])
  net = weights.load(source, Layout(dtype=dtype))
  export.save(tmp_path / "out", net, source)
  assert_same_tensors(source, tmp_path / "out")
  assert (tmp_path / "out" / "config.json").read_text() == (source / "config.json").read_text()


def test_several_files_with_an_index(tmp_path):
  source, tokens, want = golden("qwen3", tmp_path / "in")
  export.save(tmp_path / "out", weights.load(source), source, shard_bytes=9000)
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  files = sorted(set(index["weight_map"].values()))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(source).values())
  assert_same_tensors(source, tmp_path / "out")
  again = weights.load(tmp_path / "out")
  tokens = mesh.place(np.stack([tokens, tokens]), jax.P("data"))
  np.testing.assert_allclose(all_logits(again, tokens)[1], want, atol=1e-4)


def test_fsdp_and_tensor_parallel_loads_are_the_same_numbers(tmp_path):
  source, _, _ = golden("qwen2", tmp_path)
  split = weights.load(source)
  fsdp = weights.load(source, Layout(fsdp_axes=("data", "model")))
  assert split.blocks.q[...].sharding.spec == jax.P(None, None, "model", None, None)
  assert fsdp.blocks.q[...].sharding.spec == jax.P(None, ("data", "model"), None, None, None)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
    jax.tree.leaves(split),
    jax.tree.leaves(fsdp),
  )


def test_every_number_is_read_once(tmp_path, monkeypatch):
  source, _, _ = golden("qwen3", tmp_path)
  read, fill = [], weights._fill
  monkeypatch.setattr(weights, "_fill", lambda out, *a: read.append(out.size) or fill(out, *a))
  weights.load(source, Layout(fsdp_axes=("data", "model")))
  assert sum(read) == sum(x.size for x in tensors(source).values())


@pytest.mark.parametrize("block", [1, 100])
def test_tensors_in_pieces_of_rows_and_layers_are_the_same(block, tmp_path, monkeypatch):
  source, _, _ = golden("gemma3", tmp_path)
  whole, layers, put = weights.load(source), [], weights._put
  monkeypatch.setattr(safetensors_io, "BLOCK", block)
  monkeypatch.setattr(weights, "PIECE", 0)
  monkeypatch.setattr(weights, "_put", lambda *a: layers.append(a[1].shape) or put(*a))
  pieces = weights.load(source)
  assert (1, 16, 24) in layers  # one layer at a time where it is as large as the embedding
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
    jax.tree.leaves(whole),
    jax.tree.leaves(pieces),
  )
  export.save(tmp_path / "out", pieces, source)
  assert_same_tensors(source, tmp_path / "out")


def test_norms_stay_float32_and_the_rest_is_cast(tmp_path):
  source, _, _ = golden("qwen3", tmp_path)
  net = weights.load(source, Layout(dtype="bfloat16"))
  assert net.blocks.q[...].dtype == jnp.bfloat16
  assert {getattr(net.blocks, n)[...].dtype for n in ("ln1", "ln2", "qn", "kn")} == {
    jnp.dtype("float32")
  }


def test_tied_head_may_be_in_the_file_when_it_is_equal(tmp_path):
  source, _, _ = golden("qwen2", tmp_path)
  embed = "model.embed_tokens.weight"
  edit_weights(source, lambda w: w.update({"lm_head.weight": w[embed].copy()}))
  net = weights.load(source)
  assert net.arch.tied and not hasattr(net, "head")
  edit_weights(source, lambda w: w.update({"lm_head.weight": w[embed] + 1}))
  with pytest.raises(ValueError, match="lm_head.weight is not.*tie_word_embeddings"):
    weights.load(source)


# ---------------------------------------------------------------- broken directories


@pytest.fixture
def broken(tmp_path, monkeypatch):
  """A golden directory to break, and the error of loading it, found without reading a weight."""
  source, _, _ = golden("llama", tmp_path)

  def error():
    monkeypatch.setattr(safetensors_io, "rows", None)
    with pytest.raises(ValueError) as caught:
      weights.load(source)
    return str(caught.value)

  return source, error


def test_missing_unexpected_and_misshaped_tensors_in_one_error(broken):
  source, error = broken

  def change(found):
    del found["model.layers.1.mlp.up_proj.weight"], found["lm_head.weight"]
    found["model.norm.weight"] = np.ones(7, np.float32)
    found["model.layers.2.mlp.up_proj.weight"] = np.ones((3, 2), np.float32)
    found["model.layers.0.mlp.up_proj.weight"] = np.ones((24, 16), np.int8)
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

  edit_weights(source, change)
  message = error()
  assert str(source) in message
  for line in (
    "missing: model.layers.1.mlp.up_proj.weight, wanted [24, 16]",
    "missing: lm_head.weight, wanted [40, 16]",
    "shape: model.norm.weight has [7], wanted [16]",
    "dtype: model.layers.0.mlp.up_proj.weight is I8, wanted one of F32",
    "unexpected: model.layers.2.mlp.up_proj.weight [3, 2]",
  ):
    assert line in message, line
  assert "inv_freq" not in message


def test_a_file_that_is_cut_off_anywhere_is_named(broken):
  source, error = broken
  file = source / "model.safetensors"
  whole = file.read_bytes()
  for size in (len(whole) - 1, len(whole) // 2, 200, 8, 3, 0):
    file.write_bytes(whole[:size])
    message = error()
    assert "the weights cannot be read\n  model.safetensors: not a whole safetensors" in message
    assert "missing" not in message, "what is wrong is the file"


@pytest.fixture
def indexed(broken, tmp_path):
  """`broken` in several files with an index; writes the index anew; the name of its first file."""
  source, error = broken
  export.save(tmp_path / "out", weights.load(source), source, shard_bytes=9000)
  (source / "model.safetensors").unlink()
  for file in (tmp_path / "out").glob("model*"):
    file.rename(source / file.name)
  index = source / "model.safetensors.index.json"
  where = json.loads(index.read_text())["weight_map"]
  return source, error, lambda new: index.write_text(json.dumps({"weight_map": new})), where


EMBED = "model.embed_tokens.weight"


def test_index_naming_a_file_that_is_not_there(indexed):
  source, error, _, where = indexed
  (source / where[EMBED]).unlink()
  assert f"{where[EMBED]}: the index names this file, but it does not exist" in error()


def test_index_that_says_another_file_than_the_one_with_the_tensor(indexed):
  source, error, say, where = indexed
  last = where["lm_head.weight"]
  say({**where, EMBED: last})
  assert f"{last}: model.safetensors.index.json says that {EMBED} is in it, but it" in error()


def test_a_tensor_in_two_files_of_the_index(indexed):
  source, error, _, where = indexed
  last = where["lm_head.weight"]
  found = load_file(source / last)
  save_file({**found, EMBED: load_file(source / where[EMBED])[EMBED] + 1}, source / last)
  assert f"{last}: {EMBED} is in {where[EMBED]}, too" in error()


@pytest.mark.parametrize(
  "value", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", 3, None]
)
def test_an_index_may_not_name_what_is_not_beside_it(value, indexed):
  source, error, say, where = indexed
  (source.parent / "x.safetensors").write_bytes((source / where[EMBED]).read_bytes())
  say({**where, EMBED: value})
  assert f"the file of {EMBED} is {value!r}, wanted the name of a .safetensors" in error()


def test_weights_may_be_links_as_in_the_cache_of_the_hub(broken, tmp_path):
  source, _ = broken
  (tmp_path / "blobs").mkdir()
  (source / "model.safetensors").rename(tmp_path / "blobs" / "0123")
  (source / "model.safetensors").symlink_to("../" * len(tmp_path.parts) + f"{tmp_path}/blobs/0123")
  weights.load(source)


@pytest.mark.parametrize("found", [[], {}, "x", None, 5])
def test_an_index_without_a_weight_map(found, indexed):
  _, error, say, _ = indexed
  say(found)
  assert "index.json: weight_map is " in error()


@pytest.mark.parametrize(
  "content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000]
)
def test_an_index_that_is_not_a_json_object(content, indexed):
  source, error, _, _ = indexed
  (source / "model.safetensors.index.json").write_bytes(content)
  assert "model.safetensors.index.json: " in error()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_loaded(value, tmp_path):
  source, _, _ = golden("llama", tmp_path)
  name = "model.layers.1.mlp.up_proj.weight"

  def change(found):
    found[name] = found[name].copy()
    found[name][3, 5] = value

  edit_weights(source, change)
  with pytest.raises(UserError, match=f"model.safetensors: {name} holds NaN or infinity as float"):
    weights.load(source)


def test_a_weight_too_large_for_the_dtype_it_is_loaded_as(tmp_path):
  source, _, _ = golden("llama", tmp_path)
  most = np.finfo(np.float32).max  # bfloat16 rounds it to infinity
  edit_weights(source, lambda w: w.update({EMBED: np.full_like(w[EMBED], most)}))
  weights.load(source)
  with pytest.raises(UserError, match=f"{EMBED} holds NaN or infinity as bfloat16"):
    weights.load(source, Layout(dtype="bfloat16"))


def test_pickles_are_refused_with_advice(broken):
  source, error = broken
  (source / "model.safetensors").rename(source / "pytorch_model.bin")
  assert "pickles" in error() and "save_pretrained" in error()
  (source / "pytorch_model.bin").unlink()
  assert "no model.safetensors" in error()


# ---------------------------------------------------------------- writing


@pytest.fixture
def imported(tmp_path):
  source, _, _ = golden("qwen2", tmp_path / "in")
  for name in (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "training_args.bin",
    "README.md",
  ):
    (source / name).write_text(f"{{}} {name}")
  return source, weights.load(source)


def test_tokenizer_and_licence_go_along_and_nothing_else(imported, tmp_path):
  source, net = imported
  export.save(tmp_path / "out", net, source)
  assert {f.name for f in (tmp_path / "out").iterdir()} == {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "model.safetensors",
  }
  assert (tmp_path / "out" / "merges.txt").read_text() == "{} merges.txt"
  assert sorted(f.name for f in tmp_path.iterdir()) == ["in", "out"]


def test_another_dtype_is_written_and_named_in_the_config(imported, tmp_path):
  source, net = imported
  edit_config(source, torch_dtype="float32")
  export.save(tmp_path / "out", net, source, dtype="bfloat16")
  assert {x.dtype for x in tensors(tmp_path / "out").values()} == {jnp.dtype("bfloat16")}
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config == {**json.loads((source / "config.json").read_text()), "torch_dtype": "bfloat16"}


def test_an_export_is_replaced_whole_or_not_at_all(imported, tmp_path, monkeypatch):
  source, net = imported
  out = tmp_path / "out"
  export.save(out, net, source, shard_bytes=9000)
  (out / "stale.txt").write_text("")
  with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):

    def full(*a, **k):
      raise OSError("disk full")

    patch.setattr(safetensors_io, "write", full)
    export.save(out, net, source)
  assert_same_tensors(source, out)
  export.save(out, net, source)
  assert_same_tensors(source, out)
  assert not (out / "stale.txt").exists() and not list(out.glob("*.index.json"))
  assert sorted(f.name for f in tmp_path.iterdir()) == ["in", "out"]


def test_what_is_not_an_export_is_not_replaced(imported, tmp_path):
  source, net = imported
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
  for path in (tmp_path / "thesis", source):
    with pytest.raises(ValueError, match="not replaced"):
      export.save(path, net, source)


def test_weights_that_are_not_finite_replace_no_export(imported, tmp_path):
  source, net = imported
  export.save(tmp_path / "out", net, source)
  up = net.blocks.up
  up[...] = up[...] * jnp.nan
  with pytest.raises(FloatingPointError, match="layers.0.mlp.up_proj.weight holds NaN or infin"):
    export.save(tmp_path / "out", net, source)
  assert_same_tensors(source, tmp_path / "out")


def test_source_of_another_model(imported, tmp_path):
  _, net = imported
  other, _, _ = golden("qwen3", tmp_path / "other")
  with pytest.raises(ValueError, match=r"another model.*theta: 5000000.0 there, 300000.0 here"):
    export.save(tmp_path / "out", net, other)
  assert not (tmp_path / "out").exists()


def test_the_command_ends_in_one_line_for_a_damaged_model(tmp_path, capsys, monkeypatch):
  source, _, _ = golden("llama", tmp_path / "in")
  (source / "model.safetensors").write_bytes(b"x" * 99)
  monkeypatch.setattr(signal, "signal", lambda *args: None)  # of this process
  monkeypatch.setattr("sys.argv", ["gen-ssd weights", "--check", str(source)])
  with pytest.raises(SystemExit) as caught:
    command.main()
  printed = capsys.readouterr().err
  assert caught.value.code == 2 and printed.startswith("gen_ssd: ") and "not a whole" in printed
  assert printed.count("model.safetensors") == 1 and "Traceback" not in printed


def test_check_finds_the_tokenizer_of_another_model(tmp_path):
  source, _, _ = golden("llama", tmp_path / "in")  # of 40 tokens
  for file in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copyfile(f"{hf.locate('bundled/teacher')}/{file}", source / file)
  with pytest.raises(UserError, match="is not the model's: it uses id .* vocabulary has 40"):
    command.check(str(source))


def test_check_does_not_compare_what_does_not_fit(tmp_path, capsys, monkeypatch):
  source, _, _ = golden("gemma3", tmp_path / "in")
  monkeypatch.setattr(command, "_free_memory", lambda: 10_000)
  command.check(str(source))
  printed = capsys.readouterr().out
  assert "gemma3_text: vocab 40, width 16, layers 4" in printed and "window 7" in printed
  assert "logits        not compared: both models in float32 need 0 GB" in printed


@pytest.mark.parametrize(
  "name",
  [
    "llama",
    "mistral",
    "olmo2",
    "qwen3_yarn",
    "r1_distill_qwen",
    "r1_distill_llama",
    "gemma3",
    "gemma3_nested",
  ],
)
def test_transformers_agrees_with_an_export(name, tmp_path, capsys):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  source, tokens, want = golden(name, tmp_path / "in")
  export.save(tmp_path / "out", weights.load(source), source, shard_bytes=9000)
  theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
  with torch.no_grad():
    got = theirs(torch.tensor(tokens[None]).long()).logits[0].numpy()
  np.testing.assert_allclose(got, want, atol=1e-4)
  command.check(str(tmp_path / "out"))
  printed = capsys.readouterr().out
  assert "architecture  " in printed and "none (no tokenizer.json)" in printed
  assert float(printed.split("at most ")[1].split()[0]) < 1e-4
