"""`python -m rocm_patch`."""

from rocm_patch.cli import main

main()
