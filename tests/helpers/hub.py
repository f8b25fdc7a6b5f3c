"""A local Hugging Face hub, its cache, and a server of plain files.

The hub's client reads its settings from the environment when it is imported, so
other processes use the server, and this process can use the cache.
"""

import contextlib
import hashlib
import http.server
import json
import re
import shutil
import threading


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self._answer(has_body=True)

  def do_HEAD(self):
    self._answer(has_body=False)

  def log_message(self, *_):
    pass

  def _answer(self, has_body):
    repositories = self.server.repositories
    self.server.asked.append(self.path)
    about = re.fullmatch(
      r"/api/models/(\w+/\w+)/(revision|tree)/(\w+)(\?.*)?", self.path
    )
    file = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.path)
    revisions = repositories.get((about or file or [0, 0])[1])
    if revisions is None:
      return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, has_body)
    if file:
      (folder,) = (f for f in revisions.values() if commit_of(f) == file[2])
      content = (folder / file[3]).read_bytes()
      tag = hashlib.sha256(content).hexdigest()
      headers = {"X-Repo-Commit": file[2], "ETag": f'"{tag}"'}
      return self._send(200, content, headers, has_body)
    if about[3] not in revisions:
      return self._send(
        404, b"", {"X-Error-Code": "RevisionNotFound"}, has_body
      )
    folder = revisions[about[3]]
    names = sorted(path.name for path in folder.iterdir())
    if about[2] == "tree":
      values = [
        {"type": "file", "path": n, "size": 1, "oid": ""} for n in names
      ]
    else:
      files = [{"rfilename": name} for name in names]
      values = {"id": about[1], "sha": commit_of(folder), "siblings": files}
    self._send(200, json.dumps(values).encode(), {}, has_body)

  def _send(self, status, content, headers, has_body):
    self.send_response(status)
    for name, value in {"Content-Length": len(content), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    if has_body:
      self.wfile.write(content)


class Files(_Handler):
  """Handler that serves contents and headers by path, not repositories."""

  def _answer(self, has_body):
    self.server.asked.append(self.path)
    missing = 404, b"", {}
    self._send(*self.server.repositories.get(self.path, missing), has_body)


def commit_of(folder):
  """Returns the commit hash that represents a folder."""
  return hashlib.sha1(str(folder).encode()).hexdigest()


@contextlib.contextmanager
def serve(repositories, handler=_Handler):
  """Yields a server of folders by repository and revision, or of `Files`.

  Its `asked` has the paths of all requests; its `address` is for HF_ENDPOINT.
  """
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  server.repositories, server.asked = repositories, []
  server.address = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def fill_cache(cache, repository, revisions, monkeypatch):
  """Fills the hub's cache with folders by revision, and goes offline."""
  from huggingface_hub import constants

  model = cache / f"models--{repository.replace('/', '--')}"
  for revision, folder in revisions.items():
    commit = commit_of(folder)
    shutil.copytree(folder, model / "snapshots" / commit)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / revision).write_text(commit)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
