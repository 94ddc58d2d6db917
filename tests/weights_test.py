"""Hugging Face directories: exact round trips, and errors that name what is wrong."""
import dataclasses
import json

import jax
import jax.numpy as jnp
from model_test import CASES
from model_test import all_logits
from model_test import golden
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from gen_ssd import mesh
from gen_ssd import tensors as tensors_lib
from gen_ssd import weights


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


def edit_config(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, **changes}))


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
      weights.load(source, weights.read_shape(source))
    mesh.start(1, devices=jax.devices()[:4])
  net = weights.load(source, weights.read_shape(source, dtype=dtype))
  weights.save(tmp_path / "out", net, source)
  assert_same_tensors(source, tmp_path / "out")
  assert (tmp_path / "out" / "config.json").read_text() == (source / "config.json").read_text()


def test_several_files_with_an_index(tmp_path):
  source, tokens, want = golden("qwen3", tmp_path / "in")
  shape = weights.read_shape(source)
  weights.save(tmp_path / "out", weights.load(source, shape), source, shard_bytes=9000)
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  files = sorted(set(index["weight_map"].values()))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(source).values())
  assert_same_tensors(source, tmp_path / "out")
  again = weights.load(tmp_path / "out", shape)
  tokens = mesh.place(np.stack([tokens, tokens]), jax.P("data"))
  np.testing.assert_allclose(all_logits(again, tokens)[1], want, atol=1e-4)


def test_fsdp_and_tensor_parallel_loads_are_the_same_numbers(tmp_path):
  source, _, _ = golden("qwen2", tmp_path)
  shape = weights.read_shape(source)
  split = weights.load(source, shape)
  fsdp = weights.load(source, shape, ("data", "model"))
  assert split.blocks.q[...].sharding.spec == jax.P(None, None, "model", None, None)
  assert fsdp.blocks.q[...].sharding.spec == jax.P(None, ("data", "model"), None, None, None)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
               jax.tree.leaves(split), jax.tree.leaves(fsdp))


def test_every_number_is_read_once(tmp_path, monkeypatch):
  source, _, _ = golden("qwen3", tmp_path)
  read, fill = [], weights._fill
  monkeypatch.setattr(weights, "_fill", lambda out, *a: read.append(out.size) or fill(out, *a))
  weights.load(source, weights.read_shape(source), ("data", "model"))
  assert sum(read) == sum(x.size for x in tensors(source).values())


@pytest.mark.parametrize("block", [1, 100])
def test_tensors_in_pieces_of_rows_and_layers_are_the_same(block, tmp_path, monkeypatch):
  source, _, _ = golden("gemma3", tmp_path)
  shape = weights.read_shape(source)
  whole, layers, put = weights.load(source, shape), [], weights._put
  monkeypatch.setattr(weights, "BLOCK", block)
  monkeypatch.setattr(weights, "PIECE", 0)
  monkeypatch.setattr(weights, "_put", lambda *a: layers.append(a[1].shape) or put(*a))
  pieces = weights.load(source, shape)
  assert (1, 16, 24) in layers  # one layer at a time where it is as large as the embedding
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
               jax.tree.leaves(whole), jax.tree.leaves(pieces))


def test_norms_stay_float32_and_the_rest_is_cast(tmp_path):
  source, _, _ = golden("qwen3", tmp_path)
  net = weights.load(source, weights.read_shape(source, dtype="bfloat16"))
  assert net.blocks.q[...].dtype == jnp.bfloat16
  assert {getattr(net.blocks, n)[...].dtype for n in ("ln1", "ln2", "qn", "kn")} == {
      jnp.dtype("float32")}


def test_tied_head_may_be_in_the_file_when_it_is_equal(tmp_path):
  source, _, _ = golden("qwen2", tmp_path)
  embed = "model.embed_tokens.weight"
  edit_weights(source, lambda w: w.update({"lm_head.weight": w[embed].copy()}))
  shape = weights.read_shape(source)
  assert shape.tied and not hasattr(weights.load(source, shape), "head")
  edit_weights(source, lambda w: w.update({"lm_head.weight": w[embed] + 1}))
  with pytest.raises(ValueError, match="lm_head.weight is not.*tie_word_embeddings"):
    weights.load(source, shape)


# ---------------------------------------------------------------- config.json

