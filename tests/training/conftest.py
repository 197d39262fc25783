import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

torch.set_num_threads(1)  # small sums: more threads only wait for each other
