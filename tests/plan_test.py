"""A plan compiles the real programs from shapes; guards on what they must not contain."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import quickstart
from gen_ssd import chips
from gen_ssd import config as config_lib
from gen_ssd import hlo
from gen_ssd import mesh
from gen_ssd import plan
from gen_ssd import plan_text
from gen_ssd import programs
from gen_ssd import stages
from gen_ssd.errors import UserError
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from tests import paths

NEEDS_LIBTPU = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
ARCH = Architecture(
  vocab=1000, width=64, layers=3, kv_heads=2, groups=2, head=16, hidden=128, tied=True
)


# The command `gen-ssd plan` where libtpu is not installed.
HIDDEN = "import sys; sys.modules['libtpu'] = None; from gen_ssd import plan; plan.main()"


def small(**changes):
  c = quickstart.get_config()
  c.teacher.unroll = c.student.unroll = c.train.unroll = False
  for path, value in changes.items():
    node, name = c, path
    if "__" in path:
      room, name = path.split("__")
      node = c[room]
    node[name] = value
  return config_lib.parse(c)


@pytest.fixture(scope="module")
def found():
  return plan.plan(small(model_parallel=2))


def test_a_plan_of_this_machine_says_what_every_program_needs(found):
  assert found["mesh"] == {"data": 4, "model": 2} and found["hosts"] == 1
  assert set(found["programs"]) == {"step", "admit", "train"}
  for p in found["programs"].values():
    assert 0 < p["arguments_gib"] <= p["peak_gib"] < p["hbm_gib"] and p["fits"]
    assert p["compile_s"] > 0 and p["ms_estimate"] is None  # a CPU compiler gives no cycles
  assert found["advice"] == [] and "kept_tok_s" not in found
  said = plan_text.text(found)
  assert "fits" in said and len(said.splitlines()) > 6
  assert json.loads(json.dumps(found)) == found


def test_what_does_not_fit_is_said_with_what_to_change(monkeypatch):
  monkeypatch.setattr(plan.memory, "available", lambda device: 2**20)
  found = plan.plan(small())
  assert not any(p["fits"] for p in found["programs"].values())
  assert any("step needs" in line and "lower slots (32)" in line for line in found["advice"])
  assert any("train needs" in line and "train.batch_size" in line for line in found["advice"])
  assert "DOES NOT FIT" in plan_text.text(found)


@pytest.mark.parametrize(
  "topology,says",
  [
    ("v9:2x2", "--topology is 'v9:2x2': it must be v4, v5e, v5p, v6e, tpu7x, a colon, and a shape"),
    ("v5p", "--topology is 'v5p': it must be"),
    ("v5p:2x2; rm", "it must be"),
  ],
)
def test_a_topology_that_cannot_be_is_one_message(topology, says):
  with pytest.raises(UserError, match=re.escape(says)):
    plan.plan(small(), topology)


def test_a_slice_without_its_compiler_is_planned_as_far_as_sizes_say():
  def found(*flags):
    command = [sys.executable, "-c", HIDDEN, "--config=configs/quickstart.py", *flags]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  topology = "--topology=tpu7x:2x2x1"  # where a chip is two devices
  plain = json.loads(found(topology, "--json", "--config.model_parallel=2"))
  assert (plain["chips"], plain["mesh"]) == (4, {"data": 4, "model": 2}) and plain["hosts"] is None
  assert plain["kept_tok_s"] > 0 and "hours" in plain
  assert "jax[tpu]==" in plain["advice"][0]
  for p in plain["programs"].values():
    unknown = ("temporaries_gib", "peak_gib", "fits", *plan.UNCOMPILED)
    assert {name: p[name] for name in unknown} == dict.fromkeys(unknown)
    assert p["arguments_gib"] > 0 and p["ms_roofline"] > 0 and p["hbm_gib"] == 96
  text = found(topology, "--config.select.slots=1600000")
  step = next(line for line in text.splitlines() if line.startswith("step"))
  assert "- of 96.0 DOES NOT FIT" in step
  assert "step needs at least" in text and "lower slots (1600000)" in text
  assert "train needs" not in text


def test_a_row_of_the_table_has_a_cell_for_every_column(found):
  lines = (paths.ROOT / "launch" / "README.md").read_text().splitlines()
  head = next(line for line in lines if line.startswith("| config"))
  programs_ = {name: p | {"ms_roofline": 4.0} for name, p in found["programs"].items()}
  more = {"topology": "v5e:2x4", "programs": programs_, "kept_tok_s": 1234.5, "chip_hours": 8.0}
  row = plan_text.row(found | more)
  assert row.count("|") == head.count("|")
  assert row.startswith("| `quickstart` | v5e:2x4 | 8, 1 | 4 x 2 |") and row.endswith(
    "| 1,234 | 8 |"
  )


def test_the_bytes_of_arguments_are_those_of_the_compiled_program():
  config = small(model_parallel=2, teacher__unroll=True)
  mesh.start(2)
  select = config_lib.collection(dict(config.arms)["gen_ssd"].select)
  for p in programs.of(config, select, programs.architectures(config)).values():
    assert p.bytes() == p.lower().compile().memory_analysis().argument_size_in_bytes, p.name


@NEEDS_LIBTPU
def test_a_donated_argument_of_a_tpu_program_counts_once():
  """x is there until the end, beside a sum and its two temporaries."""

  def loop(x, n):
    rolled = lambda i: jax.lax.optimization_barrier(jnp.roll(x, 7, 1) * i)
    total = jax.lax.fori_loop(0, n, lambda i, y: y * 0.5 + rolled(i), jnp.zeros_like(x))
    return x - total, jnp.sum(total)

  mesh.start(1, plan.devices_of("v5e:1x1")[0][:1])
  given = mesh.shape((2**14, 2**13), jnp.float32), mesh.shape((), jnp.int32)  # half a GiB
  program = programs.Program("step", jax.jit(loop, donate_argnums=0), given, {}, "n")
  _, facts = programs.need(program, 16)
  assert facts["arguments_gib"] == pytest.approx(0.5, abs=1e-3)
  assert facts["peak_gib"] == pytest.approx(2, abs=0.01)
  big = mesh.shape((2**17, 2**13), jnp.float32), given[1]  # which needs 16 of 15.75
  none, facts = programs.need(program._replace(arguments=big), 16)
  assert none is None and facts["peak_gib"] == pytest.approx(16, abs=0.01) and not facts["fits"]


def test_an_arm_that_is_not_there_is_one_message():
  with pytest.raises(UserError, match="--arm is 'gen_sdd': it must be one of gen_ssd, posthoc"):
    plan.plan(small(), arm="gen_sdd")


# ---------------------------------------------------------------- before a run


def little(**changes):
  """A config with one arm, which one short run computes."""
  c = dataclasses.replace(
    small(problems__train=8, problems__test=8, problems__cold_start=8, problems__held_out=2),
    stages=("cold_start", "collect", "train"),
  )
  few = dict(steps=1, warmup_steps=0, log_every=1)
  trains = dict(
    warm_up=dataclasses.replace(c.warm_up, **few), train=dataclasses.replace(c.train, **few)
  )
  teacher = dataclasses.replace(c.teacher, unroll=True)  # a run takes its layers apart
  select = dataclasses.replace(c.select, threshold="off")
  arms = (("gen_ssd", config_lib.Arm(select, trains["train"])),)
  return dataclasses.replace(c, arms=arms, teacher=teacher, **trains, **changes)


def test_a_run_that_cannot_fit_is_refused_before_weights_are_loaded(monkeypatch, tmp_path):
  monkeypatch.setattr(programs.memory, "limit", lambda device: 2**20)
  monkeypatch.setattr(stages.checks, "check_devices", lambda config, mesh: None)
  monkeypatch.setattr(weights, "load", None)
  monkeypatch.setattr(programs.jax.config, "update", lambda *_: None)
  needs = "step needs 0.0 GiB per device of 0.0: lower slots"
  with pytest.raises(UserError, match=rf"^cold_start: {needs} \(32\), k \(1\)"):
    stages.run(little(), tmp_path)
  with pytest.raises(
    UserError, match=rf"^arms.gen_ssd: {needs} \(32\), k \(4\) or max_tokens \(80\)"
  ):
    programs.check(little(stages=("collect",)), tmp_path, None)
  with pytest.raises(
    UserError, match="^train: train needs .*: lower train.batch_size .16., train.le"
  ):
    programs.check(little(stages=("train",)), tmp_path, None)
  with pytest.raises(UserError, match=f"^evaluate: {needs}"):
    programs.check(little(stages=("evaluate",)), tmp_path, None)


def test_what_is_done_is_not_compiled_again(tmp_path):
  mesh.start()
  parts = lambda: [part for part, _ in programs.needed(little(), tmp_path)]
  assert parts() == ["cold_start"] * 2 + ["warm_up"] + ["arms.gen_ssd"] * 2 + ["train"]
  for path in (
    "cold_start/student/config.json",
    "arms/gen_ssd/kept.json",
    "arms/gen_ssd/seed-0/student/config.json",
  ):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
  assert parts() == []


FOUND = """
import sys, pathlib, jax
from gen_ssd import memory, programs, stages
from tests import plan_test
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
memory.limit = lambda device: 2**36
programs.memory.available = lambda device: 2**36
names = lambda: {p.name for p in pathlib.Path(sys.argv[1], "programs").glob("jit_*-cache")}
large = lambda: {n for n in names() if n.startswith(("jit_select_step", "jit_admit", "jit_train_step"))}
real, before = stages.run_stages, set()
stages.run_stages = lambda *given: (before.update(large()), real(*given))
stages.run(plan_test.little(), pathlib.Path(sys.argv[1]))
print(len(before), len(large() - before))
"""


def test_the_run_finds_the_programs_that_were_compiled_before_it(tmp_path):
  env = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(paths.ROOT), "PATH": os.environ["PATH"]}
  done = subprocess.run(
    [sys.executable, "-c", FOUND, tmp_path], cwd=paths.ROOT, env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.splitlines()[0] == "compiling 6 programs, to see that they fit"
  assert done.stdout.splitlines()[-1] == "6 0", done.stdout


# ---------------------------------------------------------------- guards on compiled text


@pytest.fixture(scope="module", params=["cpu", pytest.param("v5e:2x4", marks=NEEDS_LIBTPU)])
def compiled(request):
  """(Text of the step, Select, Pair) on eight devices that need not exist, four of a teacher each."""
  config = small(model_parallel=4, select__slots=8)
  mesh.start(4, None if request.param == "cpu" else plan.devices_of(request.param)[0])
  arch = dataclasses.replace(ARCH, vocab=4 * 1511, layers=3, kv_heads=4)  # a size of nothing else
  pair = programs.Pair(arch, dataclasses.replace(arch, layers=2, width=32))
  select = config_lib.collection(dict(config.arms)["gen_ssd"].select)
  step = programs.of(config, select, pair)["step"]
  return hlo.Text(step.lower().compile().as_text()), select, pair


def test_no_buffer_of_the_step_has_a_vocabulary_for_every_position(compiled):
  text, select, pair = compiled
  rows = [0]
  for ins, _, _ in text.walk(lambda file: 1):
    for _, dims in hlo.ARRAY.findall(ins.type):
      sizes = [int(d) for d in dims.split(",") if d]
      if {1511, 4 * 1511} & {*sizes}:
        rows.append(math.prod(n for n in sizes if n not in (1511, 4 * 1511)))
  branches = select.slots * select.k  # of the teacher, which decodes one position at a time
  assert 0 < max(rows) <= max(branches, pair.teacher.width) < branches * select.c


def test_the_plan_says_how_often_the_student_reads(compiled):
  """The number of its loop's trips depends on the data, and is in no constant of the program."""
  text, _, _ = compiled
  loops = [x for x, *_ in text.walk(lambda file: 1) if x.op == "while"]
  reads = [x for x in loops if text.file(x) == "scoring.py"]
  assert len(reads) == 1 and text.trips(reads[0], {"scoring.py": 7}.get) == 7


