"""`python -m alexnet_dist.report`: the report's command."""

import sys

from alexnet_dist.report import main

sys.exit(main())
