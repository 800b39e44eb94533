"""Bases, adapter methods and the Stack that joins them."""

import logging

# PEFT imports bitsandbytes wherever it is installed, which then warns of a kernel that clinstack does not use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
