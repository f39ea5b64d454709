"""The chat template and the date with which a loaded model writes its prompts."""

from lmtrain.data.chat.template import Template
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.training import load

SOURCE = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def test_another_template_writes_the_date_of_the_training(tmp_path):
    (tmp_path / 'other.jinja').write_text(SOURCE, encoding='utf-8')
    trained = Template(SOURCE, 'trained', '2024-05-06')
    model = load.LoadedModel(None, None, Bytes(), {}, 0, [256], trained)
    other = load.with_chat_template(model, str(tmp_path / 'other.jinja'), False).template
    assert other.date == '2024-05-06' and other.name != 'trained'
    assert load.with_chat_template(model, None, False).template == trained
