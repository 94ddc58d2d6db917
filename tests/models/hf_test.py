"""What a Hugging Face directory says: facts of config.json, hub names, identity."""

import json
import shutil

import huggingface_hub
from huggingface_hub import errors
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from gen_ssd.errors import UserError
from gen_ssd.models import hf
from tests.models.decoder_test import golden


def edit_config(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, **changes}))


# ---------------------------------------------------------------- config.json


def test_architectures_of_both_config_formats(tmp_path):
  old = hf.read_architecture(golden("llama", tmp_path / "llama")[0])
  assert (old.theta, old.head, old.kv_heads, old.groups) == (5e5, 4, 2, 2)
  assert old.rope == (
    "llama3",
    ("factor", 8.0),
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 16),
  )
  assert (old.bias, old.qk_norm, old.tied) == (False, False, False)
  hash(old)
  new = hf.read_architecture(golden("qwen3", tmp_path / "qwen3")[0])
  assert (new.theta, new.head, new.qk_norm, new.bias, new.rope) == (
    5e6,
    8,
    True,
    False,
    ("default",),
  )
  qwen2 = hf.read_architecture(golden("qwen2", tmp_path / "qwen2")[0])
  assert (qwen2.bias, qwen2.tied, qwen2.head, qwen2.theta) == (True, True, 4, 3e5)
  source, _, _ = golden("llama", tmp_path / "mistral")
  edit_config(source, model_type="mistral", sliding_window=None)
  assert hf.read_architecture(source) == old
  distill = hf.read_architecture(golden("r1_distill_qwen", tmp_path / "r1")[0])
  assert (distill.bias, distill.tied, distill.sliding, distill.groups) == (True, False, (), 3)


def test_architectures_of_both_gemma_formats(tmp_path):
  old = hf.read_architecture(golden("gemma3", tmp_path / "old")[0])
  assert (old.act, old.qk_norm, old.post_norms, old.norm_offset) == ("gelu_tanh", True, True, 1)
  assert (old.embed_scale, old.query_scale) == (4, (6 / 11) ** 0.5)
  assert (old.sliding, old.window) == ((True, True, False, True), 7)
  assert (old.theta, old.rope) == (3e5, ("linear", ("factor", 8.0)))
  assert (old.sliding_theta, old.sliding_rope) == (2e3, ("default",))
  new = hf.read_architecture(golden("gemma3_nested", tmp_path / "new")[0])
  assert new.sliding == (False, True, True) and new.query_scale == 1
  assert (new.theta, new.rope) == (4e4, ("default",))
  assert (new.sliding_theta, new.sliding_rope) == (5e2, ("linear", ("factor", 2.0)))
  hash(new)


REFUSED = {
  "model_type 'mixtral'.*llama, mistral, qwen2, qwen3, olmo2, gemma3_text": dict(
    model_type="mixtral"
  ),
  "model_type 'qwen3_moe'": dict(model_type="qwen3_moe"),
  "model_type 'gemma3'.*text only": dict(model_type="gemma3"),
  "model_type 'never_heard_of_it'": dict(model_type="never_heard_of_it"),
  "model_type None": dict(model_type=None),
  "rope type 'dynamic'.*default, linear, llama3, yarn": dict(
    rope_scaling=dict(rope_type="dynamic", factor=2.0)
  ),
  "rope type 'longrope'": dict(
    rope_scaling=dict(
      rope_type="longrope", short_factor=[1.0] * 2, long_factor=[1.0] * 2, factor=2.0
    )
  ),
  "partial_rotary_factor 0.5": dict(partial_rotary_factor=0.5),
  "hidden_act 'gelu'": dict(hidden_act="gelu"),
  "attention_bias": dict(attention_bias=True),
  "mlp_bias": dict(mlp_bias=True),
  "quantised": dict(quantization_config=dict(quant_method="gptq", bits=4)),
  "sliding window": dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1),
  "sliding window in use": dict(model_type="mistral", sliding_window=32),
  "layer_types.*sliding_attention": dict(
    model_type="qwen3", head_dim=4, layer_types=["full_attention", "sliding_attention"]
  ),
  "attention_bias.*o_proj": dict(model_type="qwen3", head_dim=4, attention_bias=True),
}


