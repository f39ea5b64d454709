"""streams text from a trained model; prompts from the command line or a file.

lmtrain generate --workdir=runs/quickstart --prompt='def'
lmtrain generate --workdir=runs/quickstart --prompts_file=prompts.txt --temperature=0
lmtrain generate --workdir=runs/chat --prompt='What is a primer?' --system='Answer briefly.'
lmtrain generate --base=DIR --prompt='Once upon a time'

A run on conversations is prompted with the chat template of its training: a
prompt is one user turn. Other models continue a prompt as it is. --template
selects another template: 'none' leaves prompts as they are, 'auto' uses the
tokenizer's own. A line of a .jsonl holds a prompt or messages.

Without flags, a run samples with the settings of its recipe (sample), and
--base with those of configs/base.py: 128 tokens, temperature 0.8.
"""

import itertools
import json
import pathlib
import sys
import time

from absl import flags

from launch import cli, model_flags, process_setup
from lmtrain.errors import InputError
from lmtrain.files import parse_json
from lmtrain.report import terminal
from lmtrain.runtime import progress

FLAGS = flags.FlagValues()
model_flags.define(FLAGS, base=True)
flags.DEFINE_multi_string(
    'prompt', [], 'text to continue; may be repeated; without one, a new document starts', flag_values=FLAGS
)
text = 'one prompt per line, or .jsonl with the field "prompt" or "messages"'
flags.DEFINE_string('prompts_file', None, text, flag_values=FLAGS)
model_flags.define_prompts(FLAGS, 'template')
flags.DEFINE_integer(
    'max_tokens', None, "tokens to generate; the recipe's sample.max_tokens by default", flag_values=FLAGS
)
flags.DEFINE_float('temperature', None, "0 takes the most likely token; the recipe's by default", flag_values=FLAGS)
flags.DEFINE_integer(
    'top_k', None, "draws from the k most likely tokens; 0 is all; the recipe's by default", flag_values=FLAGS
)
flags.DEFINE_float(
    'top_p', None, "draws from the most likely tokens of this mass; the recipe's by default", flag_values=FLAGS
)
flags.DEFINE_integer('seed', 0, 'the same seed gives the same text', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    prompts = list(values.prompt)
    if values.prompts_file:
        prompts += read_prompts(pathlib.Path(values.prompts_file))
    process_setup.configure()
    from lmtrain import api

    prompts = prompts or ['']
    model = model_flags.prompted(model_flags.model(values), values, 'template', prompts)
    chosen = {name: values[name].value for name in ('max_tokens', 'temperature', 'top_k', 'top_p')}
    show(model, prompts, values.system, api.sampling(model, **chosen) | {'seed': values.seed})


def read_prompts(path: pathlib.Path) -> list:
    """The prompts of a file, one per line; for .jsonl and .ndjson, `prompt_of` each line. Blank lines are skipped.

    Raises OSError, or InputError naming the line, if the file cannot be read or contains no prompt.
    """
    from lmtrain.data.text_files import text_lines

    prompts, rows = [], path.name.lower().endswith(('.jsonl', '.ndjson'))
    for place, line in text_lines(path):
        if line.strip():
            prompts.append(prompt_of(parse_json(line, place), place) if rows else line)
    if not prompts:
        raise InputError(
            f'{path} contains no prompt: write one per line, or .jsonl with the field "prompt" or "messages"'
        )
    return prompts


def prompt_of(row, place: str):
    """The text in the field 'prompt', or the messages in it or in 'messages', without final answers.

    Raises InputError naming the place if a row has neither or a message is malformed.
    """
    fields = row if isinstance(row, dict) else {}
    text, messages, tools = (fields.get(name) for name in ('prompt', 'messages', 'tools'))
    if messages is None and isinstance(text, str):
        return text
    messages = text if messages is None else messages
    if not isinstance(messages, list):
        expected = '{"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]}'
        raise InputError(f'{place}: expected {expected}, not {json.dumps(row)[:60]}')
    from lmtrain import api

    return api.as_prompt(place, messages, tools)


def show(model, prompts: list, system: str, settings: dict) -> None:
    """Prints every prompt with its continuation, in order; the first unfinished one is streamed.

    Of a conversation the last message is printed, and the answer on its own line.
    """
    from lmtrain import api
    from lmtrain.inference.prompts import encode, shown
    from lmtrain.training import samples

    begin, tokenizer = time.perf_counter(), model.tokenizer
    pieces = api.stream(model, prompts, system=system, **settings)
    dim, plain = cli.style('dim', 'plain')
    if model.template:
        heads = [f'{shown(prompt)}\n' for prompt in prompts]
    else:
        heads = [tokenizer.streamer()(encode(prompt, tokenizer)) for prompt in prompts]
    heads = [f'{dim}{clean(head)}{plain}' for head in heads]
    if len(prompts) > 1:
        rules = [f'── {number} of {len(prompts)} ' for number in range(1, len(prompts) + 1)]
        heads = [f'{dim}{rule:─<60}{plain}\n{head}' for rule, head in zip(rules, heads)]

    with progress.phase('computing the first token', brief=True):
        some = list(itertools.islice(pieces, 1))
    first = time.perf_counter()
    write(heads[0])
    waiting, tokens, reasons, current = [''] * len(prompts), [0] * len(prompts), [''] * len(prompts), 0
    for row, piece in itertools.chain(some, pieces):
        waiting[row] += clean(piece.text)
        tokens[row] += len(piece.ids)
        reasons[row] = piece.finish_reason
        while current < len(prompts):
            write(waiting[current])
            waiting[current] = ''
            if not reasons[current]:
                break
            current += 1
            write('\n' + heads[current] if current < len(prompts) else '\n')

    words = [f'{sum(tokens):,} tokens', f'the first after {first - begin:.2f} s']
    if later := sum(max(0, count - 1) for count in tokens):
        words.insert(1, f'{later / (time.perf_counter() - first):,.0f} tokens/s')
    model_flags.note(f'{", ".join(words)}\n{samples.ended(reasons, settings["max_tokens"])}')


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def clean(text: str) -> str:
    """For a terminal, the text without control characters; else the text itself."""
    return terminal.printable(text) if sys.stdout.isatty() else text