def test_shapes_of_both_config_formats(tmp_path):
  old = weights.read_shape(golden("llama", tmp_path / "llama")[0], dtype="bfloat16", rows=None)
  assert (old.theta, old.head, old.kv_heads, old.groups) == (5e5, 4, 2, 2)
  assert old.rope == ("llama3", ("factor", 8.0), ("high_freq_factor", 4.0),
                      ("low_freq_factor", 1.0), ("original_max_position_embeddings", 16))
  assert (old.dtype, old.rows, old.bias, old.qk_norm, old.tied) == (
      "bfloat16", None, False, False, False)
  hash(old)
  new = weights.read_shape(golden("qwen3", tmp_path / "qwen3")[0])
  assert (new.theta, new.head, new.qk_norm, new.bias, new.rope) == (
      5e6, 8, True, False, ("default",))
  qwen2 = weights.read_shape(golden("qwen2", tmp_path / "qwen2")[0])
  assert (qwen2.bias, qwen2.tied, qwen2.head, qwen2.theta) == (True, True, 4, 3e5)
  source, _, _ = golden("llama", tmp_path / "mistral")
  edit_config(source, model_type="mistral", sliding_window=None)
  assert weights.read_shape(source) == dataclasses.replace(old, dtype="float32", rows="data")
  distill = weights.read_shape(golden("r1_distill_qwen", tmp_path / "r1")[0])
  assert (distill.bias, distill.tied, distill.local, distill.groups) == (True, False, (), 3)


def test_shapes_of_both_gemma_formats(tmp_path):
  old = weights.read_shape(golden("gemma3", tmp_path / "old")[0])
  assert (old.act, old.qk_norm, old.post_norms, old.norm_offset) == ("gelu_tanh", True, True, 1)
  assert (old.embed_scale, old.query_scale) == (4, (6 / 11) ** 0.5)
  assert (old.local, old.window) == ((True, True, False, True), 7)
  assert (old.theta, old.rope) == (3e5, ("linear", ("factor", 8.0)))
  assert (old.local_theta, old.local_rope) == (2e3, ("default",))
  new = weights.read_shape(golden("gemma3_nested", tmp_path / "new")[0])
  assert new.local == (False, True, True) and new.query_scale == 1
  assert (new.theta, new.rope) == (4e4, ("default",))
  assert (new.local_theta, new.local_rope) == (5e2, ("linear", ("factor", 2.0)))
  hash(new)


REFUSED = {
    "model_type 'mixtral'.*llama, mistral, qwen2, qwen3, gemma3_text": dict(model_type="mixtral"),
    "model_type 'qwen3_moe'": dict(model_type="qwen3_moe"),
    "model_type 'gemma3'.*those without images": dict(model_type="gemma3"),
    "model_type 'never_heard_of_it'": dict(model_type="never_heard_of_it"),
    "model_type None": dict(model_type=None),
    "rope type 'dynamic'.*default, linear, llama3, yarn": dict(
        rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "rope type 'longrope'": dict(rope_scaling=dict(
        rope_type="longrope", short_factor=[1.0] * 2, long_factor=[1.0] * 2, factor=2.0)),
    "partial_rotary_factor 0.5": dict(partial_rotary_factor=0.5),
    "hidden_act 'gelu'": dict(hidden_act="gelu"),
    "attention_bias": dict(attention_bias=True),
    "mlp_bias": dict(mlp_bias=True),
    "quantised": dict(quantization_config=dict(quant_method="gptq", bits=4)),
    "sliding window": dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1),
    "sliding window in use": dict(model_type="mistral", sliding_window=32),
    "layer_types.*sliding_attention": dict(
        model_type="qwen3", head_dim=4, layer_types=["full_attention", "sliding_attention"]),
    "attention_bias.*o_proj": dict(model_type="qwen3", head_dim=4, attention_bias=True),
}


REFUSED_GEMMA = {
    "final_logit_softcapping is not supported": dict(final_logit_softcapping=30.0),
    "attn_logit_softcapping": dict(attn_logit_softcapping=50.0),
    "use_bidirectional_attention": dict(use_bidirectional_attention=True),
    "rope type 'dynamic'": dict(rope_parameters={
        "full_attention": dict(rope_type="default"),
        "sliding_attention": dict(rope_type="dynamic", factor=2.0)}),
    "sliding_attention with sliding_window None": dict(sliding_window=None),
}


@pytest.mark.parametrize("message", REFUSED_GEMMA)
def test_what_gemma_may_not_ask_for(message, tmp_path):
  source, _, _ = golden("gemma3_nested", tmp_path)
  edit_config(source, **REFUSED_GEMMA[message])
  with pytest.raises(ValueError, match=message):
    weights.read_shape(source)


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_compute_something_else_is_refused(message, tmp_path):
  source, _, _ = golden("llama", tmp_path)
  edit_config(source, **REFUSED[message])
  with pytest.raises(ValueError, match=message):
    weights.read_shape(source)


def test_no_config_says_where_to_get_one(tmp_path):
  with pytest.raises(ValueError, match="no config.json.*hf download"):
    weights.read_shape(tmp_path / "nowhere")


# ---------------------------------------------------------------- broken directories

