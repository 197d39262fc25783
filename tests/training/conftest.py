from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

torch.set_num_threads(1)  # small sums: more threads only wait for each other


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run has when it starts to distil; a test that writes into it takes a copy."""
    from tests.training.corpus import prepare, write_corpus

    return prepare(write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("work"))
