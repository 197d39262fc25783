"""`sayagain tokenizer`: exit codes, one-line errors, and the accurate tokenizer built from files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from model import whisper
from model.tokenizer import DEFAULT_WEIGHTS, EARLIER_WEIGHTS, Tokenizer
from service.registry import Registry
from service.tokenizers import app

safetensors = pytest.importorskip("safetensors.numpy", reason="the accurate extra is not installed")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of its own, and no network: the hub's client only looks into an empty cache."""
    monkeypatch.setenv("SAYAGAIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and tuned part of the true shapes: zeros for the most part."""
    from model.tuned import LAYERS

    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    weights = {name: np.zeros(shape, np.float16) for name, shape in whisper.parameters()}
    weights["positional_embedding"] = rng.standard_normal((1_500, 512)).astype(np.float16)
    safetensors.save_file(weights, folder / "weights.safetensors")
    part = {"ln_post.weight": np.ones(512), "ln_post.bias": np.zeros(512), "projection.mean": np.zeros(512)}
    part |= {"projection.weight": rng.standard_normal((256, 512)), "codebook": rng.standard_normal((1_024, 256))}
    for block in range(6):
        for layer, (rows, columns) in LAYERS.items():
            part[f"lora.{block}.{layer}.a"] = np.zeros((1, columns))
            part[f"lora.{block}.{layer}.b"] = np.zeros((rows, 1))
    about = {"name": "accurate", "version": "1", "licence": "MIT", "trained_on": "zeros"}
    half = {name: array.astype(np.float16) for name, array in part.items()}
    safetensors.save_file(half, folder / "tuned.safetensors", about)
    return folder / "weights.safetensors", folder / "tuned.safetensors"


def run(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_check_judges_with_its_exit_code(tokenizer_path: Path, tmp_path: Path) -> None:
    code, out, err = run("check", tokenizer_path)
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {"ok"}
    assert err.strip() == f"{tokenizer_path} honours the tokenizer contract"
    (tmp_path / "text.onnx").write_text("hello")
    code, out, _ = run("check", tmp_path / "text.onnx", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["passed"] is False
    assert [(f["level"], f["rule"]) for f in report["findings"]] == [("error", "file")]
    assert run("check", tmp_path / "none.onnx")[0] == 1
    assert run("check")[0] == 2


def test_show_tells_what_the_file_says(tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAYAGAIN_TOKENIZER", str(tokenizer_path))
    code, out, _ = run("show", "--json")
    facts = json.loads(out)
    tokenizer = Tokenizer(tokenizer_path)
    assert code == 0
    assert (facts["sha256"], facts["codebook"]) == (tokenizer.info.sha256, tokenizer.codebook.size)
    assert facts["bytes"] == tokenizer_path.stat().st_size
    assert facts["name"] in run("show", tokenizer_path)[1]
    code, out, err = run("show", tmp_path / "none.onnx")
    assert (code, out) == (1, "")
    assert err.startswith("sayagain: tokenizer_invalid: cannot read the tokenizer")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_writes_a_tokenizer_into_the_data_folder(
    parts: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    from model import accurate

    weights, tuned = parts
    monkeypatch.setitem(accurate.build.__kwdefaults__, "expected", whisper.fingerprint(safetensors.load_file(weights)))
    code, out, err = run("build", "accurate", "--weights", weights, "--tuned", tuned, "--precision", precision)
    assert (code, out) == (0, ""), err
    target = home / "tokenizers" / "accurate.onnx"
    assert Tokenizer(target).info.trained_on == "zeros"
    assert err.splitlines()[-1] == "to use it: sayagain index FOLDER --archive NAME --tokenizer accurate"
    assert [path.name for path in target.parent.iterdir()] == ["accurate.onnx"]


def test_archives_of_a_tokenizer_that_is_built_anew_keep_theirs(home: Path) -> None:
    folder = home / "tokenizers"

    def built(*words: str) -> str:
        code, _, err = run("build", "pairalign", *words)
        assert code == 0, err
        return hashlib.sha256((folder / "pairalign.onnx").read_bytes()).hexdigest()

    first = built("--rate", "1")
    assert built("--rate", "1") == first
    assert [path.name for path in folder.iterdir()] == ["pairalign.onnx"]
    second = built("--rate", "3")
    assert second != first
    assert {path.name for path in folder.iterdir()} == {"pairalign.onnx", f"pairalign-{first[:12]}.onnx"}
    registry = Registry(home, DEFAULT_WEIGHTS, threads=1)
    assert registry.has(first)
    assert registry.has(second)
    # What cannot be built takes nothing away, and leaves nothing beside it.
    assert run("build", "pairalign", "--rate", "9")[0] == 1
    assert {path.name for path in folder.iterdir()} == {"pairalign.onnx", f"pairalign-{first[:12]}.onnx"}


def test_build_says_in_one_line_what_is_missing(parts: tuple[Path, Path], tmp_path: Path) -> None:
    weights, tuned = parts
    (tmp_path / "file").write_text("")
    for words, says in (
        (("--tuned", tmp_path / "none"), "tuned_part_invalid: the tuned part"),
        (("--tuned", tuned, "--weights", tmp_path / "none"), "encoder_unavailable: "),
        (("--tuned", tuned, "--weights", weights), "encoder_unavailable: not the published encoder"),
    ):
        code, out, err = run("build", "accurate", *words)
        assert (code, out) == (1, "")
        assert err.startswith(f"sayagain: {says}")
        assert len(err.splitlines()) == 1
    assert run("build", "precise")[0] == 2
    assert run("build", "accurate", "--precision", "fp64")[0] == 2


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("", "cannot be fetched"),
        ("import sys; sys.modules['huggingface_hub'] = None", 'pip install "sayagain[accurate]"'),
    ],
)
def test_without_the_publisher_it_says_what_to_do(
    parts: tuple[Path, Path], tmp_path: Path, before: str, says: str
) -> None:
    if not before:
        pytest.importorskip("huggingface_hub")
    code = f"{before}\nfrom service.tokenizers import app\napp(['build', 'accurate', '--tuned', {str(parts[1])!r}])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("sayagain: encoder_unavailable: openai/whisper-base")
    assert says in line
    assert ("--weights" in line) == (not before)


def test_archives_of_the_version_before_find_their_tokenizer(tmp_path: Path) -> None:
    registry = Registry(tmp_path, DEFAULT_WEIGHTS, threads=1)
    sha256 = hashlib.sha256(EARLIER_WEIGHTS.read_bytes()).hexdigest()
    assert registry.has(sha256)
    found = registry.find(sha256)
    assert found is not None
    assert (found.info.name, found.info.version, found.info.sha256) == ("fast", "4", sha256)
    assert not registry.has("0" * 64)
    assert registry.find("0" * 64) is None
