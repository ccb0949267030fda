"""`python -m protein_lm` is `protein-lm`."""

import sys

from protein_lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
