"""nanoGPT's CPU setting: a 0.8M-parameter model of Shakespeare's characters, 2,000 steps.

Command: lmtrain train --config=configs/shakespeare.py --config.data.root=DIR --workdir=runs/shakespeare
         DIR holds tinyshakespeare/input.txt, from https://raw.githubusercontent.com/karpathy/char-rnn/master/data
Cost:    2 minutes on two cores
Score:   loss of the last tenth, in nats per character: experiments/shakespeare has it (nanoGPT's README: 1.88)
Source:  README.md and train.py of https://github.com/karpathy/nanoGPT at 3adf61e
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.source = 'tinyshakespeare/input.txt'
    config.data.split = 'tail'
    config.data.validation = 0.1
    config.data.test = 0.0
    config.data.tokenizer = 'chars'
    config.data.vocab_size = 66  # 65 characters and the end of the text
    config.data.seq_len = 64
    config.data.batch_size = 12
    config.data.isolate = False
    config.model.num_layers = 4
    config.model.width = 128
    config.model.num_heads = 4
    config.model.positions = 'learned'
    config.model.norm = 'layernorm'
    config.model.activation = 'gelu_exact'
    config.budget.steps = 2000
    config.optimizer.b2 = 0.99
    config.schedule.warmup = 0.05
    config.evaluate.every_steps = (config.budget.get_ref('steps') + 7) // 8
    config.checkpoint.every_steps = (config.budget.get_ref('steps') + 3) // 4
    config.sample.prompts = ('\n', 'ROMEO:')
    config.sample.max_tokens = 300
    return config
