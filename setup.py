"""What pyproject.toml cannot say: a wheel holds the recipes of `experiments/` as `layersim/recipes/`."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    """Builds the packages, and lays the recipes beside them; a checkout reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for recipe in Path("experiments").rglob("*.yaml"):
            there = Path(self.build_lib, "layersim", "recipes", recipe.relative_to("experiments"))
            self.mkpath(str(there.parent))
            self.copy_file(str(recipe), str(there))


setup(cmdclass={"build_py": WithRecipes})
