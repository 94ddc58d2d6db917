"""The launch scripts, against stand-ins for the commands that they call.

Long because the four scripts promise the same things, and most tests run over all of them.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from tests import bucket
from tests import paths
from tests.stand_ins import COMMON
from tests.stand_ins import STAND_INS
from tests.stand_ins import Stage
from tests.stand_ins import git


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A git checkout with what the scripts need of this one."""
  home = tmp_path_factory.mktemp("checkout")
  shutil.copytree(paths.ROOT / "launch", home / "launch")
  (home / "configs").mkdir()
  for name in ("requirements.txt", "requirements-lock-3.11.txt", "configs/quickstart.py"):
    shutil.copy(paths.ROOT / name, home / name)
  git(home, "init", "--quiet")
  git(home, "add", ".")
  git(home, "commit", "--quiet", "-m", "a revision")
  return home


@pytest.fixture
def stage(tmp_path, checkout):
  yield Stage(tmp_path, checkout)
  (tmp_path / "go").touch()  # ends what a failed test left waiting


def wait_until(condition):
  for _ in range(600):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError("it does not happen")


NAME = ("--name=slice", "--project=p", "--poll=0")
OPTIONS = {
  "tpu_vm.sh": (*NAME, "--zone=us-east5-a", "--type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"),
  "mig.sh": (*NAME, "--zone=us-central1-c", "--topology=2x2x2"),
  "xpk.sh": (*NAME, "--zone=us-east5-a", "--cluster=c", "--type=v6e-8"),
  "slurm.sh": ("--name=slice", "--poll=0", "--nodes=2", "--gpus-per-node=4"),
}
PODS = ["tpu_vm.sh", "mig.sh"]
ALL = [*OPTIONS]


