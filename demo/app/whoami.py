"""Prints what must differ between two sandboxes that were one."""
import json
import os
import socket
import sys
import urllib.request

seen = json.load(urllib.request.urlopen("http://127.0.0.1:8000" + (sys.argv[1] if len(sys.argv) > 1 else "/")))
with open("/etc/machine-id") as f:
    machine = f.read().strip()
print(f"host {socket.gethostname()}  machine-id {machine[:12]}  random {os.urandom(6).hex()}  counter in RAM {seen['count']}")
