"""`python -m karpa_tf` is `karpa-tf`."""

import sys

from karpa_tf.cli import main

sys.exit(main())
