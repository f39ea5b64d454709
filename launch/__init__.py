"""Entry points: one file a verb, and the two shell scripts a newcomer types. They know no machine learning."""
