"""One folder per question: `python -m experiments.NAME` writes its results.json. lmtrain never imports this package."""