def test_weights_and_rings_are_never_gathered_or_copied_whole(compiled):
  text, select, pair = compiled
  head = pair.teacher.kv_heads * pair.teacher.head
  ring = select.slots // 2 * config_lib.ring_slots(select) * head // 4 * 4  # keys of a layer
  weights = pair.teacher.width * pair.teacher.hidden // 4 * 4
  for row in hlo.collectives(text, [0] * 8, lambda file: 1):
    assert row.kind != "all-gather" or row.bytes < min(ring, weights), row
  for ins, times, fused in text.walk(lambda file: 1):  # all layers at once, in a loop
    whole = ins.op == "copy" and hlo.size(ins.type) >= pair.teacher.layers * ring
    assert fused or times == 1 or not whole, ins


def test_a_teacher_layer_reduces_twice(compiled):
  text, select, pair = compiled
  hidden = select.slots // 2 * select.k * pair.teacher.width * 4  # on one device
  once = lambda file: 1 if file in ("attention.py", "step.py") else None  # as the data says
  rows = hlo.collectives(text, [0] * 8, once)
  times = sum(r.times for r in rows if r.kind == "all-reduce" and r.bytes == hidden)
  assert times == 2 * pair.teacher.layers


# ---------------------------------------------------------------- reading text, rooflines


def test_groups_of_devices_are_read_in_every_notation():
  assert hlo._groups("replica_groups={{0,1},{2,3}}, x", 4) == [[0, 1], [2, 3]]
  assert hlo._groups("replica_groups=[2,2]<=[4], x", 4) == [[0, 1], [2, 3]]
  assert hlo._groups("replica_groups=[2,2]<=[2,2]T(1,0), x", 4) == [[0, 2], [1, 3]]
  mesh_form = "replica_groups=mesh['a'=2,'b'=2] {'a'}, x"
  assert hlo._groups(mesh_form, 4) == [[0, 2], [1, 3]]
  assert hlo._groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", 4) == [[0, 1], [2, 3]]
  assert hlo._groups("replica_groups={}, x", 4) == [[0, 1, 2, 3]]


