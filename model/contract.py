"""Whether a file honours the tokenizer contract: every rule judged, by reading the file and by running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.declaration import OUTPUTS, Finding, declaration
from model.tokenizer import open_session
from model.trial import Trial

STATIC_RULES = {
    "file": "is an ONNX file",
    "inputs": "takes waveform float [batch, samples]",
    "outputs": "gives ids int64 [batch, frames] and embeddings float [batch, frames, dim]",
    "codebook": "has a sound codebook",
    "metadata": "has all metadata",
    "frame_seconds": "has frames of whole samples",
}


@dataclass(frozen=True)
class Report:
    """All findings about one file; a rule that holds has one of level `ok`, and their messages follow on its name."""

    path: Path
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether the file is a tokenizer: warnings are allowed, errors are not."""
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The form of `sayagain tokenizer check --json`."""
        return {"file": str(self.path), "passed": self.passed, "findings": [vars(f) for f in self.findings]}


def check(path: Path) -> Report:
    """Judge a file by the contract, running it on the CPU for some seconds; whatever is in the file is a finding."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        return Report(path, (Finding("error", "file", f"cannot be read: {error.strerror or error}"),))
    read = declaration(blob)
    broken = {finding.rule for finding in read.findings}
    if "file" in broken:
        return Report(path, read.findings)
    findings = [Finding("ok", rule, message) for rule, message in STATIC_RULES.items() if rule not in broken]
    if read.codebook is not None and read.codebook.pq is not None:
        findings.append(Finding("ok", "pq", f"has a product quantiser of {len(read.codebook.pq)} bytes"))
    findings.extend(read.findings)
    try:
        session = open_session(blob)
    except Exception as error:  # ONNX Runtime raises many kinds
        return Report(path, (*findings, Finding("error", "run", f"cannot be loaded: {str(error).splitlines()[0]}")))
    if "inputs" in broken or not OUTPUTS.keys() <= {value.name for value in session.get_outputs()}:
        return Report(path, (*findings, Finding("warning", "run", "was not run: its inputs and outputs come first")))
    return Report(path, (*findings, *Trial(path, read, session).findings()))
