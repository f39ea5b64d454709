"""Entry points: one file per verb, launchers, and shell scripts. They contain no machine learning."""
