"""A stand-in for Google Cloud Storage: the part of its JSON API that gcsfs and TensorStore use.

An object appears whole or not at all, is never appended to, and has a generation that grows. Run as a
program it prints its address, then serves until it is stopped. `environment` points clients to it.
"""

import contextlib
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse

NAME = "bucket"


class Bucket(http.server.ThreadingHTTPServer):
  """One bucket in memory: `objects` maps a name to (generation, bytes); `log` lists all changes."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Request)
    self.objects, self.uploads, self.log = {}, {}, []
    self.generations, self.lock = itertools.count(1), threading.Lock()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}"

  def put(self, name, data, query):
    """The metadata of an object after it is written, or None where its generation is another one."""
    with self.lock:
      have, _ = self.objects.get(name, (0, b""))
      if int(query.get("ifGenerationMatch", have)) != have:
        return None
      self.objects[name] = next(self.generations), bytes(data)
      self.log.append(("put", name, len(data)))
    return self.describe(name)

  def describe(self, name):
    generation, data = self.objects[name]
    return {
      "kind": "storage#object",
      "name": name,
      "bucket": NAME,
      "size": str(len(data)),
      "generation": str(generation),
      "metageneration": "1",
      "etag": str(generation),
      "md5Hash": hashlib.md5(data).hexdigest(),
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
    }


@contextlib.contextmanager
def serving():
  """A Bucket that serves meanwhile, from a thread of this process."""
  found = Bucket()
  threading.Thread(target=found.serve_forever, daemon=True).start()
  try:
    yield found
  finally:
    found.shutdown()


def environment(url):
  """Environment variables by which clients use the stand-in at `url` instead of Google."""
  return {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GOOGLE_CLOUD_PROJECT": "none",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }


class _Request(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: Bucket

  def log_message(self, *_):
    pass

  def handle(self):
    with contextlib.suppress(ConnectionError):  # TensorStore hangs up on an answer that it knows
      super().handle()

  def _answer(self, code, data=b"", **headers):
    if not isinstance(data, bytes):
      data = json.dumps(data).encode()
      headers["Content-Type"] = "application/json"
    self.send_response(code)
    for key, value in headers.items():
      self.send_header(key.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _asked(self):
    """(path, query, name of the object or "")."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    found = re.fullmatch(rf"(?:/download)?/storage/v1/b/{NAME}/o/(.+)", url.path)
    return url.path, query, urllib.parse.unquote(found[1]) if found else ""

  def _missing(self):
    self._answer(404, {"error": {"code": 404, "message": "there is no such object"}})

  def do_GET(self):
    path, query, name = self._asked()
    if path == f"/storage/v1/b/{NAME}":
      return self._answer(200, {"kind": "storage#bucket", "name": NAME, "id": NAME})
    if path == f"/storage/v1/b/{NAME}/o":
      return self._list(query)
    if name not in self.server.objects:
      return self._missing()
    if query.get("alt") != "media":
      return self._answer(200, self.server.describe(name))
    generation, data = self.server.objects[name]
    headers = {"x_goog_generation": str(generation), "ETag": str(generation)}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    if not wanted:
      return self._answer(200, data, **headers)
    first = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
    last = min(int(wanted[2]) if wanted[1] and wanted[2] else len(data), len(data) - 1)
    if first >= len(data):
      return self._answer(416, **headers)
    headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
    return self._answer(206, data[first : last + 1], **headers)

  do_HEAD = do_GET

  def _list(self, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    items, folders = [], set()
    for name in sorted(self.server.objects):
      rest = name.removeprefix(prefix)
      if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
        continue
      if "endOffset" in query and name >= query["endOffset"]:
        continue
      if delimiter and delimiter in rest:
        folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
      else:
        items.append(self.server.describe(name))
    self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

  def do_POST(self):
    path, query, _ = self._asked()
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if self.headers.get("Transfer-Encoding") == "chunked":
      body = self._chunks()
    copied = re.fullmatch(rf"/storage/v1/b/{NAME}/o/(.+)/rewriteTo/b/{NAME}/o/(.+)", path)
    moved = re.fullmatch(rf"/storage/v1/b/{NAME}/o/(.+)/moveTo/o/(.+)", path)
    if copied:
      return self._copy(*map(urllib.parse.unquote, copied.groups()))
    if moved:
      return self._copy(*map(urllib.parse.unquote, moved.groups()), move=True)
    if not re.fullmatch(rf"(/resumable)?/upload/storage/v1/b/{NAME}/o", path):
      return self._answer(400, {"error": {"code": 400, "message": f"unknown path {path}"}})
    if "upload_id" in query:
      return self._chunk(query, body)
    if query.get("uploadType") == "resumable":
      number = str(len(self.server.uploads) + 1)
      name = query.get("name") or json.loads(body)["name"]
      self.server.uploads[number] = name, bytearray(), query
      return self._answer(200, Location=f"{self.server.url}{path}?upload_id={number}")
    if query.get("uploadType") == "multipart":
      boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
      start, part = body.split(b"--" + boundary, 2)[1:]
      query["name"] = json.loads(start.split(b"\n\n", 1)[1])["name"]
      body = part.split(b"\n\n", 1)[1].rpartition(b"\n--" + boundary)[0]
    return self._stored(query["name"], body, query)

  do_PUT = do_POST

  def _chunks(self):
    """A body that is sent in pieces, each after its length."""
    found = b""
    while size := int(self.rfile.readline(), 16):
      found += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return found

  def _stored(self, name, body, query):
    described = self.server.put(name, body, query)
    if described is None:
      return self._answer(412, {"error": {"code": 412, "message": "another generation"}})
    return self._answer(200, described)

  def _chunk(self, query, body):
    """A part of a resumable upload: the object appears with the last one."""
    name, data, options = self.server.uploads[query["upload_id"]]
    data += body
    total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
    if total == "*" or int(total) > len(data):
      return self._answer(308, Range=f"bytes=0-{len(data) - 1}")
    del self.server.uploads[query["upload_id"]]
    return self._stored(name, data, options)

  def _copy(self, source, target, move=False):
    if source not in self.server.objects:
      return self._missing()
    found = self.server.put(target, self.server.objects[source][1], {})
    if move:
      self.server.objects.pop(source)
    return self._answer(200, found if move else {"done": True, "resource": found})

  def do_DELETE(self):
    _, query, name = self._asked()
    with self.server.lock:
      have = self.server.objects.get(name)
      if have is None or int(query.get("ifGenerationMatch", have[0])) != have[0]:
        return self._missing() if have is None else self._answer(412, {})
      del self.server.objects[name]
      self.server.log.append(("delete", name, 0))
    return self._answer(204)


if __name__ == "__main__":
  server = Bucket()
  print(server.url, flush=True)
  server.serve_forever()
