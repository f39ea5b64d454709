"""classes, numbers, tags, answers or rewards for the rows of a file.

lmtrain predict --workdir=runs/intents --rows=new.csv --to=predicted.csv
lmtrain predict --base=DIR --rows=new.jsonl --text=sentence --to=predicted.jsonl
lmtrain predict --workdir=runs/which/trials/bm25/n64-seed1 --rows=new.csv --to=predicted.csv

A trial of `lmtrain compare`, prompted or trained, predicts with what it selected:
its prompt with the demonstrations, or its model. Other models need a head for
the task: a run of classify, regress, tag, span or reward, or such a Hugging Face
directory (a head with one output predicts a number for a text).
Every row of --rows has one row in --to, in the same order and with its columns,
followed by further columns:

classes: prediction, probability, probabilities (csv: one column for each class)

numbers: prediction

rewards: prediction. A row of a reward model is a prompt with its completion, in
any format of conversations; --text names their fields if they have other names

tags: prediction and probability (lists, one entry per word), entities

answers: prediction, begin and end (characters of the context), probability,
no_answer (the probability that the context has no answer)

Rows need no label; every line of a .txt is one row. A row without text has an
empty prediction. Rows longer than the context of the model are truncated, and a
line reports their number.
"""

from absl import flags

from launch import model_flags, output_files, process_setup
from lmtrain.errors import InputError
from lmtrain.report import terminal

FLAGS = flags.FlagValues()
model_flags.define(FLAGS, base=True)
flags.DEFINE_string('rows', None, 'the rows: jsonl, csv, tsv, parquet, txt, ...', flag_values=FLAGS)
flags.DEFINE_string('to', None, 'the file to write: .jsonl or .csv', flag_values=FLAGS)
text = "fields that are read, comma-separated; those of the training by default, else 'text'"
flags.DEFINE_list('text', [], text, flag_values=FLAGS)
text = 'the classes in the order of their ids, if the model does not name them'
flags.DEFINE_list('labels', [], text, flag_values=FLAGS)
flags.DEFINE_integer('batch_size', 32, 'rows computed together', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    from lmtrain.data import row_files

    for name, example in (('rows', 'new.csv'), ('to', 'predicted.csv')):
        if not values[name].value:
            raise InputError(f'--{name} is missing, such as --{name}={example}')
    if values.batch_size < 1:
        raise InputError(f'--batch_size={values.batch_size} must be at least 1')
    row_files.check_ending(values.to)
    output_files.check(values.to, 'to')
    notes: list[str] = []
    rows = read(values, notes)  # its errors, before the model is loaded
    process_setup.configure()
    trial = model_flags.trial(values, ['labels'])
    columns, cut, handled = by_trial(values, rows, notes, trial) if trial else by_model(values, rows, notes)
    fields = [row.fields for row in rows]
    names = row_files.free_names(list(dict.fromkeys(name for row in columns for name in row)), fields)
    added = [{names[name]: row.get(name) for name in names} for row in columns]
    if empty := sum(row['prediction'] is None for row in columns):
        model_flags.note(f'{empty:,} without text: their prediction is empty')
    if cut:
        model_flags.note(f'{cut:,} longer than the context of the model: {handled}')
    for name, chosen in names.items():
        if name != chosen:
            model_flags.note(f'the rows have a column {name!r}: the new one is {chosen!r}')
    lines = row_files.encoded([row | new for row, new in zip(fields, added, strict=True)], values.to)
    output_files.write(values.to, lines)


def read(values: flags.FlagValues, notes: list[str]) -> list:
    """The rows of --rows. A line of a .txt that is not blank is a row, and its field 'text' the one that is read."""
    from lmtrain.data.rows import read_rows

    if not values.rows.lower().endswith('.txt'):
        return read_rows(values.rows, '', notes=notes)
    values.text = values.text or ['text']
    lines = read_rows((values.rows, ''), '')
    return [row._replace(fields={'text': row.fields['text']}) for row in lines]


def by_model(values: flags.FlagValues, rows: list, notes: list[str]) -> tuple[list[dict], int, str]:
    """(the columns that the head of a model adds to each row, how many rows are too long, how these are handled)."""
    from lmtrain.api import rows as of_rows

    model = model_flags.model(values)
    text, task = of_rows.text_fields(model, values.text), of_rows.predicted_task(model)
    announce(task.name, rows, text, notes)
    columns, cut = of_rows.predict_rows(model, rows, text, values.labels, values.batch_size)
    return columns, cut, 'cut' if task.has_classes or task.pools_rows else 'read in windows'


def by_trial(values: flags.FlagValues, rows: list, notes: list[str], answers) -> tuple[list[dict], int, str]:
    """The same by what a trial of `lmtrain compare` chose, `new_rows.Answers`."""
    from lmtrain.compare import new_rows

    text, trial = tuple(values.text) or answers.text, answers.trial
    size = f', {terminal.counted(trial.size, "labelled row")}, seed {trial.seed}' if trial.size else ''
    announce(f'{trial.arm.name}{size}', rows, text, notes)
    return *new_rows.predict(answers, rows, text, values.batch_size), 'cut'


def announce(title: str, rows: list, text: tuple[str, ...], notes: list[str]) -> None:
    """Prints what predicts how many rows, and the notes of reading them."""
    fields = f', read from {", ".join(map(repr, text))}' if text else ''
    for note in (*notes, f'{title}: {terminal.counted(len(rows), "row")}{fields}'):
        model_flags.note(note)
