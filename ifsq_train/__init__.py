"""What is learned, and the loop that learns it."""

import os

# Activations of many megabytes in huge pages: on CPUs, page faults were half of the time of
# encoding sixteen images of 256 px. torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
