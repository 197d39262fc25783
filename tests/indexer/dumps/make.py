"""Writes the dump of a release's schema that tests/indexer/test_upgrades.py brings up to date.

    PYTHONPATH=CHECKOUT SAYAGAIN_TOKENIZER=model/weights/fast.onnx python tests/indexer/dumps/make.py OUT.sql.gz

CHECKOUT is the code of that release: before a migration is added, the one as it stands. Two recordings of the demo are
indexed through its command line from /srv/radio, with a data folder /srv/sayagain, both made for this and removed; what
else a release can hold (keys, metadata, jobs, watches) is added where it can.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[3] / "service" / "demo"
FOLDER, HOME = Path("/srv/radio"), Path("/srv/sayagain")  # paths that stand in the dumps
NAMES = ("01-monday.opus", "04-thursday.opus")


def sayagain(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-P", "-m", "service", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def over_http() -> None:
    """A recording that is sent in, with metadata, and a watch."""
    from fastapi.testclient import TestClient

    from service.app import create_app
    from service.settings import Settings

    with TestClient(create_app(Settings())) as client:
        files = [("file", ("sent.opus", (DEMO / "queries" / "accordion.opus").read_bytes()))]
        about = json.dumps([{"metadata": {"shelf": 7}, "external_id": "own"}])
        sent = client.post("/v1/recordings", files=files, data={"archive": "radio", "about": about})
        assert sent.status_code == 202, sent.text
        while client.get(f"/v1/jobs/{sent.json()['id']}").json()["state"] in ("queued", "running"):
            pass
        form = {"archive": "radio", "name": "visibility", "min_score": 0.0}
        made = client.post("/v1/watches", files={"file": (DEMO / "query.opus").read_bytes()}, data=form)
        assert made.status_code == 201, made.text


def main(out: Path) -> None:
    FOLDER.mkdir(parents=True)
    HOME.mkdir(parents=True)
    os.environ |= {"SAYAGAIN_HOME": str(HOME)}
    release = Path(os.environ["PYTHONPATH"])
    try:
        for name in NAMES:
            shutil.copy(DEMO / "archive" / "skerry-radio" / name, FOLDER)
        sayagain("index", FOLDER, "--archive", "radio", "--codebook", "archive")
        if (release / "service" / "jobs").is_dir():
            over_http()
        if (release / "service" / "keys.py").is_file():
            sayagain("keys", "create", "lab", "--scope", "write")
        from indexer import embedded
        from indexer.server import USER, Server

        embedded.join(HOME)
        server = Server(HOME / "postgres")
        dump = subprocess.run(
            [
                server.programs / "pg_dump", "--no-owner", "--no-privileges", "--inserts",
                "-h", server.socket_folder(), "-U", USER, "postgres",
            ],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        embedded.leave(HOME)
        lines = [line for line in dump.splitlines(keepends=True) if not line.startswith((b"--", b"\n"))]
        out.write_bytes(gzip.compress(b"".join(lines), mtime=0))
    finally:
        shutil.rmtree(FOLDER)
        shutil.rmtree(HOME)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
