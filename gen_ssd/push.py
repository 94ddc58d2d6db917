"""Uploads the data set of an arm, or a trained student, to a repository of the Hugging Face hub.

Usage: gen-ssd push --folder=FOLDER --push_to=OWNER/NAME [--public]

  --folder    RUN/arms/NAME/dataset, or RUN/arms/NAME/seed-0/student
  --push_to   the repository; it is made when there is none
  --public    make a new repository public; without it, it is private

Log in first with `hf auth login`, or set HF_TOKEN. Nothing is uploaded by any other command.
For example:
  gen-ssd push --folder=runs/mine/arms/gen_ssd/dataset --push_to=me/gsm8k-traces
"""

from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.errors import clip


def main() -> None:
  """The command `gen-ssd push`."""
  with errors.command():
    arguments = config_files.Arguments("push", __doc__ or "")
    arguments.folder("folder")
    arguments.add_argument("--push_to", required=True)
    arguments.add_argument("--public", action="store_true")
    known = arguments.parse_args()
    print(push(known.folder, known.push_to, public=known.public))


def push(folder: folders.Path, repository: str, *, public: bool = False) -> str:
  """Uploads all files of `folder` in one commit; returns the address of the repository.

  Raises UserError when the folder is neither a data set nor a model, when the repository has no
  valid name, and when the hub refuses the upload or cannot be reached. No message has the token.
  """
  import huggingface_hub as hub
  from huggingface_hub import errors as hub_errors
  from huggingface_hub.utils import disable_progress_bars

  kind = _kind(folder)
  try:
    hub.utils.validate_repo_id(repository)
    named = repository.count("/") == 1
  except hub_errors.HFValidationError:
    named = False
  if not named:
    errors.fail("--push_to", repository, "OWNER/NAME, of letters, digits, -, _ and .")
  disable_progress_bars()
  try:
    token = hub.get_token()
    api = hub.HfApi(library_name="gen-ssd")
    api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
    api.upload_folder(
      repo_id=repository,
      repo_type=kind,
      folder_path=folders.here(str(folder)),
      commit_message=f"Upload {kind} with gen-ssd",
    )
  except (
    Exception
  ) as error:  # of the network or the hub, of many types; only the name comes from us
    if getattr(error, "errno", None) in errors.MACHINE:
      raise
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
      why = "you may not write there: log in with `hf auth login`, or set HF_TOKEN"
    else:
      why = errors.one_line(error)
    text = f"--push_to is {clip(repository)}: {kind} not uploaded: {why}"
    raise UserError(text.replace(token, "***") if token else text) from None
  place = "datasets/" * (kind == "dataset")
  return f"{hub.constants.ENDPOINT}/{place}{repository}"


def _kind(folder):
  """dataset or model."""
  has = lambda name: (folder / name).exists()
  if has("config.json") and has("README.md"):
    return "model"
  if has("kept.parquet"):
    return "dataset"
  raise UserError(
    f"--folder is {clip(str(folder))!r}: it must be RUN/arms/NAME/dataset or "
    "RUN/arms/NAME/seed-0/student of a run"
  )


if __name__ == "__main__":
  main()
