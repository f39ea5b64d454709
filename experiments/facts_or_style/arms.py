"""The arms of facts_or_style: prompts, and methods that train."""

import concurrent.futures
import json
import multiprocessing
import pathlib
import statistics

import lmtrain
from experiments import cli
from experiments.facts_or_style import questions
from experiments.facts_or_style.questions import Fact

ALL = '.*/kernel'
# {method: (overrides, learning rates)}: the rates lie around the rule of thumb of each method.
METHODS = {
    'full': ({'adapt.method': 'full'}, (3e-4, 1e-3, 3e-3)),
    'last 2 layers': ({'adapt.method': 'layers', 'adapt.layers.last': 2}, (3e-4, 1e-3, 3e-3)),
    'lora': ({'adapt.method': 'lora', 'adapt.lora.rank': ((ALL, 8),)}, (3e-3, 1e-2, 3e-2)),
    'norms': ({'adapt.method': 'norms'}, (3e-3, 1e-2, 3e-2)),
    'prefix': ({'adapt.method': 'prefix', 'adapt.prefix.length': 10}, (1e-2, 3e-2, 1e-1)),
    'prompt': ({'adapt.method': 'prompt', 'adapt.prompt.length': 10}, (1e-2, 3e-2, 1e-1)),
}


class Names:
    """Disjoint sets of facts: `known` are taught as facts, the others only occur with their statement."""

    def __init__(self, options):
        sizes = {'known': options.facts, 'others': options.format_rows, 'selection': 32, 'test': options.test}
        drawn = iter(questions.facts(sum(sizes.values()), options.seed))
        for name, size in sizes.items():
            setattr(self, name, [next(drawn) for _ in range(size)])


# --- tests of a model


def facts_accuracy(model, wording: str, known: list[Fact], contexts: list[str] | None = None) -> float:
    """Share of facts whose pet has the highest likelihood among all pets."""
    contexts = contexts or [''] * len(known)
    rows = [
        {'prompt': context + wording.format(name=fact.name), 'pet': fact.pet}
        for context, fact in zip(contexts, known, strict=True)
    ]
    settings = {'template': '{prompt} {pet}', 'answer': 'pet', 'choices': list(questions.PETS)}
    return lmtrain.evaluate(model, rows=rows, chat_template='none', **settings)['accuracy']


def format_accuracy(model, asked: list[Fact], contexts: list[str] | None = None, constrained: bool = False) -> dict:
    """{'format', 'content'}: shares of the greedy answers; `constrained` writes all of the JSON but the pet itself."""
    begin = questions.in_json('').removesuffix('"}')
    contexts = contexts or [''] * len(asked)
    prompts = [context + questions.stated(fact) for context, fact in zip(contexts, asked, strict=True)]
    prompts = [f'{prompt} {begin}' if constrained else prompt for prompt in prompts]
    texts = [each.text for each in lmtrain.generate(model, prompts, max_tokens=24, temperature=0, chat_template='none')]
    if constrained:
        texts = [questions.in_json(text.partition('"')[0]) for text in texts]
    scores = [questions.score_json(text, fact) for text, fact in zip(texts, asked, strict=True)]
    return {name: statistics.mean(score[name] for score in scores) for name in ('format', 'content')}


def prompted(options, model, names: Names) -> list[dict]:
    """Arms that change the prompt only."""
    count, seed = options.context, options.seed
    facts = [questions.with_facts(fact, names.known, count, seed) for fact in names.known]
    shots = [questions.with_demonstrations(fact, names.others, count // 2, seed) for fact in names.test]
    arms = {
        'zero-shot': (None, None, False),
        f'{count} facts in the prompt': (facts, None, False),
        f'{count // 2} demonstrations': (None, shots, False),
        'constrained decoding': (None, None, True),
    }
    rows = []
    for name, (context, demonstrations, constrained) in arms.items():
        row = {'arm': name, 'taught': 'context', 'facts': None, 'format': None, 'content': None}
        if not demonstrations and not constrained:
            row['facts'] = facts_accuracy(model, questions.TEST, names.known, context)
        if not context:
            row |= format_accuracy(model, names.test, demonstrations, constrained)
        rows.append(row)
    return rows


# --- training


def trained(options, base: str, method: str, settings, taught: str, names: Names, folder: pathlib.Path) -> dict:
    """One method that was taught facts or the format: the rate is chosen on other wordings or other names.

    Args:
      settings: the entry of METHODS.
    """
    overrides, rates = settings
    rates = tuple(options.rate_factor * rate for rate in rates)
    rows = questions.fact_rows(names.known) if taught == 'facts' else questions.format_rows(names.others)
    folder.mkdir()
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    config = overrides | {
        'init.base': base,
        'task.train': (str(folder / 'rows.jsonl'),),
        'task.validation': (str(folder / 'rows.jsonl'),),  # not read: the wordings below decide
        'task.template': 'none',
        'task.pack': False,
        'data.test': 0.0,
        'data.seq_len': 96,
        'budget.steps': options.steps,
        'sweep.learning_rates': rates,
        'evaluate.every_steps': 10**9,
        'checkpoint.every_steps': 10**9,
        'log.tensorboard': False,
        'sample.prompts': (),
    }
    results = cli.train_here('instruct', folder / 'run', config)
    models = [lmtrain.load(folder / 'run', step='last', member=index) for index in range(len(rates))]
    if taught == 'facts':
        scores = [facts_accuracy(model, questions.SELECTION, names.known) for model in models]
    else:
        scores = [format_accuracy(model, names.selection)['content'] for model in models]
    best = max(range(len(rates)), key=scores.__getitem__)
    return {
        'arm': method,
        'taught': taught,
        'learning_rate': rates[best],
        'selection': {str(rate): score for rate, score in zip(rates, scores, strict=True)},
        'facts': facts_accuracy(models[best], questions.TEST, names.known),
        **format_accuracy(models[best], names.test),
        'trainable': results['cost']['trainable'] // len(rates),
        'cost': results['cost'],
    }


def experiment(options, folder: pathlib.Path) -> tuple[list[dict], str]:
    """(trials, the name of the base)."""
    if not options.base:
        settings = {'budget.hours': None, 'budget.steps': options.base_steps, 'sample.prompts': ()}
        cli.train_here('quickstart', folder / 'base', settings)
    base = options.base or str(folder / 'base')
    names = Names(options)
    pairs = [(method, taught) for method in options.methods.split(',') for taught in ('facts', 'format')]
    folders = [folder / f'{method.replace(" ", "-")}-{taught}' for method, taught in pairs]
    # Processes and not threads: a training handles the signals of its process.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(options.parallel, context) as pool:
        futures = [
            pool.submit(trained, options, base, method, METHODS[method], taught, names, place)
            for (method, taught), place in zip(pairs, folders, strict=True)
        ]
        trials = prompted(options, lmtrain.load(base), names)
        trials += [future.result() for future in futures]
    return trials, pathlib.Path(base).name if options.base else f'quickstart, {options.base_steps} steps'