REFUSED_GEMMA = {
  "final_logit_softcapping is not supported": dict(final_logit_softcapping=30.0),
  "attn_logit_softcapping": dict(attn_logit_softcapping=50.0),
  "use_bidirectional_attention": dict(use_bidirectional_attention=True),
  "rope type 'dynamic'": dict(
    rope_parameters={
      "full_attention": dict(rope_type="default"),
      "sliding_attention": dict(rope_type="dynamic", factor=2.0),
    }
  ),
  "sliding_attention with sliding_window None": dict(sliding_window=None),
}


@pytest.mark.parametrize("message", REFUSED_GEMMA)
def test_what_gemma_may_not_ask_for(message, tmp_path):
  source, _, _ = golden("gemma3_nested", tmp_path)
  edit_config(source, **REFUSED_GEMMA[message])
  with pytest.raises(ValueError, match=message):
    hf.read_architecture(source)


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_compute_something_else_is_refused(message, tmp_path):
  source, _, _ = golden("llama", tmp_path)
  edit_config(source, **REFUSED[message])
  with pytest.raises(ValueError, match=message):
    hf.read_architecture(source)


def test_no_config_says_where_to_get_one(tmp_path):
  with pytest.raises(ValueError, match="no config.json.*hf download"):
    hf.read_architecture(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "content,message",
  [
    (b"", "not JSON in UTF-8"),
    (b"{", "not JSON in UTF-8"),
    (b"\xff\xfe{}", "not JSON in UTF-8"),
    (b'\xef\xbb\xbf{"model_type": "llama"}', "BOM"),
    (b"[" * 100_000, "recursion"),
    (b'["llama"]', "wanted a JSON object"),
    (b"null", "wanted a JSON object"),
  ],
)
def test_a_config_that_is_not_a_json_object(content, message, tmp_path):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UserError, match=f"{tmp_path}/config.json: .*{message}"):
    hf.read_architecture(tmp_path)


GARBAGE = ["abc", 0, -1, 1.5, 10**12, True, [], {}, [1], float("nan")]
WRONG = (
  [(name, value) for name in hf.SIZES for value in GARBAGE]
  + [(name, value) for name in ("rms_norm_eps", "rope_theta") for value in (*GARBAGE, 10**400)]
  + [
    (name, value) for name in ("rope_scaling", "layer_types") for value in ("abc", 3, [3], {"a": 1})
  ]
  + [("tie_word_embeddings", "false"), ("hidden_act", ["silu"]), ("hidden_size", None)]
  + [("num_key_value_heads", 3), ("head_dim", 7), ("layer_types", ["full_attention"] * 3)]
)
FINE = [
  ("rms_norm_eps", 1.5),
  ("rope_theta", 1.5),
  ("rope_theta", 10**12),
  ("rms_norm_eps", 10**12),
]


@pytest.mark.parametrize("name,value", [w for w in WRONG if w not in FINE])
def test_facts_that_make_no_sense_are_one_message_with_the_name_of_the_directory(
  name, value, tmp_path
):
  source, _, _ = golden("llama", tmp_path)
  edit_config(source, **{name: value})
  with pytest.raises(UserError, match=str(tmp_path)):
    hf.read_architecture(source)


ROPES = {
  "(?i)missing required keys.*factor": dict(rope_type="linear"),
  "(?i)missing required keys.*low_freq_factor": dict(
    rope_type="llama3", factor=8.0, high_freq_factor=4.0
  ),
  "its rope_type is None": dict(factor=8.0),
  "factor of rope type linear is -1": dict(rope_type="linear", factor=-1),
  "factor of rope type linear is 'x'": dict(rope_type="linear", factor="x"),
  "factor of rope type linear is nan": dict(rope_type="linear", factor=float("nan")),
  "no finite frequencies": dict(rope_type="yarn", factor=2.0, rope_theta=1.0),
  "truncate is 'no'": dict(rope_type="yarn", factor=2.0, truncate="no"),
  "low_freq_factor is not below high_freq_factor": dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=4.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
  ),
}


@pytest.mark.parametrize("message", ROPES)
def test_rope_settings_that_make_no_sense(message, tmp_path):
  source, _, _ = golden("llama", tmp_path)
  edit_config(source, rope_scaling=ROPES[message])
  with pytest.raises(UserError, match=message) as caught:
    hf.read_architecture(source)
  assert str(caught.value).startswith(f"{source}/config.json: ")