PROGRAM = """
%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %r = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}, backend_config={"estimated_cycles":"100"}
}

%condition (x: f32[4]) -> pred[] {
  %n = s32[] constant(7)
  ROOT %p = pred[] compare(%n, %n)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %w = f32[4]{0} while(%x), condition=%condition, body=%body, metadata={source_file="a/loop.py"}
}
"""


@pytest.mark.parametrize("trips,times", [(None, 7), (3, 3), (9, 7)])
def test_loops_multiply_what_is_inside(trips, times):
  text = hlo.Text(PROGRAM)
  known = lambda file: trips if file == "loop.py" else None
  assert hlo.milliseconds(text, 1.0, known) == pytest.approx(100 * times / 1e6)
  for hosts, crosses in (((0, 0), False), ((0, 1), True)):
    assert hlo.collectives(text, hosts, known) == [("all-reduce", 16, times, crosses)]


def test_a_loop_that_does_not_run_costs_nothing():
  text, known = hlo.Text(PROGRAM), {"loop.py": 0}.get
  assert hlo.milliseconds(text, 1.0, known) is None and not hlo.collectives(text, [0, 0], known)


def test_kernels_say_what_they_cost():
  call = (
    '  %k = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_'
    'call_config":{"body":"TUw=","cost_estimate":{"flops":"80","transcendentals":"5",'
    '"bytes_accessed":"32","remote_bytes_transferred":"0"},"needs_layout_passes":true}}'
  )
  text = hlo.Text(PROGRAM.replace("  ROOT %r", f"{call}\n  ROOT %r"))
  assert hlo.kernels(text, lambda file: None) == [(32, 80, 7)]
  assert hlo.kernels(hlo.Text(PROGRAM), lambda file: None) == []


