"""`python -m alexnet_dist.report`."""

import sys

from alexnet_dist.report.page import main

sys.exit(main())
