"""The functions are for anybody who has torch, and nothing else of what layersim needs."""

import subprocess
import sys

PROGRAM = """
import sys

for name in ("numpy", "scipy", "torchmetrics", "lightning", "lightning_utilities"):
    sys.modules[name] = None  # as if it was not installed
import torch

before = {name.partition(".")[0] for name in sys.modules}
import layersim.similarity as similarity

generator = torch.Generator().manual_seed(0)
layers = torch.randn(2, 40, 3, generator=generator)
functions = [getattr(similarity, name) for name in similarity.__all__ if name.islower() and name != "jackknife"]
for function in functions:
    itself = float(function is not similarity.angular_distance)
    assert (function(layers).diagonal() - itself).abs().max() < 1e-9, function
print(len(functions), *({name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))
try:
    similarity.LinearCKA
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_every_function_works_with_torch_alone() -> None:
    words = [sys.executable, "-W", "ignore::UserWarning", "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    functions, metrics = done.stdout.splitlines()
    assert functions == "12 layersim"
    assert metrics in ("lightning_utilities", "torchmetrics"), "the control: a metric is not to be had"
