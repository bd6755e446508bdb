"""python -m tests.reliability [KIND …] [--count N] [--seed S] [--page FILE]"""

import argparse
import logging
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.reliability.tally import PAGE, write_section

KINDS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\nINJECTED = " in path.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, help="faults of each kind; default: as many as `make test-long` does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    lost = 0
    for kind in options.kinds or KINDS:
        program, begun = import_module(f"tests.reliability.{kind}"), time.monotonic()
        for each in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(each).setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix=f"layersim-{kind}-") as folder:
            tally = program.run(options.count or program.COUNT, options.seed, Path(folder))
        seconds = time.monotonic() - begun
        write_section(options.page, kind, program.INJECTED, tally, seed=options.seed, seconds=seconds)
        print(f"{kind}: {tally.injected} injected, {len(tally.lost)} lost, {seconds:.0f} s", flush=True)
        lost += len(tally.lost)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
