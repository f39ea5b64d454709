"""Does the evaluator give the scores of lm-eval with transformers, and how much faster is it?

    bash experiments/evaluator/run.sh --root DIR --smollm2 DIR [--quick]

Both answer the same requests in one process, float32 on the CPU: choices of COPA and ARC Easy, perplexity of
WikiText-2, and greedy generations, by stories260K and SmolLM2-135M-Instruct. Seconds are of interleaved pairs without
compilation.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import tempfile
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = os.environ['HF_DATASETS_OFFLINE'] = '1'

from lm_eval.models.huggingface import HFLM

import lmtrain
from experiments import record
from experiments.evaluator import requests, task_files
from lmtrain.data.rows import Row
from lmtrain.evaluation.lm_eval import LMTrain
from lmtrain.inference import prompting

BATCH = 32
FULL = {'copa': 100, 'arc': 200, 'articles': 8, 'generations': 32, 'speed': 64, 'shots': 6, 'choices': 8, 'pairs': 3}
QUICK = {'copa': 8, 'arc': 8, 'articles': 1, 'generations': 4, 'speed': 8, 'shots': 4, 'choices': 2, 'pairs': 1}
FILES = {'copa': '{query}', 'arc_easy': 'Question: {query}\nAnswer:'}  # of fewshot/: what precedes a choice
NOT_SHOWN = [
    'other devices than a CPU, and other dtypes than float32',
    "lm-eval's chat templates: the adapter has none",
]


def row(what: str, figure: str, target: str, reached: bool) -> dict:
    """A row of the table of figures; it is printed."""
    figure = {'what': what, 'figure': figure, 'target': target, 'reached': reached}
    print(json.dumps(figure), flush=True)
    return figure


def sides(directory: str) -> dict:
    """{'lmtrain': our model, 'lm-eval': theirs}, which read the same tokens: neither adds a begin token by itself."""
    theirs = HFLM(directory, device='cpu', dtype='float32', batch_size=BATCH, add_bos_token=False)
    return {'lmtrain': LMTrain(lmtrain.load(directory), BATCH, add_bos_token=False), 'lm-eval': theirs}


def parity(name: str, models: dict, root: pathlib.Path, sizes: dict, articles: int) -> tuple[list[dict], list[dict]]:
    """(trials, figures) of one model."""
    trials, figures = [], []
    for task, template in FILES.items():
        rows = requests.multiple_choice(root / 'fewshot' / f'{task}.jsonl', template, sizes[task.split('_')[0]])
        asked = requests.log_likelihoods(rows)
        answers = [model.loglikelihood(asked, disable_tqdm=True) for model in models.values()]
        trial = {'model': name, 'task': task} | requests.compared(rows, *answers)
        trials.append(trial)
        accuracy = f'accuracy {trial["accuracy"][0]:.3f} and {trial["accuracy"][1]:.3f}'
        figure = f'{trial["same_predictions"]}; {accuracy}; {trial["largest_difference"]:.0e} nats'
        reached = trial['same_predictions'] == len(rows) and trial['same_greedy'] == 1
        figures.append(row(f'{name}, {task}: equal predictions of {len(rows)} rows', figure, 'all', reached))

    texts = requests.texts(root / 'corpora' / 'wikitext-2' / 'valid.txt', articles)
    sums = [model.loglikelihood_rolling(texts, disable_tqdm=True) for model in models.values()]
    size = sum(len(text.args[0].encode()) for text in texts) * math.log(2)
    bits = [-sum(each) / size for each in sums]
    trials.append({'model': name, 'task': 'wikitext-2', 'articles': len(texts), 'bits_per_byte': bits})
    what = f'{name}, wikitext-2, {len(texts)} articles: bits per byte, difference'
    gap = abs(bits[0] - bits[1])
    figures.append(row(what, f'{gap:.0e} (of {bits[0]:.4f})', 'at most 1e-04', gap <= 1e-4))

    asked = requests.generations(rows[: sizes['generations']], 24)
    written = [model.generate_until(asked, disable_tqdm=True) for model in models.values()]
    same = sum(a.strip() == b.strip() for a, b in zip(*written, strict=True))
    trials.append({'model': name, 'task': 'generations', 'rows': len(asked), 'same': same})
    figures.append(row(f'{name}: equal generations of {len(asked)} prompts', f'{same}', 'all', same == len(asked)))
    return trials, figures


def task_runner(name: str, directory: str, theirs, root: pathlib.Path, sizes: dict, articles: int) -> tuple[dict, dict]:
    """(trial, figure): the scores of `lmtrain evaluate --task` on the same rows, and those of lm-eval."""
    loaded, files = lmtrain.load(directory), {}
    for task, template in FILES.items():
        rows = requests.multiple_choice(root / 'fewshot' / f'{task}.jsonl', template, sizes[task.split('_')[0]])
        files[task] = task_files.accepted(rows, loaded)
    texts = requests.texts(root / 'corpora' / 'wikitext-2' / 'valid.txt', articles)
    with tempfile.TemporaryDirectory() as folder:
        scores = task_files.compared(pathlib.Path(folder), loaded, theirs, files, texts, BATCH)
    gap = abs(scores['bits_per_byte'][0] - scores['bits_per_byte'][1])
    reached = gap <= 1e-4 and all(scores[task][0] == scores[task][1] for task in files)
    parts = [f'{task} {scores[task][0]:.3f} and {scores[task][1]:.3f} of {len(files[task])} rows' for task in files]
    what = f'{name}, `evaluate --task` and lm-eval: accuracy; bits per byte of wikitext-2, difference'
    figure = row(what, f'{", ".join(parts)}; {gap:.0e}', 'equal; at most 1e-04', reached)
    return {'model': name, 'task': 'evaluate --task', 'scores': scores}, figure


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def speed(task: str, models: dict, asked: list, pairs: int) -> dict:
    """Seconds of both sides for the same requests, one after the other, after a warm-up of both."""
    for model in models.values():
        model.loglikelihood(asked, disable_tqdm=True)
    trial = {'task': task, 'requests': len(asked), 'seconds': {name: [] for name in models}}
    for _ in range(pairs):
        for name, model in models.items():
            trial['seconds'][name].append(seconds(model.loglikelihood, asked, True))
    trial['ratio'] = statistics.median(theirs / ours for ours, theirs in zip(*trial['seconds'].values(), strict=True))
    return trial


def many_choices(directory: str, root: pathlib.Path, rows: int, pairs: int) -> dict:
    """Seconds for all 77 choices of banking77 and for the right one alone, 8 random demonstrations before each row."""
    loaded = lmtrain.load(directory)
    folder = root / 'tasks' / 'banking77'
    train, test = (requests.banking77(folder / f'{split}.csv') for split in ('train', 'test'))

    def with_fields(part):
        fields = ({'text': r.context, 'intent': r.choices[r.gold], 'all': r.choices} for r in part)
        return [Row(f'row {number}', each | {'one': [each['intent']]}) for number, each in enumerate(fields)]

    few, asked = with_fields(train[:400]), with_fields(test[::100][:rows])
    ask = {'template': '{text} {intent}', 'answer': 'intent', 'shots': 8, 'batch_size': BATCH}
    names = {77: 'all', 1: 'one'}
    settings = {count: prompting.PromptSettings(choices=name, **ask) for count, name in names.items()}
    questions = {count: prompting.ask(asked, each, few) for count, each in settings.items()}
    drawn = {count: list(prompting.select(own, pool, 8, 'random', seed=0)) for count, (own, pool) in questions.items()}

    def score(count):
        own = questions[count][0]
        return prompting.score_choices(
            loaded.model, loaded.params, loaded.tokenizer, own, drawn[count], settings[count]
        )

    computed = {count: score(count).computed_tokens for count in names}
    trial = {'task': 'banking77', 'rows': len(asked), 'tokens': computed, 'seconds': {count: [] for count in names}}
    for _ in range(pairs):
        for count in names:
            trial['seconds'][count].append(seconds(score, count))
    trial['ratio'] = statistics.median(a / b for a, b in zip(*trial['seconds'].values(), strict=True))
    return trial


def timings(models: dict, directory: str, root: pathlib.Path, sizes: dict) -> tuple[list[dict], list[dict]]:
    """(trials, figures) of SmolLM2."""
    rows = requests.multiple_choice(
        root / 'fewshot' / 'arc_easy.jsonl', 'Question: {query}\nAnswer:', sizes['speed'] + 16
    )
    shots = requests.log_likelihoods(requests.with_shots(rows, 16)[: sizes['shots']])
    trials = [
        speed('arc_easy', models, requests.log_likelihoods(rows[: sizes['speed']]), sizes['pairs']),
        speed('arc_easy, 16 shared demonstrations', models, shots, sizes['pairs']),
        many_choices(directory, root, sizes['choices'], sizes['pairs']),
    ]
    figures = []
    for trial, least in zip(trials, (1.5, 4.0), strict=False):
        ours, theirs = (statistics.median(each) for each in trial['seconds'].values())
        figure = f'{trial["ratio"]:.1f} ({ours:.1f} s against {theirs:.1f} s)'
        what = f'{trial["task"]}, {trial["requests"]} requests: seconds of lm-eval over ours'
        figures.append(row(what, figure, f'at least {least}', trial['ratio'] >= least))
    last = trials[-1]
    many, one = (statistics.median(each) for each in last['seconds'].values())
    what = f'banking77, 8 demonstrations, {last["rows"]} rows: seconds of 77 choices over 1 choice'
    figures.append(row(what, f'{last["ratio"]:.1f} ({many:.1f} s, {one:.1f} s)', 'at most 3', last['ratio'] <= 3))
    return trials, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--root', required=True, type=pathlib.Path, help='folder of models/, fewshot/, corpora/, tasks/'
    )
    parser.add_argument('--smollm2', help='Hugging Face directory of SmolLM2-135M-Instruct; without it, not shown')
    parser.add_argument('--quick', action='store_true', help='few rows; nothing is written')
    arguments = parser.parse_args()
    sizes, root = QUICK if arguments.quick else FULL, arguments.root
    directories = {'stories260K': str(root / 'models' / 'stories260K' / 'hf')}
    directories |= {'SmolLM2': arguments.smollm2} if arguments.smollm2 else {}
    trials, figures, not_shown = [], [], list(NOT_SHOWN)
    for name, directory in directories.items():
        models, articles = sides(directory), 4 * sizes['articles']
        if name == 'SmolLM2':  # much larger
            sizes, articles = sizes | {'arc': sizes['arc'] // 2}, max(1, sizes['articles'] // 4)
        more, new = parity(name, models, root, sizes, articles)
        trial, figure = task_runner(name, directory, models['lm-eval'], root, sizes, articles)
        trials, figures = [*trials, *more, trial], [*figures, *new, figure]
    if arguments.smollm2:
        more, new = timings(models, arguments.smollm2, root, sizes)
        trials, figures = trials + more, figures + new
    else:
        not_shown.append('SmolLM2: its directory was not given')
    if not arguments.quick:
        record.write(
            'evaluator',
            command='bash experiments/evaluator/run.sh --root=DIR --smollm2=DIR',
            figures=figures,
            trials=trials,
            not_shown=not_shown,
        )


if __name__ == '__main__':
    main()
