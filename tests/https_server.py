"""A small https server on this machine, with a certificate of its own, that misbehaves when asked to."""

import http.server
import ssl
import threading
from dataclasses import dataclass, field


@dataclass
class Site:
    """files: path -> bytes. The other fields are the moods of the server; requests lists what was asked for."""

    files: dict = field(default_factory=dict)
    redirects: dict = field(default_factory=dict)
    version: str = "one"
    cut_after: list = field(default_factory=list)  # bytes after which the next answers break off
    errors: list = field(default_factory=list)  # status codes of the next answers
    ranges: bool = True
    content_type: str = "application/octet-stream"
    requests: list = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, with_body):
        site = self.server.site
        path = self.path.split("?")[0]
        site.requests.append((self.command, path, self.headers.get("Range")))
        if path in site.redirects:
            return self._head(302, {"Location": site.redirects[path], "Content-Length": "0"})
        if with_body and site.errors:
            return self._head(site.errors.pop(0), {"Content-Length": "0"})
        if path not in site.files:
            return self._head(404, {"Content-Length": "0", "X-Error-Code": "EntryNotFound"})
        body, start, status = site.files[path], 0, 200
        version = f'"{site.version}-{path.replace("/", "-")}"'
        asked = self.headers.get("Range")
        if asked and site.ranges and self.headers.get("If-Range") in (None, version):
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            if start >= len(body):
                return self._head(416, {"Content-Length": "0"})
        rest = body[start:]
        self._head(status, {
            "Content-Length": str(len(rest)), "ETag": version, "Content-Type": site.content_type,
            "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes",
            **({"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if status == 206 else {}),
        })  # fmt: skip
        if not with_body:
            return None
        if site.cut_after:
            self.wfile.write(rest[: site.cut_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(rest)
        return None

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args):
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


def start(certificate=None):
    """(server, Site); plain http without a certificate. Stop with `server.shutdown()`."""
    server = _Quiet(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme, host = ("http", "127.0.0.1") if certificate is None else ("https", "localhost")
    server.site = Site(url=f"{scheme}://{host}:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server, server.site
