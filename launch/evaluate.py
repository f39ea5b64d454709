"""loss of a run on a split or of a model on a text, score on a task file, or score of a prompted model on rows.

lmtrain evaluate --workdir=runs/quickstart --split=test
lmtrain evaluate --base=DIR --source='notes/*.md'
lmtrain evaluate --base=DIR --task=copa.toml --outputs=copa.jsonl
lmtrain evaluate --base=DIR --rows=copa.jsonl --template='{query} {gold}' --answer=gold --choices=choices
lmtrain evaluate --workdir=runs/lora --rows=test.csv --template='{text} => {category}' --answer=category \\
                 --choices=category --demonstrations=train.csv --shots=4
lmtrain evaluate --workdir=runs/chat --rows=test.jsonl --max_tokens=100
lmtrain evaluate --workdir=runs/intents --rows=test.csv

A model with a head for classes, numbers, tags or spans predicts --rows with the
head, unless --template is set: --text names the input fields and --answer the
field of the label, if they differ from those of the training.

A run on conversations is prompted with the chat template of its training: a row
is one user turn, after the turns of the demonstrations; --chat_template selects
another template. Without --template and --answer, rows are conversations, whose
last answer is compared.

--config.A.B=VALUE changes how a split or a source is read and computed, such
as data.document, data.batch_size, evaluate.max_batches and model.dtype.
"""

import json
import textwrap

from absl import flags

from launch import model_flags, output_files, process_setup, recipe
from lmtrain.errors import InputError

