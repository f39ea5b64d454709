"""How many small plausible faults do the tests detect: see run.py."""

from experiments.mutants.run import main

main()