SPLASH = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %splash_mqa_KIND_segmented.1 = (bf16[2,3,1024,64]{3,2,1,0}, f32[8]{0}) custom-call(%x, %x, %x), \
custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,WIDTHS]{2,1,0}, \
s8[1,WIDTHS]{2,1,0}, bf16[2,3,1024,64]{3,2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="pallas_call"}, backend_config={"custom_call_config":{"body":"TUw="}}
  ROOT %r = f32[4]{0} fusion(%x), calls=%other, backend_config={"estimated_cycles":"100"}
}
"""


@pytest.mark.parametrize("kind,products", [("fwd", 2), ("dq", 3), ("dkv", 4)])
@pytest.mark.parametrize("widths,blocks", [("4,4", 10), ("4,2", 8), ("1,1", 1)])
def test_what_splash_attention_costs(kind, products, widths, blocks):
  text = hlo.Text(SPLASH.replace("KIND", kind).replace("WIDTHS", widths))
  block = 1024 // int(widths[0])
  tables = 2 * math.prod(map(int, widths.split(",")))
  size = 2 * (2 * 2 * 3 * 1024 * 64) + 8 * 4 + tables
  flops = products * 2 * 2 * 3 * blocks * block**2 * 64
  assert hlo.kernels(text, lambda file: None) == [(size, flops, 1)]
  assert hlo.milliseconds(text, 1.0, lambda file: None) == pytest.approx(1e-4)  # nothing is cut off


def test_a_reduce_scatter_of_a_tpu():
  text = """
