"""A model in use: sampling, prompting, likelihoods of choices."""
