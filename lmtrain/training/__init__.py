"""From a config to a trained model: resolve, build, run, and open what a run has left."""
