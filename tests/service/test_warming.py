"""The first search is as quick as the next: nothing is left to be compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
import numba
from service.search import alignment, candidates, fusion, rescoring, shard, stretches, warming
from model import codebook
from service.clips import read_clip
from service.deps import Backend
from service.search.answer import Request
from service.settings import Settings

ROOMS = (alignment, candidates, fusion, rescoring, shard, stretches, codebook)

def compiled():
    made = {f"{room.__name__}.{name}": value for room in ROOMS for name, value in vars(room).items()}
    kind = numba.core.dispatcher.Dispatcher
    return {name: sorted(map(str, f.signatures)) for name, f in made.items() if isinstance(f, kind)}

backend = Backend.open(Settings())
found = warming.warm(backend.search.tokenizer)
before = compiled()
clip = read_clip(sys.argv[1], 60.0)
hits = [len(backend.search.search(Request([clip], "demo", exact=exact)).hits) for exact in (False, True)]
print(json.dumps({"found": found, "before": before, "after": compiled(), "hits": hits}))
backend.close()
"""


def test_a_search_after_warming_compiles_nothing(demo_home: Path, tokenizer_path: Path, query_path: Path) -> None:
    environment = {**os.environ, "SAYAGAIN_HOME": str(demo_home), "SAYAGAIN_TOKENIZER": str(tokenizer_path)}
    words = [sys.executable, "-c", CODE, str(query_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] > 0
    assert all(hits > 0 for hits in told["hits"])
    assert sum(map(len, told["before"].values())) > 5
    assert told["after"] == told["before"]
    # Archives with codes of further codebooks have another kind of table look-up: that is there too.
    assert len(told["before"]["service.search.rescoring._match"]) == 2
