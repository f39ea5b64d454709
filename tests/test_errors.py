import pytest

from lmtrain.errors import InputError, MissingPackage, NonFiniteOutput, did_you_mean, wrong_choice


@pytest.mark.parametrize(('error', 'base'), [(MissingPackage, ImportError), (NonFiniteOutput, FloatingPointError)])
def test_input_errors_keep_the_builtin_type(error, base):
    assert issubclass(error, InputError) and issubclass(error, base) and issubclass(error, ValueError)


@pytest.mark.parametrize(
    ('name', 'candidates', 'expected'),
    [
        ('trian', ['configs', 'train'], 'train'),
        ('swish', ['gelu', 'swiglu', 'relu'], 'swiglu'),
        ('config.model.wdth', ['config.model.width', 'config.data.width'], 'config.model.width'),
        ('config.seq_len', ['config.model.max_len', 'config.data.seq_len'], 'config.data.seq_len'),
    ],
)
def test_did_you_mean(name, candidates, expected):
    assert did_you_mean(name, candidates) == f', did you mean {expected!r}?'


@pytest.mark.parametrize('candidates', [[], ['gelu', 'relu']])
def test_no_suggestion_if_nothing_is_similar(candidates):
    assert did_you_mean('zzz', candidates) == ''


@pytest.mark.parametrize(
    ('value', 'choices', 'expected'),
    [
        ('lorra', {'full': 0, 'lora': 1}, "is none of full, lora, did you mean 'lora'?"),
        ('max', ('', 'mean'), "is none of '', mean"),
        (['lora'], ('full', 'zero'), 'is none of full, zero'),  # of a JSON file
    ],
)
def test_error_for_a_wrong_choice_names_all_of_them(value, choices, expected):
    error = wrong_choice('config.field', value, choices)
    assert isinstance(error, InputError) and str(error).startswith(f'config.field = {value!r} {expected}')