FLAGS = flags.FlagValues()
model_flags.define(FLAGS, base=True)
flags.DEFINE_enum('split', 'validation', ['train', 'validation', 'test'], 'validation by default', flag_values=FLAGS)
text = 'a text file, a folder or a glob, whose bits per byte are measured; as data.source'
flags.DEFINE_string('source', None, text, flag_values=FLAGS)
flags.DEFINE_multi_string('override', [], 'another value of the config; `lmtrain show` lists them', flag_values=FLAGS)
text = 'a task file (TOML): rows, prompt and scoring; see docs/data.md'
flags.DEFINE_string('task', None, text, flag_values=FLAGS)
text = 'with --task, a file to write: one JSON line for each row'
flags.DEFINE_string('outputs', None, text, flag_values=FLAGS)
flags.DEFINE_multi_string('rows', [], 'files of rows to answer: jsonl, csv, tsv; may be repeated', flag_values=FLAGS)
flags.DEFINE_string(
    'template', None, 'text of a row with {field} for its fields; the field of --answer is last', flag_values=FLAGS
)
flags.DEFINE_string('answer', None, 'field of the answer, or of the index of the right choice', flag_values=FLAGS)
text = 'of a model with a head: fields that are read, comma-separated; those of the training by default'
flags.DEFINE_list('text', [], text, flag_values=FLAGS)
text = 'of a model with a head: the classes in the order of their ids, if the model does not name them'
flags.DEFINE_list('labels', [], text, flag_values=FLAGS)
text = 'field of the choices, or the choices separated by commas; without it the answer is generated'
flags.DEFINE_string('choices', '', text, flag_values=FLAGS)
model_flags.define_prompts(FLAGS, 'chat_template')
text = "demonstrations before each row; 'max' is as many as fit into the context"
flags.DEFINE_string('shots', '0', text, flag_values=FLAGS)
text = """how they are selected: 'random', 'fixed' (one random draw for all rows), 'balanced', 'first', 'bm25' (words),
'nearest' (the model's embeddings)"""
flags.DEFINE_string('select', 'random', text, flag_values=FLAGS)
text = 'text before the demonstrations; with a chat template the system message'
flags.DEFINE_string('instruction', '', text, flag_values=FLAGS)
text = 'also divide the probabilities of choices by those after content-free inputs (N/A)'
flags.DEFINE_bool('calibrated', False, text, flag_values=FLAGS)
flags.DEFINE_multi_string('demonstrations', [], 'files of rows to draw them from; --rows by default', flag_values=FLAGS)
flags.DEFINE_integer('limit', 0, 'number of rows to score; 0 is all', lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer('seed', 0, 'seed of the demonstrations', lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer('max_tokens', 16, 'tokens of a generated answer', flag_values=FLAGS)
flags.DEFINE_integer('batch_size', 32, 'prompts per batch', lower_bound=1, flag_values=FLAGS)
PROMPT_FLAGS = 'rows template answer choices system chat_template shots select instruction calibrated'.split()
PROMPT_FLAGS += 'demonstrations limit seed max_tokens split text labels'.split()
OF_HEADS = 'rows answer text labels limit'.split()  # those of PROMPT_FLAGS that a model with a head reads
flags.DEFINE_string('results', None, 'a JSON file to write: the figures, and each answer of --rows', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    if values.outputs and not values.task:
        raise InputError('--outputs without --task: the rows of --rows are among --results')
    chosen = [name for name in ('task', 'rows', 'source') if values[name].value]
    if len(chosen) > 1:
        raise InputError(f'--{chosen[0]} and --{chosen[1]}: one thing is evaluated at a time')
    if values.override and chosen in (['task'], ['rows']):
        raise InputError(f'--config... with --{chosen[0]}: a split or a --source is computed by the config')
    if values.source:
        on_source(values)
        return
    if values.task:
        on_task(values)
        return
    if values.rows:
        prompted(values)
        return
    if values.base:
        raise InputError(
            '--base without --source, --rows or --task: a split belongs to a run (--workdir); a text is --source=FILE'
        )
    output_files.check(values.results, 'results')
    process_setup.configure()
    workdir, step, member = model_flags.from_flags(values)
    from lmtrain import api
    from lmtrain.report import terminal
    from lmtrain.tasks import TASKS
    from lmtrain.training import workdir as folders

    sums = api.evaluate(workdir, values.split, step=step, member=member, overrides=overrides(values))
    unit = TASKS[folders.read_config(workdir)['task']['name']].unit
    nouns = {'targets': unit, 'bytes': 'byte'}
    counts = ', '.join(terminal.counted(round(sums[name]), noun) for name, noun in nouns.items() if name in sums)
    show(f'{values.split}: {terminal.evaluation_line(sums, {})}  ({counts})')
    for name, own in sums.get('sources', {}).items():
        show(f'{name}: {terminal.evaluation_line(own, {})}')
    write_results(values, {'results': {'split': values.split, 'step': step, 'member': member} | sums})


def overrides(values: flags.FlagValues) -> dict:
    """{'section.field': value} of the flags --config.A.B. Raises InputError naming a field that does not exist."""
    from configs import base

    config, changed = base.get_config(), {}
    for text in values.override:
        key, _, value = text.partition('=')
        key = recipe.override(config, key, value)
        changed[key] = dict(recipe.leaves(config))[key]
    return changed


def show(line: str) -> None:
    """Prints a line in 80 columns."""
    print(textwrap.fill(line, 80, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False))


def write_results(values: flags.FlagValues, figures: dict) -> None:
    """Writes the file of --results if it is set."""
    output_files.write(values.results, output_files.as_json(figures))


def on_source(values: flags.FlagValues) -> None:
    """Measures the bits per byte of the text of --source."""
    for name in PROMPT_FLAGS:
        if values[name].present:
            raise InputError(f'--{name} with --source: a text has neither prompts nor splits')
    output_files.check(values.results, 'results')
    process_setup.configure()
    from lmtrain import api
    from lmtrain.report import terminal

    changed = overrides(values)
    model = model_flags.model(values)
    with model_flags.flags_in_errors('data.source'):
        results = api.evaluate(model, source=values.source, overrides=changed, batch_size=values.batch_size)
    counts = ', '.join(terminal.counted(results[f'{noun}s'], noun) for noun in ('document', 'token', 'byte'))
    show(f'{values.source}: {terminal.evaluation_line(results, {})}  ({counts})')
    write_results(values, {'results': {'source': values.source} | results})


def on_task(values: flags.FlagValues) -> None:
    """Scores the model on the task of --task."""
    for name in PROMPT_FLAGS:
        if values[name].present:
            raise InputError(f'--{name} with --task: {values.task} holds the rows and the settings of the prompts')
    output_files.check(values.results, 'results')
    output_files.check(values.outputs, 'outputs')
    process_setup.configure()
    from lmtrain import api
    from lmtrain.evaluation import task_file, task_run

    task = task_file.read(values.task)  # its errors, before the model is loaded
    results = api.evaluate(model_flags.model(values), task=task, batch_size=values.batch_size)
    rows = results.pop('answers')
    show(task_run.line(results))
    output_files.write(values.outputs, ((json.dumps(row, ensure_ascii=False) + '\n').encode() for row in rows))
    write_results(values, {'results': results})


def prompted(values: flags.FlagValues) -> None:
    """Scores the rows of --rows."""
    output_files.check(values.results, 'results')
    shots = values.shots.replace('max', '-1')
    if not shots.removeprefix('-').isdecimal():
        raise InputError(f"--shots={values.shots} is neither a number nor 'max'")
    process_setup.configure()
    from lmtrain import api
    from lmtrain.api.rows import task_of_head
    from lmtrain.data.chat import conversation
    from lmtrain.inference import calibration, prompting, questions

    notes: list[str] = []
    every, demonstrations = (api.as_rows(values[name].value, notes) for name in ('rows', 'demonstrations'))
    demonstrations = demonstrations or (every if int(shots) else [])
    for line in dict.fromkeys(notes):  # demonstrations may be in the same file
        model_flags.note(line)
    rows = every[: values.limit or None]
    if not values.template and (trial := model_flags.trial(values, [*sorted({*PROMPT_FLAGS} - {*OF_HEADS}), 'labels'])):
        by_trial(values, trial, rows)
        return
    model = model_flags.model(values)
    if not values.template and task_of_head(model):
        by_head(values, model, rows)
        return
    check_prompted(values)
    try:
        chats = [] if values.template else [conversation.read(row, (), '')[1] for row in rows]
    except ValueError as error:
        raise InputError(f'without --template and --answer, rows are conversations: {error}') from None
    choices = values.choices.split(',') if ',' in values.choices else values.choices or ()
    if choices and choices == values.answer:
        # Also those of rows beyond --limit.
        choices = questions.distinct_answers(demonstrations or every, values.answer)
    if values.limit:  # the rows beyond it also tell whether digits are indices
        form = prompting.PromptSettings(values.template or '', values.answer or '', choices)
        every, demonstrations = questions.answers_as_texts(every, form, demonstrations)
        rows = every[: len(rows)]
    prompts = [dialogue if dialogue.messages else dialogue.texts[0] for dialogue in chats]
    results = api.evaluate(
        model_flags.prompted(model, values, 'chat_template', prompts),
        rows=rows,
        template=values.template or '',
        answer=values.answer or '',
        choices=choices,
        shots=int(shots),
        select=values.select,
        instruction=values.instruction,
        calibrated=calibration.CONTENT_FREE if values.calibrated else (),
        demonstrations=demonstrations,
        seed=values.seed,
        max_tokens=values.max_tokens,
        batch_size=values.batch_size,
        system=values.system,
    )
    answers = results.pop('answers')
    show(prompting.line(results))
    write_results(values, {'results': results, 'rows': answers})


def check_prompted(values: flags.FlagValues) -> None:
    """Raises InputError if a flag is missing for a model that is prompted, or is one of a head."""
    for name, other in (('template', 'answer'), ('answer', 'template')):
        if values[other].value and not values[name].value:
            raise InputError(f'--{other} requires --{name}, which is missing: see `lmtrain evaluate --help`')
    for name in ('text', 'labels'):
        if values[name].value:
            what = 'with --template' if values.template else 'and a model without a head'
            raise InputError(f'--{name} {what}: it is of a model with a head for classes, numbers, tags or spans')


def by_head(values: flags.FlagValues, model, rows: list) -> None:
    """Scores the rows of --rows by the head of the model."""
    for name in PROMPT_FLAGS:
        if name not in OF_HEADS and values[name].present:
            raise InputError(f'--{name} without --template: the model has a head, which reads no prompt')
    from lmtrain import api
    from lmtrain.evaluation import heads

    settings = {'text': values.text, 'answer': values.answer or '', 'labels': values.labels}
    results = api.evaluate(model, rows=rows, batch_size=values.batch_size, **settings)
    answers = results.pop('answers')
    show(f'{", ".join(values.rows)}: {heads.line(results)}')
    write_results(values, {'results': results, 'rows': answers})


def by_trial(values: flags.FlagValues, answers, rows: list) -> None:
    """Scores the rows of --rows by what a trial of `lmtrain compare` chose, `new_rows.Answers`."""
    from lmtrain.compare import new_rows
    from lmtrain.evaluation import heads

    results, lines = new_rows.score(answers, rows, values.text, values.answer or '', values.batch_size)
    show(f'{", ".join(values.rows)}: {heads.line(results)}')
    write_results(values, {'results': results, 'rows': lines})
