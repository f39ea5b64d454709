"""How many small plausible faults do the tests detect that mirror the faulty file? See run.py."""

from experiments.mutants.run import main

main()
