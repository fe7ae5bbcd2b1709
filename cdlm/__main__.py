"""`python -m cdlm`, as launchers of processes start it."""

from cdlm.cli import main

if __name__ == "__main__":
    main()
