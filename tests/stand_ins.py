"""Stand-ins for gcloud, xpk, kubectl and Slurm: they note each call and play one answer a call.

The stand-in for gcloud runs what goes through ssh in a folder for each machine, so that the part of the
launch scripts that runs on the workers is tested too; there, uv "installs" a Python that ends with the
codes of a play.
"""

import os
import subprocess
import sys

from tests import paths

COMMON = r"""#!/usr/bin/env bash
said=$(basename "$0")$(printf ' %s' "${@//$'\n'/ }")
printf '%s\n' "$said" >>"$STAGE/calls"  # at once: two processes may write
play() {  # NAME DEFAULT: the next line of a play; the default where it has ended
  local line
  line=$(head -n 1 "$STAGE/$1" 2>/dev/null)
  sed -i 1d "$STAGE/$1" 2>/dev/null
  echo "${line:-$2}"
}
"""
STAND_INS = {
  "gcloud": r"""
on() {  # MACHINE COMMAND
  if [[ $2 = *poll* && $(play polls up) = down ]] || grep -qsx "$1" "$STAGE/down"; then
    echo "cannot reach $1" >&2
    exit 255
  fi
  mkdir -p "$STAGE/machines/$1"
  cd "$STAGE/machines/$1" || exit 1
  HOME=$PWD exec bash -c "$2"
}
case "$*" in
  *queued-resources\ describe* | *managed\ describe* | *policies\ describe* | *templates\ describe*)
    answer=$(play "$2" ACTIVE)
    case $answer in
      NOT_FOUND) echo "NOT_FOUND: no such thing" >&2; exit 1 ;;
      OFFLINE) echo "cannot connect" >&2; exit 1 ;;
    esac
    echo "$answer" ;;
  *networkEndpoints*) echo 2 ;;
  *list-instances*)
    answer=$(play instances "RUNNING RUNNING")
    if [ "$answer" = OFFLINE ]; then echo "cannot connect" >&2; exit 1; fi
    i=0
    for status in $answer; do echo "slice-$i $status"; i=$((i + 1)); done ;;
  *scp*--worker=all*)
    for i in 0 1; do mkdir -p "$STAGE/machines/$i"; cp "$5" "$STAGE/machines/$i/${6#*:}"; done ;;
  *compute\ scp*)
    to=${4%%:*}; mkdir -p "$STAGE/machines/${to#slice-}"
    cp "$3" "$STAGE/machines/${to#slice-}/${4#*:}" ;;
  *tpu-vm\ ssh*)
    for flag in "$@"; do case $flag in
      --worker=*) worker=${flag#*=} ;;
      --command=*) command=${flag#*=} ;;
    esac; done
    on "$worker" "$command" ;;
  *compute\ ssh*)
    for flag in "$@"; do case $flag in --command=*) command=${flag#*=} ;; esac; done
    on "${3#slice-}" "$command" ;;
esac
""",
  "uv": r"""
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  cp "$STAGE/bin/python-of-the-play" .venv/bin/python
fi
""",
  "curl": r"""
number=$(pwd); number=${number#"$STAGE/machines/"}; number=${number%%/*}
case "$*" in
  *agent-worker-number) echo "$number" ;;
  *worker-network-endpoints) echo host-0:1:10.0.0.10,host-1:2:10.0.0.11 ;;
esac
""",
  "python-of-the-play": r"""
if [ "$1" = launch/bucket.py ]; then PYTHONPATH=$ROOT exec "$PYTHON" "$@"; fi
n=${SLURM_PROCID:-}
if [ -z "$n" ]; then n=$(pwd); n=${n#"$STAGE/machines/"}; n=${n%%/*}; fi
env | grep '^JAX' >"$STAGE/environment-$n"
echo "a line of worker $n"
exit "$(play "exits-$n" 0)"
""",
  "xpk": "exit 0",
  "kubectl": r"""
case "$*" in
  *get\ jobset*jsonpath*) play jobset "" ;;
  *get\ jobset*) exit 1 ;;
  *get\ pods*) play pods "0 pod-0 Running|1 pod-1 Running" | tr '|' '\n' ;;
  *logs*) echo "a line of pod 0" ;;
esac
""",
  "sbatch": r"""
bash "${@: -1}"
echo 71
""",
  "scontrol": "printf 'node1\nnode2\n'",
  "scancel": "",
  "squeue": r"""
case "$*" in
  *--me*) ;;
  *) play squeue "" ;;
esac
""",
  "srun": r"""
shift 3
for n in 0 1; do
  if ! grep -qx "$n" "$STAGE/down" 2>/dev/null; then SLURM_PROCID=$n "$@" & fi
done
wait
""",
}


def git(home, *arguments):
  who = ["-c", "user.name=a", "-c", "user.email=a@b"]
  done = subprocess.run(
    ["git", *who, *arguments], cwd=home, check=True, capture_output=True, text=True
  )
  return done.stdout.strip()


class Stage:
  """A folder with the stand-ins and their plays; `launch` runs a script there."""

  def __init__(self, home, checkout):
    self.home, self.checkout, self.workdir = home, checkout, home / "shared" / "run"
    self.env = {"ROOT": str(paths.ROOT), "PYTHON": sys.executable}
    (home / "bin").mkdir()
    self.workdir.mkdir(parents=True)
    for name, body in STAND_INS.items():
      (home / "bin" / name).write_text(COMMON + body)
      (home / "bin" / name).chmod(0o755)

  def plays(self, **lines):
    for name, values in lines.items():
      (self.home / name.replace("_", "-")).write_text("".join(f"{value}\n" for value in values))

  def launch(self, script, *options, **more):
    process = self.start(script, *options, **more)
    try:
      self.output, _ = process.communicate(timeout=240)
    finally:
      process.kill()
    return process.returncode

  def start(self, script, *options, flags=(), checkout=None):
    command = ["bash", str((checkout or self.checkout) / "launch" / script), *options]
    if flags is not None:
      command += ["--", "--config=configs/quickstart.py", f"--workdir={self.workdir}", *flags]
    env = {**os.environ, **self.env, "STAGE": str(self.home)}
    env["PATH"] = f"{self.home / 'bin'}:{env['PATH']}"
    for name in [name for name in env if name.startswith(("SLURM", "TPU_", "JAX_"))]:
      del env[name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)

  def calls(self, of=""):
    file = self.home / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if of in line]
