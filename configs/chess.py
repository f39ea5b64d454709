"""Pretrains a transformer of 1.3M parameters on chess games in PGN files; every move is a token.

Command: lmtrain train --config=configs/chess.py --config.data.root=DIR --workdir=runs/chess
         DIR holds chess/*.pgn, for instance a player's games from https://lichess.org/games/export/NAME
Cost:    a minute on two cores
Score:   perplexity of a move: not measured yet
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = 'chess/*.pgn'
    config.data.validation = 0.1
    config.data.test = 0.1
    config.data.tokenizer = 'whitespace'
    config.data.vocab_size = 2048  # at least the different moves of the files
    config.data.seq_len = 256
    config.data.batch_size = 8
    config.model.num_layers = 4
    config.model.width = 128
    config.model.num_heads = 4
    config.model.dropout = 0.1
    config.budget.steps = 600
    config.optimizer.learning_rate = 2e-3
    config.schedule.warmup = 0.1
    config.evaluate.every_steps = (config.budget.get_ref('steps') + 5) // 6
    config.checkpoint.every_steps = (config.budget.get_ref('steps') + 1) // 2
    config.sample.prompts = ('e4', 'd4 Nf6 c4')
    config.sample.max_tokens = 60
    return config
