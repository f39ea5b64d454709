import ml_collections
import pytest

from lmtrain.data.chat.load import open_template, trained_template, with_template
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.errors import InputError

MARKS = {'bos_token': '<s>', 'eos_token': '</s>'}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OTHER = '{{ messages[0].content }}'


@pytest.fixture
def tokenizer(tmp_path, bpe):
    return bpe(tmp_path / 'model', tokenizer_config=MARKS | {'chat_template': CHATML})


def test_with_template_stores_the_template(tokenizer, tmp_path):
    for number, plain in enumerate((tokenizer, Bytes())):
        before = plain.hash  # cached now; the copy must not keep it
        changed = with_template(plain, Template(OTHER, ''))
        changed.save(tmp_path / str(number))
        again = open_tokenizer(tmp_path / str(number), False)
        assert open_template('auto', again, '').source == OTHER
        assert again.hash == changed.hash != before and again.specials == plain.specials


def test_template_by_name_or_file(tokenizer, tmp_path, bpe):
    (tmp_path / 'mine.jinja').write_text("{{ 3 }}{{ strftime_now('%Y') }}")
    mine = open_template('mine.jinja', tokenizer, str(tmp_path), '2031-02-03')
    assert (mine.source, mine.date) == ("{{ 3 }}{{ strftime_now('%Y') }}", '2031-02-03')
    assert open_template('plain', tokenizer, '', '2031-02-03') == Template(PLAIN, 'the plain template')
    assert open_template('none', tokenizer, '') is None
    with pytest.raises(FileNotFoundError, match='config.task.template: no file .*chatml; it is .auto., .plain., or'):
        open_template('chatml', tokenizer, str(tmp_path))
    several = [{'name': 'rag', 'template': 'a'}, {'name': 'tool_use', 'template': 'b'}]
    named = bpe(tmp_path / 'named', tokenizer_config=MARKS | {'chat_template': several})
    assert open_template('tool_use', named, '').source == 'b'
    with pytest.raises(ValueError, match="none of them called 'default': name one of 'rag', 'tool_use'"):
        open_template('auto', named, '')
    with pytest.raises(FileNotFoundError, match="'auto', 'plain', 'rag', 'tool_use', or"):
        open_template('tools', named, '')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_file_without_byte_order_mark_and_carriage_returns(tmp_path, encoding):
    (tmp_path / 'mine.jinja').write_bytes('é\r\n{{ 3 }}\rb\n'.encode(encoding))
    assert open_template('mine.jinja', Bytes(), str(tmp_path)).source == 'é\n{{ 3 }}\nb\n'


def test_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / 'mine.jinja').write_bytes(b'a\n\xe9')
    with pytest.raises(InputError, match=r'mine.jinja:2: not UTF-8 at byte 2 .*iconv'):
        open_template('mine.jinja', Bytes(), str(tmp_path))


def test_run_without_template(tokenizer):
    task = ml_collections.ConfigDict({'name': 'chat', 'template': 'none', 'date': ''})
    assert trained_template(task, tokenizer) is None
    task.update(template='mine.jinja', date='2031-02-03')
    assert trained_template(task, tokenizer) == open_template('auto', tokenizer, '')
    dated = with_template(tokenizer, Template("{{ strftime_now('%Y') }}", ''))
    assert trained_template(task, dated).date == '2031-02-03'
