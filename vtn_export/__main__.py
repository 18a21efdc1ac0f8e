"""`python -m vtn_export` is `vtn-export`."""

from vtn_export.cli.main import main

main()
