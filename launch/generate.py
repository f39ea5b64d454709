"""text from a trained run, as it is made; prompts from the command line or a file.

lmtrain generate --workdir=runs/quickstart --prompt='def '
lmtrain generate --workdir=runs/quickstart --prompts_file=prompts.txt --temperature=0
lmtrain generate --base=DIR --prompt='Once upon a time'
"""

import json
import pathlib
import sys
import time

from absl import flags

from configs import base
from launch import cli, folder, machine

FLAGS = flags.FlagValues()
folder.define(FLAGS, base=True)
flags.DEFINE_multi_string('prompt', [], 'what to continue; may be repeated; none starts a document', flag_values=FLAGS)
flags.DEFINE_string('prompts_file', None, 'one prompt a line, or .jsonl with the field "prompt"', flag_values=FLAGS)
flags.DEFINE_integer('max_tokens', None, "tokens to make; by default the recipe's sample.max_tokens", flag_values=FLAGS)
flags.DEFINE_float('temperature', None, "0 takes the likeliest token; by default the recipe's", flag_values=FLAGS)
flags.DEFINE_integer('top_k', None, "draws from the k likeliest; 0 is all; by default the recipe's", flag_values=FLAGS)
flags.DEFINE_float('top_p', None, "draws from the likeliest of this mass; by default the recipe's", flag_values=FLAGS)
flags.DEFINE_integer('seed', 0, 'the same seed gives the same text', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    prompts = list(values.prompt)
    if values.prompts_file:
        prompts += read_prompts(pathlib.Path(values.prompts_file))
    machine.prepare()
    run = folder.model(values)
    usual = (run.config or base.get_config()).sample
    settings = {'seed': values.seed}
    for name in ('max_tokens', 'temperature', 'top_k', 'top_p'):
        settings[name] = usual[name] if values[name].value is None else values[name].value
    show(run, prompts or [''], settings)


def read_prompts(path: pathlib.Path) -> list[str]:
    """The prompts of a file, one a line; of a .jsonl the field 'prompt'. Blank lines are none.

    Raises OSError, or ValueError naming the line, where the file cannot be read or holds no prompt.
    """
    try:
        lines = path.read_bytes().decode().split('\n')
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b'\n') + 1
        raise ValueError(f'{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8') from error
    prompts = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix('\r')
        if not line.strip():
            continue
        if path.suffix != '.jsonl':
            prompts.append(line)
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {number}: not JSON ({error.msg} at column {error.colno})') from error
        if not isinstance(row, dict) or not isinstance(row.get('prompt'), str):
            raise ValueError(f'{path}, line {number}: wants {{"prompt": "text"}}, not {line[:60]}')
        prompts.append(row['prompt'])
    if not prompts:
        raise ValueError(f'{path} holds no prompt; it wants one a line, or .jsonl with the field "prompt"')
    return prompts


def show(run, prompts: list[str], settings: dict) -> None:
    """Prints every prompt with its continuation, in order; the first that is not done appears as it is made."""
    from lmtrain import sample, samples

    begin, tokenizer = time.perf_counter(), run.tokenizer
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    settings |= {'end_ids': run.end_ids, 'vocab_size': tokenizer.vocab_size}
    pieces = sample.stream(run.model, run.params, ids, **settings)
    dim, plain = cli.style('dim', 'plain')
    feeds = [tokenizer.streamer() for _ in prompts]
    heads = [f'{dim}{clean(feed(prompt))}{plain}' for feed, prompt in zip(feeds, ids)]
    if len(prompts) > 1:
        rules = [f'── {number} of {len(prompts)} ' for number in range(1, len(prompts) + 1)]
        heads = [f'{dim}{rule:─<60}{plain}\n{head}' for rule, head in zip(rules, heads)]

    write(heads[0])
    waiting, tokens, reasons, shown, first = [''] * len(prompts), [0] * len(prompts), [''] * len(prompts), 0, None
    for row, gained, reasons[row] in pieces:
        first = first or time.perf_counter()
        waiting[row] += clean(feeds[row](gained))
        tokens[row] += len(gained)
        while shown < len(prompts):
            write(waiting[shown])
            waiting[shown] = ''
            if not reasons[shown]:
                break
            shown += 1
            write('\n' + heads[shown] if shown < len(prompts) else '\n')

    words = [f'{sum(tokens):,} tokens', f'the first after {first - begin:.2f} s']
    if later := sum(max(0, count - 1) for count in tokens):
        words.insert(1, f'{later / (time.perf_counter() - first):,.0f} tokens/s')
    dim, plain = cli.style('dim', 'plain', stream=sys.stderr)
    print(f'{dim}{", ".join(words)}\n{samples.ended(reasons, settings["max_tokens"])}{plain}', file=sys.stderr)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def clean(text: str) -> str:
    """On a terminal, text without the characters that would steer it; elsewhere the text itself."""
    return text.translate(STEERING) if sys.stdout.isatty() else text


STEERING = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, '\n\t')}, '\ufffd')
