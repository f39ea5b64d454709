"""What do context and each trained method teach: new facts, a new output format, or both?

python -m experiments.facts_or_style [--base=DIR]      # without it, a base is pretrained on the text of Python first
"""

import argparse
import json
import math
import pathlib
import statistics
import tempfile

import lmtrain
from experiments import cli, record
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


def flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', default='', help='a run or Hugging Face directory of a decoder')
    parser.add_argument('--base_steps', type=int, default=600, help='of the pretraining without --base')
    parser.add_argument('--facts', type=int, default=48)
    parser.add_argument('--format_rows', type=int, default=48)
    parser.add_argument('--test', type=int, default=64, help='test prompts of the format')
    parser.add_argument('--steps', type=int, default=150, help='of each training')
    parser.add_argument('--context', type=int, default=8, help='facts, or demonstrations, in a prompt')
    parser.add_argument('--methods', default=','.join(METHODS))
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(words)


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
    begin, end = questions.in_json('\0').split('\\u0000')
    contexts = contexts or [''] * len(asked)
    prompts = [context + questions.stated(fact) for context, fact in zip(contexts, asked, strict=True)]
    prompts = [f'{prompt} {begin}' if constrained else prompt for prompt in prompts]
    texts = [each.text for each in lmtrain.generate(model, prompts, max_tokens=24, temperature=0, chat_template='none')]
    if constrained:
        texts = [begin + text.partition('"')[0] + end for text in texts]
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


def trained(options, base: str, method: str, taught: str, names: Names, folder: pathlib.Path) -> dict:
    """One method that was taught facts or the format: the rate is chosen on other wordings or other names."""
    overrides, rates = METHODS[method]
    rows = questions.fact_rows(names.known) if taught == 'facts' else questions.format_rows(names.others)
    folder.mkdir()
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    settings = overrides | {
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
    results = cli.train_here('instruct', folder / 'run', settings)
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
    trials = prompted(options, lmtrain.load(base), names)
    for method in options.methods.split(','):
        for taught in ('facts', 'format'):
            place = folder / f'{method.replace(" ", "-")}-{taught}'
            trials.append(trained(options, base, method, taught, names, place))
    return trials, pathlib.Path(base).name if options.base else f'quickstart, {options.base_steps} steps'


def interval(share: float, count: int) -> str:
    """A share in per cent with its standard error."""
    return f'{100 * share:.0f} ± {100 * math.sqrt(share * (1 - share) / count):.0f} %'


def figures(trials: list[dict], options) -> list[dict]:
    rows = []
    for trial in trials:
        parts = []
        if trial['facts'] is not None:
            parts.append(f'facts {interval(trial["facts"], options.facts)}')
        if trial['format'] is not None:
            parts.append(f'format {interval(trial["format"], options.test)}')
            parts.append(f'format and content {interval(trial["content"], options.test)}')
        what = trial['arm'] if trial['taught'] == 'context' else f'{trial["arm"]}, trained on {trial["taught"]}'
        if 'trainable' in trial:
            what += f' ({trial["trainable"]:,} parameters, rate {trial["learning_rate"]:g})'
        rows.append(record.row(what, ', '.join(parts)))
    return rows


def main() -> None:
    options = flags()
    options.base = str(pathlib.Path(options.base).resolve()) if options.base else ''
    with tempfile.TemporaryDirectory() as folder:
        trials, base = experiment(options, pathlib.Path(folder))
    record.write(
        'facts_or_style',
        command=f'python -m experiments.facts_or_style{" --base=DIR" if options.base else ""}',
        figures=figures(trials, options),
        trials=trials,
        base=base,
        not_shown=[
            'several seeds, and a base of more than a few million parameters.',
            f'facts by chance: {100 / len(questions.PETS):.1f} % ({len(questions.PETS)} pets).',
        ],
    )


if __name__ == '__main__':
    main()
