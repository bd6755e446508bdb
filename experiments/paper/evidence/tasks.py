"""What is trained for RESULTS.md: tasks small enough for two CPU cores, and the objectives laid over each."""

from dataclasses import dataclass
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2]
OBJECTIVES = EXPERIMENTS / "paper" / "objectives"

_TRIPLE = ("standard", "aligned", "separate_heads")
_LANGUAGE = ("standard", "aligned", "alternating")
_NEIGHBOURS = ("uniform", "cosine", "distilled", "mixed", "sampled", "progressive")


@dataclass(frozen=True)
class Task:
    """One row of the evidence: a recipe, its data, and what is done with each trained model."""

    name: str
    title: str
    recipe: str
    """Below experiments/."""
    objectives: tuple[str, ...]
    """Of the claims."""
    neighbours: tuple[str, ...] = ()
    """Of the comparison of objectives, besides."""
    folder: str | None = None
    """Where its data lie inside the folder of `--data`; None: they come with packages."""
    data: tuple[str, ...] = ()
    """Options of the data when read from that folder."""
    own_split: bool = False
    """Whether a seed draws another split too."""
    tokens: bool = False
    """Whether it predicts tokens: perplexity in place of accuracy."""
    images: bool = False
    probe: str | None = None
    """Data of another task, for linear probes."""

    def fit(self, objective: str, seed: int, data: Path | None) -> list[str]:
        """The arguments of `layersim fit`."""
        args = [f"--config={EXPERIMENTS / self.recipe}", f"--config={OBJECTIVES / objective}.yaml"]
        args += [f"--experiment={self.experiment(objective)}", f"--seed_everything={seed}"]
        args += [f"--data.seed={seed}"] * self.own_split
        if self.folder is not None and data is not None:
            args += [f"--data.path={data / self.folder}", *self.data]
        return args

    def experiment(self, objective: str) -> str:
        """The folder of its runs."""
        return f"paper/{self.name}/{objective}"


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            "Digits, ViT",
            "vision/digits/aligned.yaml",
            _TRIPLE,
            (*_NEIGHBOURS, "alternating"),
            own_split=True,
            images=True,
        ),
        Task(
            "cifar10_small",
            "CIFAR-10, ViT",
            "paper/cifar10_small.yaml",
            _TRIPLE,
            folder="cifar10",
            data=("--data.image_column=image",),
            images=True,
        ),
        Task(
            "sst2_small",
            "SST-2, MiniLM",
            "paper/glue/sst2_small.yaml",
            _TRIPLE,
            _NEIGHBOURS,
            folder="sst2",
            data=("--data.name=null",),
            probe="Docstrings",
        ),
        Task(
            "docstrings",
            "Docstrings, MiniLM",
            "text/docstrings/aligned.yaml",
            _TRIPLE,
            _NEIGHBOURS,
            own_split=True,
        ),
        Task(
            "stdlib_code",
            "Standard library, GPT",
            "text/stdlib_code/aligned.yaml",
            _LANGUAGE,
            _NEIGHBOURS,
            own_split=True,
            tokens=True,
        ),
        Task(
            "wikitext2_small",
            "WikiText-2, GPT",
            "paper/wikitext2_small.yaml",
            _LANGUAGE,
            _NEIGHBOURS,
            folder="wikitext2",
            data=("--data.name=null",),
            tokens=True,
        ),
    )
}
