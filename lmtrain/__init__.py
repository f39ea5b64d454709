"""lmtrain: every way of giving a language model a behaviour, one config away, on one backbone and one evaluator."""
