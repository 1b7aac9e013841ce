"""Counts in memory, and tells who it is. GET /next counts up; GET / only looks."""
import http.server
import json
import socket

count = 0


class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        if self.path == "/next":
            count += 1
        body = json.dumps({"count": count, "host": socket.gethostname()}) + "\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


print("counting on port 8000", flush=True)
http.server.HTTPServer(("127.0.0.1", 8000), Counter).serve_forever()
