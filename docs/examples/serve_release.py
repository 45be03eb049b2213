"""Serve a release over HTTP, verified first: python serve_release.py DIR release.pub.pem [PORT]"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER, KEY, PORT = Path(sys.argv[1]), sys.argv[2], int((*sys.argv, "8080")[3])
subprocess.run([sys.executable, "-m", "consilium", "release", "verify", FOLDER, "--key", KEY], check=True)
MANIFEST = json.loads((FOLDER / "manifest.json").read_bytes())
NAMES, RELEASE = [i["name"] for i in MANIFEST["inputs"]], f"{MANIFEST['product']}@v{MANIFEST['version']}"
MODEL = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            patient = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), 100_000)))
            kinds = (int, float, type(None))  # None, like a name left out, is a missing value
            if wrong := [n for n, v in patient.items() if n not in NAMES or type(v) not in kinds]:
                raise ValueError(f"no such input, or no number: {', '.join(wrong)}")
            row = np.array([[patient.get(name) for name in NAMES]], dtype=np.float32)
            risk, outside = (output[0].item() for output in MODEL.run(None, {"features": row}))
            decision = None if outside else risk >= MANIFEST["decision_threshold"]
            code, said = 200, {"probability": risk, "out_of_range": outside, "decision": decision}
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            code, said = 400, {"error": str(error)}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(said | {"release": RELEASE}).encode())


server = ThreadingHTTPServer(("127.0.0.1", PORT), Answer)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
