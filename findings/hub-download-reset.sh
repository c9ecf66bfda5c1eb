#!/usr/bin/env bash
# huggingface_hub 2.4.0, hf_hub_download: a connection that ends in the middle of a file is taken up again by a Range
# request, from the last whole chunk of 10 MiB, where the server closes it (httpx's RemoteProtocolError), and not where it is reset (ReadError, which
# file_download.http_get does not catch, although it calls the retry one for failures "while reading its body"): the first
# reset ends the download with ReadError, and what had come is not kept: the next call begins at byte 0.
# Seen: "closed: whole file, requests from byte 0 10485760; reset: ReadError, requests from byte 0, then 0".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check huggingface_hub==2.4.0
cat > "$w/look.py" <<'P'
import hashlib
import logging
import os
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENTS = {f"{end}.bin": end[:1].encode() * 24_000_000 for end in ("closed", "reset")}  # half comes before the end
ends, begins = [], []


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def content(self):
        return CONTENTS[self.path.rpartition("/")[2]]

    def head(self, status, length):
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_HEAD(self):
        self.head(200, len(self.content))

    def do_GET(self):
        if self.path.rpartition("/")[2] not in CONTENTS:  # the library asks for lists of its own
            self.send_error(404)
            return
        asked = self.headers.get("Range", "bytes=0-")
        begin = int(asked.removeprefix("bytes=").partition("-")[0])
        begins.append(begin)
        content = self.content
        self.head(206 if begin else 200, len(content) - begin)
        if not ends:
            self.wfile.write(content[begin:])
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True
        if ends.pop() == "reset":
            threading.Event().wait(0.5)  # what was sent has been read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.rfile.close()

    def finish(self):
        try:
            super().finish()
        except (OSError, ValueError):
            pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=sys.argv[1])
os.environ["HF_HUB_DISABLE_XET"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
from huggingface_hub import hf_hub_download

logging.disable(logging.WARNING)


def fetch(end):
    begins.clear()
    ends.append(end)
    try:
        path = hf_hub_download("someone/something", f"{end}.bin")
        return "whole file" if open(path, "rb").read() == CONTENTS[f"{end}.bin"] else "other bytes"
    except Exception as error:
        return type(error).__name__


closed = f"{fetch('closed')}, requests from byte {' '.join(map(str, begins))}"
reset = f"{fetch('reset')}, requests from byte {' '.join(map(str, begins))}"
begins.clear()
hf_hub_download("someone/something", "reset.bin")
print(f"closed: {closed}; reset: {reset}, then {begins[0]}")
server.shutdown()
P
seen=$("$w/venv/bin/python" "$w/look.py" "$w/home" 2>"$w/errors" | tail -1) || { cat "$w/errors"; exit 1; }
echo "$seen"
[ "$seen" = "closed: whole file, requests from byte 0 10485760; reset: ReadError, requests from byte 0, then 0" ]
