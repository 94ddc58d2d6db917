"""A stand-in for the Hugging Face hub: the part of its HTTP interface by which a folder is uploaded."""

import base64
import contextlib
import http.server
import json
import re
import threading

TOKEN = "hf_secretsecretsecret"


class Hub(http.server.ThreadingHTTPServer):
  """Repositories in memory: {(kind, name): {"private": bool, "files": {path: bytes}}}."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Request)
    self.repositories, self.commits, self.tokens = {}, [], []
    self.refuse = None  # (status, message) of every commit

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving():
  """A Hub that answers requests."""
  hub = Hub()
  threading.Thread(target=hub.serve_forever, daemon=True).start()
  try:
    yield hub
  finally:
    hub.shutdown()
    hub.server_close()


def environment(hub, token=TOKEN):
  """Variables that point huggingface_hub to it."""
  return {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Request(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _answer(self, value, status=200):
    body = json.dumps(value).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _body(self):
    return self.rfile.read(int(self.headers.get("Content-Length", 0)))

  def do_POST(self):
    hub, body, path = self.server, self._body(), self.path.partition("?")[0]
    hub.tokens.append((self.headers.get("Authorization") or "").removeprefix("Bearer "))
    if hub.tokens[-1] != TOKEN:
      return self._answer({"error": "Invalid username or password."}, 401)
    if path == "/api/repos/create":
      asked = json.loads(body)
      name = f"{asked.get('organization') or 'me'}/{asked['name']}"
      key = asked.get("type", "model"), name
      status = 409 if key in hub.repositories else 200
      private = asked["visibility"] == "private"
      hub.repositories.setdefault(key, {"private": private, "files": {}})
      return self._answer({"url": f"{hub.url}/{name}"}, status)
    if path == "/api/validate-yaml":
      return self._answer({"errors": [], "warnings": []})
    found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/(preupload|commit)/main", path)
    if not found:
      return self._answer({"error": f"unknown path {path}"}, 404)
    files = hub.repositories[found[1], found[2]]["files"]
    if found[3] == "preupload":
      names = [f["path"] for f in json.loads(body)["files"]]
      modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
      return self._answer({"files": modes})
    if hub.refuse:
      return self._answer({"error": hub.refuse[1]}, hub.refuse[0])
    lines = [json.loads(line) for line in body.splitlines() if line]
    for line in lines:
      if line["key"] == "file":
        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    hub.commits.append(next(x["value"]["summary"] for x in lines if x["key"] == "header"))
    commit = {"commitUrl": f"{hub.url}/{found[2]}/commit/abc", "commitOid": "a" * 40}
    return self._answer({"success": True, **commit})

  def do_GET(self):
    self._answer({"error": f"unknown path {self.path}"}, 404)
