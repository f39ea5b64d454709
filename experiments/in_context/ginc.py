"""A language model of lmtrain on documents of a mixture of hidden Markov models, compared with their exact law."""

import pathlib

import jax
import numpy as np

import lmtrain
from configs import base
from experiments.in_context.hidden_markov import Mixture
from lmtrain.training.load import LoadedModel

MIXTURE = {'concepts': 8, 'entities': 4, 'properties': 6, 'symbols': 16}
LENGTH = 4  # symbols of an example, its answer included
EXAMPLES = (0, 1, 2, 4, 8)  # k


def config_of(
    folder: pathlib.Path, *, length: int, num_layers: int, width: int, batch_size: int, steps: int, seed: int
):
    """The ordinary language-model recipe: one document a line, one symbol a token, one document a row."""
    config = base.get_config()
    config.seed = seed
    config.data.source, config.data.cache = str(folder / 'documents.txt'), str(folder / 'cache')
    config.data.document, config.data.tokenizer, config.data.vocab_size = 'line', 'whitespace', 64
    config.data.validation, config.data.test = 0.02, 0.0
    config.data.seq_len, config.data.batch_size = length + 1, batch_size  # the end of the text is a target too
    config.model.update({'num_layers': num_layers, 'width': width, 'num_heads': 4})
    config.budget.steps = steps
    config.optimizer.name, config.optimizer.learning_rate = 'muon', 6e-3  # many short steps, as in the quickstart
    config.evaluate.every_steps = config.checkpoint.every_steps = max(1, steps // 4)
    config.log.every_steps, config.log.tensorboard = max(1, steps // 40), False
    config.sample.prompts = ()
    return config


def write_documents(mixture: Mixture, folder: pathlib.Path, documents: int, length: int, seed: int) -> None:
    """folder/documents.txt, one document of `length` symbols a line."""
    rng = np.random.default_rng([seed, 1])
    rows = mixture.sample(rng, rng.integers(0, len(mixture.properties_CSS), documents), length)
    symbols = np.array(mixture.symbols)
    lines = (' '.join(symbols[row]) for row in rows)
    (folder / 'documents.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def predict(run: LoadedModel, mixture: Mixture, symbols_BT: np.ndarray, batch: int = 64) -> np.ndarray:
    """log p(symbol t | symbols before t) of the trained model, [B, T + 1, V] in the mixture's order of symbols."""
    ids_V = np.array([run.tokenizer.encode(symbol)[0] for symbol in mixture.symbols])
    begin = np.full((len(symbols_BT), 1), run.tokenizer.begin_id)
    tokens = np.concatenate([begin, ids_V[symbols_BT]], axis=1).astype(np.int32)
    apply = jax.jit(
        lambda tokens: jax.nn.log_softmax(run.model.apply({'params': run.params}, {'tokens': tokens})['logits'])
    )
    parts = [np.asarray(apply(tokens[i : i + batch])) for i in range(0, len(tokens), batch)]
    return np.concatenate(parts)[..., ids_V]


def on_documents(run: LoadedModel, mixture: Mixture, documents: int, length: int, seed: int) -> dict[str, list[float]]:
    """Nats of each position of new documents: cross-entropy of model and exact law, and KL(exact || model)."""
    rng = np.random.default_rng([seed, 2])
    rows = mixture.sample(rng, rng.integers(0, len(mixture.properties_CSS), documents), length)
    exact, model = mixture.predict(rows)[:, :-1], predict(run, mixture, rows)[:, :-1]
    at = rows[..., None]
    kl = np.where(exact > 0, exact * (np.log(np.maximum(exact, 1e-300)) - model), 0.0).sum(-1)
    nats = {
        'exact': -np.log(np.take_along_axis(exact, at, -1))[..., 0],
        'model': -np.take_along_axis(model, at, -1)[..., 0],
        'kl': kl,
    }
    means = {name: values.mean(0).tolist() for name, values in nats.items()}
    return means | {'stderr of model - exact': float((nats['model'] - nats['exact']).mean(1).std() / documents**0.5)}


def on_prompts(run: LoadedModel, mixture: Mixture, prompts: int, seed: int) -> list[dict]:
    """For each number of examples: accuracy of the model and of the exact law, and how often both answer the same."""
    rows = []
    for examples in EXAMPLES:
        symbols, answers = mixture.prompts(np.random.default_rng([seed, 3, examples]), prompts, examples, LENGTH)
        exact = mixture.predict(symbols)[:, -1].argmax(-1)
        model = predict(run, mixture, symbols)[:, -1].argmax(-1)
        shares = {'model': model == answers, 'exact': exact == answers, 'agreement': model == exact}
        rows.append({'examples': examples, 'prompts': prompts} | {name: float(x.mean()) for name, x in shares.items()})
    return rows


def trial(
    folder: pathlib.Path, *, documents: int, length: int, test: int, num_layers: int, width: int, batch_size: int,
    steps: int, seed: int,
) -> dict:  # fmt: skip
    """Trains on `documents` of `length` symbols and measures on `test` new documents and prompts."""
    mixture = Mixture.draw(seed, **MIXTURE)
    write_documents(mixture, folder, documents, length, seed)
    sizes = {'length': length, 'num_layers': num_layers, 'width': width, 'batch_size': batch_size, 'steps': steps}
    results = lmtrain.train(config_of(folder, **sizes, seed=seed), folder / 'run')
    run = lmtrain.load(folder / 'run', step='last')
    return {
        'part': 'ginc',
        'seed': seed,
        'documents': documents,
        **sizes,
        **MIXTURE,
        'positions': on_documents(run, mixture, test, length, seed),
        'prompts': on_prompts(run, mixture, test, seed),
        'cost': results['cost'],
    }