# ---------------------------------------------------------------- hub names


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """An empty hub cache and no network; its folder."""
  hf.locate.cache_clear()
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  yield tmp_path / "hub"
  hf.locate.cache_clear()


def cached(hub, name, revision="main", commit="a" * 40):
  """Puts a snapshot of the golden Qwen3 into the cache; returns its folder."""
  home = hub / f"models--{name.replace('/', '--')}"
  snapshot = home / "snapshots" / commit
  snapshot.parent.mkdir(parents=True, exist_ok=True)
  golden("qwen3", snapshot)
  (home / "refs").mkdir(exist_ok=True)
  (home / "refs" / revision).write_text(commit)
  return snapshot


def test_a_hub_name_is_found_in_the_cache_without_a_network(hub):
  snapshot = cached(hub, "some-org/Tiny-1.5B")
  assert hf.locate("some-org/Tiny-1.5B") == str(snapshot)
  other = cached(hub, "some-org/Tiny-1.5B", "v2", "b" * 40)
  assert hf.locate("some-org/Tiny-1.5B@v2") == str(other)
  assert hf.read_architecture(hf.locate("some-org/Tiny-1.5B")).qk_norm


def test_a_hub_name_that_cannot_be_had_offline(hub):
  with pytest.raises(
    ValueError,
    match="some-org/Tiny: there is no such directory; read as a hub name: the hub "
    "cannot be reached and its cache does not have it.*hf download some-org/Tiny",
  ):
    hf.locate("some-org/Tiny")


@pytest.mark.parametrize(
  "error,message",
  [
    (errors.GatedRepoError, "licence accepted"),
    (errors.RepositoryNotFoundError, "no such model"),
    (errors.RevisionNotFoundError, "no revision 'v9'"),
    (ConnectionError, "cannot be reached"),
  ],
)
def test_what_the_hub_says_in_plain_words(error, message, hub, monkeypatch):

  def refuse(*args, **kwargs):
    raise error.__new__(error)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
  with pytest.raises(ValueError, match=f"some-org/Tiny@v9: there is no such directory.*{message}"):
    hf.locate("some-org/Tiny@v9")


@pytest.mark.parametrize(
  "name,message",
  [
    ("a--b/c", "read as a hub name: .*repo_id"),
    ("-a/b", "read as a hub name: Repo id must"),
    ("a/" + "b" * 300, "read as a hub name: "),
    ("a/b@../../x", "'../../x' is not the name of a branch, tag or commit"),
    ("a/b@*", "is not the name of a branch"),
    ("bundled/nope", "no such bundled model; there are bundled/student,.*bundled/teacher"),
    ("bundled/../models", "no such bundled model"),
    ("bundled/", "no such bundled model"),
    ("", "an empty path: there is no config.json"),
    ("runs/*/teacher", "there is no config.json"),
    ("\x00", r"\\x00: there is no config.json"),
  ],
)
def test_names_that_name_no_model(name, message, hub):
  with pytest.raises(UserError, match=message):
    hf.read_architecture(hf.locate(name))


def test_a_directory_is_a_directory(hub, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs" / "teacher").mkdir(parents=True)
  for path in ("runs/teacher", str(tmp_path), "/no/such/place", "nowhere"):
    assert hf.locate(path) == path


# ---------------------------------------------------------------- identity


def test_identity_follows_what_is_inside_and_not_where_it_is(tmp_path):
  source, _, _ = golden("qwen3", tmp_path / "a")
  name = hf.identity(source)
  (source / "README.md").write_text("says nothing")
  shutil.copytree(source, tmp_path / "b")
  assert hf.identity(tmp_path / "b") == name
  seen = {name}

  def changed():
    seen.add(hf.identity(source))
    return len(seen)

  (source / "tokenizer_old").mkdir()
  assert hf.identity(source) == name
  edit_config(source, rope_theta=3.0)
  assert changed() == 2
  (source / "tokenizer.json").write_text("{}")
  assert changed() == 3
  (source / "special_tokens_map.json").write_text("{}")  # transformers reads it, too
  assert changed() == 4
  (source / "merges.txt").write_text("a b")
  assert changed() == 5
  found = load_file(source / "model.safetensors")
  save_file(
    {k: v + np.float32(k == "model.layers.1.mlp.up_proj.weight") for k, v in found.items()},
    source / "model.safetensors",
  )
  assert changed() == 6
