"""A Hub on this machine that takes uploads of models and data sets."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub that an upload needs."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        asked = json.loads(body)["files"] if self.path.endswith("preupload/main") else []
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
        commit = "1" * 40
        kind = re.match("/api/(models|datasets)/", self.path)
        place = f"{self.server.url}/{'datasets/' if kind and kind[1] == 'datasets' else ''}user/name"
        answer = {
            "/api/repos/create": {"url": f"{self.server.url}/{self._folder(body)}user/name"},
            "/api/models/user/name/preupload/main": {"files": files},
            "/api/datasets/user/name/preupload/main": {"files": files},
            "/api/models/user/name/commit/main": {"commitUrl": f"{place}/commit/{commit}", "commitOid": commit},
            "/api/datasets/user/name/commit/main": {"commitUrl": f"{place}/commit/{commit}", "commitOid": commit},
        }.get(self.path, {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _folder(self, body: bytes) -> str:
        return "datasets/" if self.path.endswith("create") and json.loads(body).get("type") == "dataset" else ""

    def log_message(self, *args):
        pass


@contextmanager
def running_hub():
    """The server, with its `url` and the `requests` that it got: path, authorization, body."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