def test_a_queued_resource_is_made_waited_for_used_and_deleted(stage):
  stage.plays(tpus=["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], "--spot", "--autodelete") == 0, (
    stage.output
  )
  (made,) = stage.calls("queued-resources create")
  for part in ("slice", "--project=p", "--zone=us-east5-a", "--node-id=slice", "--spot"):
    assert part in made.split()
  assert "--accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e" in made
  assert stage.calls("gcloud")[-1].endswith(
    "delete slice --project=p --zone=us-east5-a --force --quiet"
  )
  assert "a line of worker 0" in stage.output and "done:" in stage.output


@pytest.mark.parametrize("script", PODS)
def test_every_worker_gets_the_revision_the_lock_and_the_same_command(stage, script):
  assert stage.launch(script, *OPTIONS[script], flags=["--config.seed=7", "--x=a b;c"]) == 0, (
    stage.output
  )
  revision = git(stage.checkout, "rev-parse", "HEAD")
  for n in range(2):
    (copy,) = (stage.home / "machines" / str(n)).glob("gen_ssd-*/")
    assert (copy / "REVISION").read_text().strip() == revision
    assert (copy / "launch" / "worker.sh").exists()
    assert revision in (stage.workdir / "launch" / f"worker-{n}.started").read_text()
    assert (stage.workdir / "launch" / f"worker-{n}.exit").read_text() == "0\n"
    assert (stage.home / f"environment-{n}").read_text().split() == unordered(
      "JAX_COORDINATOR_ADDRESS=10.0.0.10:8476",
      "JAX_COORDINATOR_PORT=8476",
      f"JAX_COMPILATION_CACHE_DIR={stage.workdir}/programs",
    )
  runs = stage.calls("python -m gen_ssd.main")
  assert len(runs) == 2 and len({*runs}) == 1
  assert runs[0].endswith(f"--workdir={stage.workdir} --config.seed=7 --x=a b;c")
  installs = stage.calls("uv pip install")
  assert len(installs) == 2 and all("jax[tpu] -c requirements-lock-3.11.txt" in i for i in installs)


class unordered:
  """Compares equal to a list with these members in any order."""

  def __init__(self, *members):
    self.members = members

  def __eq__(self, other):
    return sorted(other) == sorted(self.members)

  def __repr__(self):
    return f"unordered{self.members}"


@pytest.mark.parametrize("script", [*PODS, "slurm.sh"])
def test_after_a_preemption_the_same_command_runs_again(stage, script):
  stage.plays(exits_0=["2", "0"], exits_1=["143", "0"])  # worker 0 ends because it loses worker 1
  assert stage.launch(script, *OPTIONS[script]) == 0, stage.output
  runs = stage.calls("-m gen_ssd.main")
  assert len(runs) == 4 and len({*runs}) == 1
  assert "with the same workdir" in stage.output


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed")
@pytest.mark.parametrize("script", PODS)
def test_of_a_workdir_in_a_bucket_the_marks_and_logs_are_there_too(stage, script):
  with bucket.serving() as server:
    stage.workdir = f"gs://{bucket.NAME}/run"
    stage.env |= bucket.environment(server.url)
    stage.plays(exits_1=["143", "0"])
    assert stage.launch(script, *OPTIONS[script]) == 0, stage.output
  found = {name: data.decode() for name, (_, data) in server.objects.items()}
  marks = [f"worker-{n}.{kind}" for n in (0, 1) for kind in ("exit", "log", "started")]
  assert sorted(found) == [f"run/launch/{mark}" for mark in marks]
  assert [found[f"run/launch/worker-{n}.exit"] for n in (0, 1)] == ["0\n", "0\n"]
  assert found["run/launch/worker-1.log"] == "a line of worker 1\n" * 2
  assert stage.output.count("a line of worker 0") == 2 and "starting again" in stage.output
  # Before each start a worker's own marks are forgotten, so that nobody takes them for new ones.
  removed = sorted(name for what, name, _ in server.log if what == "delete")
  assert removed == [f"run/launch/{mark}" for mark in marks if not mark.endswith(".log")]


@pytest.mark.parametrize("code", ["2", "1"])
@pytest.mark.parametrize("script", [*PODS, "slurm.sh"])
def test_a_mistake_and_a_bug_are_not_tried_again(stage, script, code):
  stage.plays(exits_0=[code], exits_1=[code])
  assert stage.launch(script, *OPTIONS[script]) == int(code), stage.output
  assert len(stage.calls("-m gen_ssd.main")) == 2
  assert f"worker 0, 1 ended with exit code {code}" in stage.output


def test_a_slice_that_cannot_be_made_ends_the_script(stage):
  stage.plays(tpus=["NOT_FOUND", "FAILED", "the reason"])
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"]) == 1
  assert "could not be made; it says:" in stage.output and "the reason" in stage.output
  assert len(stage.calls("queued-resources create")) == 1


@pytest.mark.parametrize("script", PODS)
def test_the_same_command_follows_a_run_and_another_does_not_disturb_it(stage, script):
  wait = 'until [ -e "$STAGE/go" ]; do sleep 0.05; done\n'
  body = COMMON + STAND_INS["python-of-the-play"] + wait
  (stage.home / "bin" / "python-of-the-play").write_text(body.replace("\nexit", f"\n{wait}exit", 1))
  first = stage.start(script, *OPTIONS[script])
  wait_until(lambda: len(stage.calls("-m gen_ssd.main")) == 2)
  first.kill()
  first.communicate()
  assert stage.launch(script, *OPTIONS[script], flags=["--config.seed=8"]) == 1
  assert "another run is in progress here" in stage.output
  before = len(stage.calls("worker.sh poll"))
  again = stage.start(script, *OPTIONS[script])
  wait_until(lambda: len(stage.calls("worker.sh poll")) > before)
  (stage.home / "go").touch()
  output, _ = again.communicate(timeout=240)
  assert again.returncode == 0 and "a line of worker 0" in output, output
  assert len(stage.calls("-m gen_ssd.main")) == 2


@pytest.mark.parametrize("script", PODS)
def test_machines_are_not_deleted_because_this_one_is_offline(stage, script):
  stage.plays(polls=["down"] * 3, tpus=["ACTIVE", *["OFFLINE"] * 3])
  stage.plays(instances=["RUNNING RUNNING", *["OFFLINE"] * 3])
  assert stage.launch(script, *OPTIONS[script]) == 0, stage.output
  assert "cannot connect" in stage.output and not stage.calls(" delete slice")
  assert len(stage.calls("-m gen_ssd.main")) == 2


@pytest.mark.parametrize("script", PODS)
def test_machines_that_go_during_a_run_are_made_again(stage, script):
  stage.plays(polls=["down"], tpus=["ACTIVE", "SUSPENDING"])
  stage.plays(instances=["RUNNING RUNNING", "RUNNING STOPPING"])
  assert stage.launch(script, *OPTIONS[script]) == 0, stage.output
  assert "the machines are gone" in stage.output and len(stage.calls(" delete slice")) == 1


def test_a_job_that_ends_before_its_processes_start_is_not_submitted_again(stage):
  stage.plays(down=["0", "1"])
  assert stage.launch("slurm.sh", *OPTIONS["slurm.sh"]) == 1
  assert "ended before a process started" in stage.output and len(stage.calls("sbatch")) == 1


def test_a_slice_that_was_taken_away_is_made_again(stage):
  stage.plays(tpus=["SUSPENDED", "NOT_FOUND", "ACTIVE"])
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"]) == 0, stage.output
  kinds = [
    re.search(r"queued-resources (\w+)", call)[1] for call in stage.calls("queued-resources")
  ]
  assert kinds[:5] == ["describe", "delete", "describe", "create", "describe"]


def test_a_group_that_lost_a_machine_is_made_again(stage):
  stage.plays(exits_0=["143"], exits_1=["143"], instances=["RUNNING RUNNING", "RUNNING TERMINATED"])
  stage.plays(instance_groups=["NOT_FOUND", "NOT_FOUND"])
  stage.plays(resource_policies=["NOT_FOUND"], instance_templates=["NOT_FOUND"])
  assert stage.launch("mig.sh", *OPTIONS["mig.sh"], "--spot") == 0, stage.output
  assert len(stage.calls("managed delete slice")) == 1
  made = stage.calls("managed create slice")
  assert len(made) == 2 and "--size=2 --target-size-policy-mode=bulk" in made[0]
  assert "--workload-policy=projects/p/regions/us-central1/resourcePolicies/slice-2x2x2" in made[0]
  (policy,) = stage.calls("create workload-policy slice-2x2x2")
  assert "--accelerator-topology=2x2x2" in policy
  (template,) = stage.calls("instance-templates create slice-")
  assert "--machine-type=tpu7x-standard-4t" in template and "--provisioning-model=SPOT" in template


@pytest.mark.parametrize("script", PODS)
def test_retries_are_counted(stage, script):
  stage.plays(exits_0=["143"] * 9, exits_1=["143"] * 9)
  assert stage.launch(script, *OPTIONS[script], "--retries=1") == 1
  assert len(stage.calls("-m gen_ssd.main")) == 4
  assert "gave up after 1 retries" in stage.output


def test_an_unreachable_worker_is_named(stage):
  stage.plays(down=["1"])
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], "--autodelete") == 1
  assert "failed on worker 1 of 2" in stage.output and "cannot reach 1" in stage.output
  assert stage.calls("queued-resources delete")
  assert not stage.calls("-m gen_ssd.main")


