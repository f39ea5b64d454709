def template_of(template, tokenizer, root):
    raise NotImplementedError


def conversations(rows, text, label, tokenizer, writing, long):
    raise NotImplementedError