@pytest.fixture
def broken(tmp_path, monkeypatch):
  """A golden directory to break, and the error of loading it, found without reading a weight."""
  source, _, _ = golden("llama", tmp_path)
  shape = weights.read_shape(source)

  def error():
    monkeypatch.setattr(tensors_lib, "rows", None)
    with pytest.raises(ValueError) as caught:
      weights.load(source, shape)
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
  for line in ("missing: model.layers.1.mlp.up_proj.weight, wanted [24, 16]",
               "missing: lm_head.weight, wanted [40, 16]",
               "shape: model.norm.weight has [7], wanted [16]",
               "dtype: model.layers.0.mlp.up_proj.weight is I8, wanted one of F32",
               "unexpected: model.layers.2.mlp.up_proj.weight [3, 2]"):
    assert line in message, line
  assert "inv_freq" not in message


def test_truncated_file_names_the_tensors_it_lacks(broken):
  source, error = broken
  file = source / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  message = error()
  assert message.count("truncated: ") == 1 and "past the end of model.safetensors" in message
  file.write_bytes(file.read_bytes()[:200])
  message = error()
  assert "model.safetensors: not a safetensors file, or truncated inside its header" in message
  assert message.count("missing: ") == 19 and "... and 2 more" in message


def test_index_naming_a_file_that_is_not_there(broken, tmp_path):
  source, error = broken
  weights.save(tmp_path / "out", weights.load(source, weights.read_shape(source)), source,
               shard_bytes=9000)
  (source / "model.safetensors").unlink()
  for file in (tmp_path / "out").glob("model*"):
    file.rename(source / file.name)
  gone = sorted(source.glob("*.safetensors"))[0]
  gone.unlink()
  message = error()
  assert f"{gone.name}: the index names it, it is not there" in message
  assert "missing: model.embed_tokens.weight, wanted [40, 16]" in message


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
  for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
               "merges.txt", "chat_template.jinja", "LICENSE", "training_args.bin", "README.md"):
    (source / name).write_text(f"{{}} {name}")
  return source, weights.load(source, weights.read_shape(source))


def test_tokenizer_and_licence_go_along_and_nothing_else(imported, tmp_path):
  source, net = imported
  weights.save(tmp_path / "out", net, source)
  assert {f.name for f in (tmp_path / "out").iterdir()} == {
      "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
      "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE", "model.safetensors"}
  assert (tmp_path / "out" / "merges.txt").read_text() == "{} merges.txt"
  assert sorted(f.name for f in tmp_path.iterdir()) == ["in", "out"]


def test_another_dtype_is_written_and_named_in_the_config(imported, tmp_path):
  source, net = imported
  edit_config(source, torch_dtype="float32")
  weights.save(tmp_path / "out", net, source, dtype="bfloat16")
  assert {x.dtype for x in tensors(tmp_path / "out").values()} == {jnp.dtype("bfloat16")}
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config == {**json.loads((source / "config.json").read_text()), "torch_dtype": "bfloat16"}


def test_an_export_is_replaced_whole_or_not_at_all(imported, tmp_path, monkeypatch):
  source, net = imported
  out = tmp_path / "out"
  weights.save(out, net, source, shard_bytes=9000)
  (out / "stale.txt").write_text("")
  with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
    def full(*a, **k):
      raise OSError("disk full")
    patch.setattr(tensors_lib, "write", full)
    weights.save(out, net, source)
  assert_same_tensors(source, out)
  weights.save(out, net, source)
  assert_same_tensors(source, out)
  assert not (out / "stale.txt").exists() and not list(out.glob("*.index.json"))
  assert sorted(f.name for f in tmp_path.iterdir()) == ["in", "out"]


def test_what_is_not_an_export_is_not_replaced(imported, tmp_path):
  source, net = imported
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
  for path in (tmp_path / "thesis", source):
    with pytest.raises(ValueError, match="not replaced"):
      weights.save(path, net, source)


def test_source_of_another_model(imported, tmp_path):
  _, net = imported
  other, _, _ = golden("qwen3", tmp_path / "other")
  with pytest.raises(ValueError, match=r"another model.*theta: 5000000.0 there, 300000.0 here"):
    weights.save(tmp_path / "out", net, other)
  assert not (tmp_path / "out").exists()


def test_transformers_agrees_with_an_export(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM
  source, tokens, want = golden("qwen3_yarn", tmp_path / "in")
  weights.save(tmp_path / "out", weights.load(source, weights.read_shape(source)), source,
               shard_bytes=9000)
  theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
  with torch.no_grad():
    got = theirs(torch.tensor(tokens[None]).long()).logits[0].numpy()
  np.testing.assert_allclose(got, want, atol=1e-4)
  weights.check(str(tmp_path / "out"))
  printed = capsys.readouterr().out
  assert "qwen3" in printed and "none (no tokenizer.json)" in printed
  assert float(printed.split("at most ")[1].split()[0]) < 1e-4