%all-reduce-scatter.1 (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %s = f32[4]{0} dynamic-slice(%y, %x), dynamic_slice_sizes={4}
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  ROOT %f = f32[4]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  for hosts, crosses in (((0, 0), False), ((0, 1), True)):
    found = hlo.collectives(hlo.Text(text), hosts, lambda file: None)
    assert found == [("reduce-scatter", 16, 1, crosses)]


def test_rooflines_are_those_worked_out_by_hand():
  chip = chips.Chip(hbm=1, flops=1e-3, bandwidth=1, ghz=1)  # 1e9 flops and bytes per second
  assert chips.milliseconds(chip, [(1e6, 5), (5, 2e6)]) == pytest.approx(3.0)  # bytes, then flops
  m = chips.model(Spec(ARCH, Layout()), 2)
  count = 1000 * 64 + 3 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64
  assert (m.weights, m.flops) == (count * 4 / 2, 2 * count / 2)
  assert m.cache == 2 * 3 * 2 * 16 * 4 / 2 and m.attention == 4 * 3 * 64 / 2
  select = config_lib.Select(k=2, c=4, slots=8, prompt=8, max_tokens=16)
  writes, scores = chips.round_ms(chip, select, (m, None), (2, 2), 0.0)
  own = 2.5 * 8  # mean tokens of the own chunk, in 4 slots of 2 branches
  want = max(m.weights, 8 * m.flops) + max(own * m.cache, own * m.attention)
  assert writes == pytest.approx(4 * want / 1e6) and scores == 0
  whole = chips.model(Spec(ARCH, Layout()))
  for s in (whole, m):  # a student that is whole, and one that two devices share
    scores = chips.round_ms(chip, select, (m, s), (2, 2), 0.0)[1]
    tokens = 8 * 2 * 4 * s.parts / 4  # slots, branches and tokens of a chunk, on four devices
    want = max(s.weights, tokens * s.flops) + tokens * 2.5 * s.attention
    assert scores == pytest.approx(want / 1e6)
    read = chips.admit_ms(chip, select, (s, s), (2, 2), 4.0, 2)  # two slots, one chunk
    own = 2 * s.parts / 4
    want = max(s.weights, own * 4 * s.flops) + max(own * 2 * s.cache, own * 8 * s.attention)
    assert read == pytest.approx(2 * want / 1e6)
  plain = chips.update_ms(chip, config_lib.Train(), ARCH, 2)
  again = chips.update_ms(chip, config_lib.Train(remat=True), ARCH, 2)
  assert again == pytest.approx(plain * 4 / 3)


@pytest.mark.parametrize(
  "said",
  [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.15G of 15.75G hbm. Exceeded",
    "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (20.15G) exceeds available HBM "
    "(15.75G).",
  ],
)
def test_a_program_that_the_compiler_refuses_for_its_size_is_one_that_does_not_fit(said):
  assert programs.refused(said) == (20.15, 15.75)
  with pytest.raises(UserError, match="the compiler refuses the program: INTERNAL: no"):
    programs.refused("INTERNAL: no")


@NEEDS_LIBTPU
@pytest.mark.slow
def test_a_slice_that_is_not_there_is_planned(tmp_path):
  flags = ["--config=configs/quickstart.py", "--topology=v5e:2x4", "--price=1.2", "--json"]
  flags += [f"--config.{who}.unroll=False" for who in ("teacher", "student", "train")]
  done = subprocess.run(
    [sys.executable, "-m", "gen_ssd", "plan", *flags],
    cwd=paths.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["chips"] == 8 and found["hosts"] >= 1 and found["price"] > 0
  for p in found["programs"].values():
    assert p["fits"] and p["ms_estimate"] > 0 and p["ms_roofline"] > 0
  assert found["kept_tok_s"] > 0 and found["hours"] > 0


def test_the_devices_of_the_tests_are_what_the_plan_sees(found):
  assert found["chips"] == len(jax.devices()) and str(len(jax.devices())) in found["topology"]
