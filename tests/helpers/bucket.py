"""A Google Cloud Storage server in this process that can inject faults."""

import contextlib
import functools
import io
import json
import re
import threading
from http import server as http
from urllib import parse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "made-bucket"


class _Handler(RequestHandler):
  """The emulator's handler, to which faults and generations are added."""

  def __init__(self, served, *args):
    self._served, self._generation = served, None
    super().__init__(served.storage, *args)

  def _handle(self, route):
    length = int(self.headers.get("Content-Length") or 0)
    body = self.rfile.read(length)
    self.rfile = io.BytesIO(body)
    status = self._served.fault(self.command, self.path, body)
    if status is None:
      status = self._check_generation(body)
    if status is None:
      self._served.requests.append((self.command, self.path))
      if "uploadType=multipart" in self.path:
        self._split_multipart(body)
      route()
      return
    answer = {"error": {"code": status, "message": f"made: {status}"}}
    content = b"" if status == 304 else json.dumps(answer).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _split_multipart(self, body):
    """Turns a multipart upload into a plain one.

    The emulator decodes the parts as text and drops a final CR.
    """
    meta, content = re.fullmatch(
      rb"--==0==\n.*?\n\n(.*?)\n--==0==\n.*?\n\n(.*)\n--==0==--",
      body,
      re.DOTALL,
    ).groups()
    content = self._served.change(content)
    if content:  # The emulator handles an empty upload only in its own way.
      name = parse.quote(json.loads(meta)["name"], safe="")
      self.path = f"{self.path.partition('?')[0]}?uploadType=media&name={name}"
      self.headers.replace_header("Content-Type", "application/octet-stream")
      self.headers.replace_header("Content-Length", str(len(content)))
      self.rfile = io.BytesIO(content)

  def _check_generation(self, body):
    """Returns an error status if a condition of the request is not met."""
    parts = parse.urlsplit(self.path)
    query = {name: row[0] for name, row in parse.parse_qs(parts.query).items()}
    bucket, _, name = parts.path.partition("/b/")[2].partition("/o")
    name = parse.unquote(name.removeprefix("/")) or query.get("name")
    if not name and query.get("uploadType") == "multipart":
      name = json.loads(re.search(rb'\{"name".*?\}', body)[0])["name"]
    try:
      now = self.storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
      now = "0"
    self._generation = now if query.get("alt") == "media" else None
    if query.get("ifGenerationMatch", now) != now:
      return 412
    return 304 if query.get("ifGenerationNotMatch") == now != "0" else None

  def end_headers(self):
    if self._generation:
      self.send_header("x-goog-generation", self._generation)
    super().end_headers()

  def do_GET(self):
    self._handle(super().do_GET)

  def do_POST(self):
    self._handle(super().do_POST)

  def do_PUT(self):
    self._handle(super().do_PUT)

  def do_DELETE(self):
    self._handle(super().do_DELETE)

  def do_PATCH(self):
    self._handle(super().do_PATCH)


class Server:
  """Serves one bucket from memory.

  Attributes:
    url: address of the server.
    requests: methods and paths of the successful requests.
    fault: function of method, path and body that returns an error status or
      None.
    change: function that is applied to the contents of small uploads.
  """

  def __init__(self):
    self.reset()
    handler = functools.partial(_Handler, self)
    self._server = http.HTTPServer(("127.0.0.1", 0), handler)
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def reset(self):
    """Empties the bucket and removes faults."""
    self.storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, self.storage)
    self.requests = []
    self.fault = lambda method, path, body: None
    self.change = lambda content: content

  def stop(self):
    self._server.shutdown()
    self._server.server_close()

  @contextlib.contextmanager
  def failing(self, status, methods=("GET", "POST", "PUT", "DELETE"), text=""):
    """Answers requests of these methods by errors if their path has `text`."""
    self.fault = lambda method, path, body: (
      status if method in methods and text in path else None
    )
    try:
      yield
    finally:
      self.fault = lambda method, path, body: None

  def environment(self):
    """Returns the environment variables that direct clients to this server."""
    return {
      "STORAGE_EMULATOR_HOST": self.url,
      "TENSORSTORE_GCS_HTTP_URL": self.url,
    }
