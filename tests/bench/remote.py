"""Training from a slow web server against training from disk: time to the first iteration, and images per second.

    .venv/bin/python tests/bench/remote.py [--rounds N] [--checkout OTHER]

The server waits 0.15 s before the first byte and sends 25 MB/s per connection; 64 shards of 4 MB, 64 lanes, the
smallest network, two epochs. Runs from disk and from the server are interleaved; figures are medians over rounds.
`--checkout` measures another version of distgan.
"""

import argparse
import json
import math
import os
import shutil
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import ROOT, launch_env, make_dataset, noise

FIRST_BYTE_SECONDS, BYTES_PER_SECOND, PIECE = 0.15, 25e6, 1 << 18
SHARDS, SHARD_BYTES, SIZE, SAMPLE_BYTES = 64, 4e6, 32, 32 * 32 * 3 + 2048
NETWORK = ["--model.options.width", "4", "--model.latent", "8", "--batch", "64", "--epochs", "2"]
NETWORK += ["--report.every_images", "64", "--checkpoint.every_epochs", "100", "--samples.every_epochs", "100"]


def serve(folder: Path) -> tuple[socketserver.ThreadingTCPServer, str]:
    """Starts the slow server; returns it and its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = (folder / self.path.rsplit("/", 1)[1]).read_bytes()
            time.sleep(FIRST_BYTE_SECONDS)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            start = time.perf_counter()
            for at in range(0, len(data), PIECE):
                self.wfile.write(data[at : at + PIECE])
                time.sleep(max(0.0, start + (at + PIECE) / BYTES_PER_SECOND - time.perf_counter()))

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 128

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def measure(shards: str | Path, checkout: Path, folder: Path) -> dict[str, float]:
    """Seconds from the start of the process to the first iteration's end, and images per second of the two epochs."""
    for name in ("run", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    words = [*NETWORK, "--data.shards", shards, "--data.cache_dir", folder / "cache", "--run_dir", folder / "run"]
    start = time.time()
    command = [sys.executable, str(checkout / "distgan/train.py"), *map(str, words)]
    subprocess.run(command, check=True, env=launch_env(PYTHONPATH=str(checkout)), capture_output=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    middle = len(rows) // 2
    result: dict[str, float] = {"first iteration, s": rows[0]["time"] - start}
    for name, first, last in (("epoch 1, images/s", 0, middle), ("epoch 2, images/s", middle, len(rows) - 1)):
        images = rows[last]["images"] - rows[first]["images"]
        result[name] = images / (rows[last]["time"] - rows[first]["time"])
    return result | {"data_wait_seconds": sum(row.get("data_wait_seconds", 0.0) for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_shard = int(SHARD_BYTES / SAMPLE_BYTES)
        shards = make_dataset(folder / "dataset", noise(SHARDS * per_shard, SIZE), shards=SHARDS)
        manifest = json.loads((shards / "manifest.json").read_text())
        print(f"{len(manifest['shards'])} shards of {manifest['shards'][0]['bytes'] / 1e6:.1f} MB")
        server, address = serve(shards)
        results: dict[str, list[dict[str, float]]] = {"disk": [], "server": []}
        for _ in range(args.rounds):
            for place, source in (("disk", shards), ("server", address)):
                results[place].append(measure(source, args.checkout.resolve(), folder))
        server.shutdown()
    print(f"medians of {args.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print("| | disk | server | server / disk |\n|---|---|---|---|")
    for key in results["disk"][0]:
        disk, remote = ([result[key] for result in results[place]] for place in ("disk", "server"))
        ratio = statistics.median(b / (a or math.inf) for a, b in zip(disk, remote, strict=True))
        print(f"| {key} | {statistics.median(disk):,.2f} | {statistics.median(remote):,.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