def test_a_worker_that_does_not_see_the_workdir_is_named(stage):
  (stage.home / "bin" / "curl").write_text(
    COMMON
  )  # without metadata all workers say that they are 0
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], "--timeout=3") == 1
  assert "worker 1 of 2 did not start within 3 s" in stage.output
  assert "worker-1.started" in stage.output and "still there and cost money" in stage.output


def test_a_missing_process_of_a_job_is_named_and_the_job_cancelled(stage):
  stage.plays(down=["1"], squeue=["RUNNING"] * 9)
  assert stage.launch("slurm.sh", *OPTIONS["slurm.sh"], "--timeout=3") == 1
  assert "worker 1 of 2 did not start within 3 s of job 71" in stage.output
  assert stage.calls("scancel 71")


def test_a_job_leaves_places_to_slurm_and_names_the_devices(stage):
  stage.plays(squeue=["PENDING", "RUNNING"])
  assert stage.launch("slurm.sh", *OPTIONS["slurm.sh"], "--partition=gpu") == 0, stage.output
  (submitted,) = stage.calls("sbatch")
  for part in (
    "--nodes=2",
    "--ntasks-per-node=1",
    "--gpus-per-node=4",
    "--partition=gpu",
    "--requeue",
  ):
    assert part in submitted.split()
  environment = (stage.home / "environment-1").read_text().split()
  assert {"JAX_COORDINATOR_ADDRESS=node1:8476", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"} <= {*environment}
  assert not any(line.startswith(("JAX_PROCESS_ID", "JAX_NUM")) for line in environment)
  (install,) = stage.calls("uv pip install")
  assert "jax[cuda13] -c requirements-lock-3.11.txt" in install
  assert "a line of worker 0" in stage.output


def test_one_process_per_gpu_names_no_devices(stage):
  assert stage.launch("slurm.sh", *OPTIONS["slurm.sh"], "--processes=gpu", "--dry-run") == 0
  assert "srun --ntasks=8 --ntasks-per-node=4" in stage.output
  assert "JAX_LOCAL_DEVICE_IDS" not in stage.output


def test_xpk_sends_the_files_and_leaves_the_retries_to_the_cluster(stage):
  stage.plays(jobset=["", "", "Completed"])
  options = (*OPTIONS["xpk.sh"], "--storage=nfs", "--retries=3", "--autodelete")
  assert stage.launch("xpk.sh", *options) == 0, stage.output
  (made,) = stage.calls("xpk workload create")
  for part in ("--workload=slice", "--cluster=c", "--tpu-type=v6e-8", "--max-restarts=3"):
    assert part in made.split()
  assert "worker.sh setup tpu" in made and f"worker.sh run {stage.workdir} -- --config=" in made
  assert stage.calls("xpk workload delete --workload=slice")
  assert "a line of pod 0" in stage.output


def test_xpk_names_a_host_that_waits_and_a_failure(stage):
  stage.plays(pods=["0 pod-0 Running|1 pod-1 Pending"] * 20)
  assert stage.launch("xpk.sh", *OPTIONS["xpk.sh"], "--timeout=2") == 1
  assert "not started within 2 s: worker 1 (pod-1)" in stage.output
  stage.plays(jobset=["Failed"], pods=[])
  assert stage.launch("xpk.sh", *OPTIONS["xpk.sh"]) == 1
  assert "the workload failed" in stage.output and "cost money" in stage.output


@pytest.mark.parametrize("script", ALL)
def test_a_dry_run_prints_the_commands_and_runs_none(stage, script):
  options = ("--dry-run",) if script == "slurm.sh" else ("--dry-run", "--autodelete")
  assert stage.launch(script, *OPTIONS[script], *options) == 0, stage.output
  assert not stage.calls()
  assert not [*stage.workdir.iterdir()]
  assert "+ git archive" in stage.output and "launch/worker.sh" in stage.output
  for word in {"tpu_vm.sh": ["queued-resources create", "queued-resources delete"]}.get(script, []):
    assert f"+ gcloud compute tpus {word}" in stage.output


BAD = [
  ("--name=Slice", "--name is 'Slice': it must be at most 40 lower-case letters"),
  ("--name=a;reboot", "--name is 'a;reboot'"),
  ("--retries=many", "--retries is 'many': it must be a whole number"),
  ("--timeout=$(id)", "--timeout is '$(id)'"),
  ("--sport", "--sport"),
  ("spot", "'spot' is not an option"),
]


@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize("option, message", BAD)
def test_a_bad_option_is_one_message_before_anything_runs(stage, script, option, message):
  assert stage.launch(script, *OPTIONS[script], option, "--dry-run") == 2
  assert message in stage.output and stage.output.count("\n") == 1
  assert not stage.calls()


@pytest.mark.parametrize(
  "script, options, message",
  [
    ("tpu_vm.sh", ["--zone=us-east5-a;ls"], "--zone is 'us-east5-a;ls': it must be a zone"),
    ("tpu_vm.sh", ["--type=`id`-8"], "--type is"),
    ("tpu_vm.sh", ["--spot", "--reserved"], "--spot and --reserved exclude each other"),
    ("mig.sh", ["--topology=3x3"], "its 9 chips must be a multiple of the 4"),
    ("mig.sh", ["--spot", "--reservation=r"], "--spot and --reservation exclude each other"),
    ("xpk.sh", ["--setup=ls"], "mount the workdir with --storage"),
    ("slurm.sh", ["--processes=core"], "node (one process per node) or gpu"),
    ("slurm.sh", ["--time=tomorrow"], "--time is 'tomorrow'"),
    ("slurm.sh", ["--autodelete"], "--autodelete is not for Slurm"),
  ],
)
def test_what_does_not_fit_a_script_is_one_message(stage, script, options, message):
  assert stage.launch(script, *OPTIONS[script], *options) == 2
  assert message in stage.output and stage.output.count("\n") == 1
  assert not stage.calls()


def test_a_job_of_slurm_has_its_workdir_in_a_shared_folder(stage):
  stage.workdir = "gs://bucket/run"
  assert stage.launch("slurm.sh", *OPTIONS["slurm.sh"]) == 2
  assert "--workdir is 'gs://bucket/run': it must be the absolute path of a folder" in stage.output
  assert not stage.calls()


@pytest.mark.parametrize("script", ALL)
def test_help_names_every_option(stage, script):
  text = (paths.ROOT / "launch" / script).read_text()
  options = re.findall(r"^option ([a-z-]+)", text, re.M) + ["retries", "dirty", "dry-run"]
  assert stage.launch(script, "--help", flags=None) == 0
  assert not [option for option in options if f"--{option}" not in stage.output]
  assert "shellcheck" not in stage.output and not stage.calls()


def test_a_missing_option_is_named(stage):
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"][:-1]) == 2
  assert "--runtime-version is missing" in stage.output


@pytest.mark.parametrize(
  "flags, message",
  [
    ([], "give gen_ssd's own flags after --"),
    (["--", "--config=configs/quickstart.py"], "--workdir is ''"),
    (["--", "--config=configs/quickstart.py", "--workdir=runs/a"], "--workdir is 'runs/a'"),
    (["--", "--config=configs/quickstart.py", "--workdir=/a b"], "--workdir is '/a b'"),
    (["--", "--config=configs/quickstart.py", "--workdir=s3://b/a"], "--workdir is 's3://b/a'"),
    (["--", "--config=configs/none.py", "--workdir=/a"], "--config is 'configs/none.py'"),
  ],
)
def test_flags_of_the_run_are_checked_first(stage, flags, message):
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], *flags, flags=None) == 2
  assert message in stage.output and not stage.calls()


