"""Let the tests import `benchmarks` from the checkout, which is not installed.

The checkout goes to the end of the path: an installed crnn, with its compiled extension, must win over bare sources.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
