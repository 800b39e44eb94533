"""``python -m clinstack``."""

from clinstack.cli import main

main()
