"""A language model that learns with MSA, beside its dense twin: see the package of the same name and docs/training.md.

python examples/train_lm.py all                     # everything, over all GPUs; its jobs one by one:
python examples/train_lm.py prepare                 # tokenizer and tokens, once
python examples/train_lm.py train --arm dense       # then msa-pt, msa-cpt, no-detach, no-warmup
python examples/train_lm.py report                  # curves and table
"""

import sys

from train_lm.command import main

if __name__ == "__main__":
    sys.exit(main())
