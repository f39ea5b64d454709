"""`lmtrain compare`: prompting and training on the same rows, with intervals and costs."""