def test_changes_that_are_not_committed_are_refused_unless_asked_for(stage, tmp_path):
  home = pathlib.Path(shutil.copytree(stage.checkout, tmp_path / "changed"))
  with (home / "requirements.txt").open("a") as file:
    file.write("# a change\n")
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], checkout=home) == 2
  assert "changes that are not committed" in stage.output and not stage.calls()
  assert stage.launch("tpu_vm.sh", *OPTIONS["tpu_vm.sh"], "--dirty", checkout=home) == 0, (
    stage.output
  )
  (copy,) = (tmp_path / "machines" / "1").glob("gen_ssd-*/")
  assert "# a change" in (copy / "requirements.txt").read_text()
  assert (copy / "REVISION").read_text() == f"{git(home, 'rev-parse', 'HEAD')}-dirty\n"


def test_a_worker_that_is_stopped_writes_its_exit_code(stage):
  body = "#!/usr/bin/env bash\ntrap 'exit 143' TERM\ntouch $STAGE/runs\nsleep 30 & wait\n"
  (stage.home / "bin" / "python-of-the-play").write_text(body)
  env = {**os.environ, "STAGE": str(stage.home), "SLURM_PROCID": "0"}
  copy = stage.home / "copy"
  shutil.copytree(stage.checkout / "launch", copy / "launch")
  (copy / ".venv" / "bin").mkdir(parents=True)
  shutil.copy(stage.home / "bin" / "python-of-the-play", copy / ".venv" / "bin" / "python")
  command = ["bash", copy / "launch" / "worker.sh", "run", stage.workdir, "--", "--config=c"]
  with subprocess.Popen(command, env=env) as worker:
    wait_until((stage.home / "runs").exists)
    worker.terminate()
    assert worker.wait(20) == 143
  assert (stage.workdir / "launch" / "worker-0.exit").read_text() == "143\n"


def test_the_log_of_another_machine_is_shown_from_its_start(stage):
  marks = stage.workdir / "launch"
  marks.mkdir()
  (marks / "worker-0.started").touch()
  (marks / "worker-0.log").write_text("a new log\n")
  show = lambda seen: (
    subprocess.run(
      ["bash", stage.checkout / "launch" / "worker.sh", "poll", stage.workdir, "1", str(seen)],
      capture_output=True,
      text=True,
      check=True,
    ).stdout
  )
  assert show(0) == show(9999) == "codes 10 -\na new log\n"
  assert show(10) == "codes 10 -\n"
