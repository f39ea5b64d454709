"""Inference: sampling with a key-value cache, prompting, and log-likelihoods of choices."""
