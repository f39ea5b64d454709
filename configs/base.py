"""Every knob lmtrain has, with its unit, in the order of the main path. A recipe says only what differs from this.

Each section is the keyword arguments of one constructor, named beside its heading. A number that follows from another
is a field reference, so an override on the command line (`--config.a.b=...`) carries through to what depends on it.
(`get_oneway_ref`, because what is set through a plain `get_ref` would change the field it refers to as well.)
"""

import warnings

import ml_collections
from ml_collections import config_dict

# Former names of fields -> their names. Recipes, overrides and the folders of older runs may still have them.
RENAMED = {'verify_every': 'sdc_check_every', 'corrupt': 'mask_rate', 'learns': 'trainable'}


class Section(ml_collections.ConfigDict):
    """A ConfigDict that also takes a field under its former name, with a warning that gives the new one.

    >>> config = get_config()
    >>> with warnings.catch_warnings(record=True) as notes:
    ...     config.data.corrupt = 0.15
    >>> config.data.mask_rate, str(notes[0].message)
    (0.15, "config field 'corrupt' is now called 'mask_rate'")
    """

    def __getitem__(self, key):
        return super().__getitem__(self._current(key))

    def __setitem__(self, key, value):
        super().__setitem__(self._current(key), value)

    def _current(self, key):
        if key not in RENAMED or key in self or RENAMED[key] not in self:
            return key
        warnings.warn(f'config field {key!r} is now called {RENAMED[key]!r}', FutureWarning, stacklevel=4)
        return RENAMED[key]


def get_config():
    config = Section()
    config.seed = 0  # of the parameters, the order of the data and dropout

    # Data: lmtrain.data.prepare(**config.data)
    config.data = Section()
    config.data.source = 'python'  # 'python' (embedded) | 'tfds:NAME' | file, folder or glob of text or rows of text
    config.data.mix = ()  # further sources, weighted against the first one's 1.0: (('more/*.txt', 0.25),)
    config.data.root = ''  # where relative paths of sources start; '' is the current directory
    config.data.cache = ''  # where tokenised text is kept; '' is $XDG_CACHE_HOME/lmtrain or ~/.cache/lmtrain
    config.data.text_field = 'text'  # the column of jsonl, parquet and TFDS rows that holds the document
    config.data.document = 'file'  # in text files: 'file' (one document each) | 'line' | 'paragraph' (at blank lines)
    config.data.split = 'auto'  # 'document' (whole, by hash) | 'tail' (of the text) | 'auto' (whole, or tails of few)
    config.data.validation = 0.05  # fraction of the text
    config.data.test = 0.05  # fraction of the text
    config.data.tokenizer = 'bpe'  # 'bytes' | 'chars' | 'whitespace' | 'bpe' (learnt) | 'base' (init.base's) | a file
    config.data.vocab_size = 4096  # entries that 'bpe' learns, special tokens included; unused by the others
    config.data.seq_len = 256  # tokens a row
    config.data.batch_size = 32  # rows a step, over all devices and micro-batches
    config.data.isolate = True  # attention does not cross documents packed into one row
    config.data.mask_rate = 0.0  # share of tokens hidden for masked language modelling; 0 is causal
    config.data.whole_word = False  # hide whole words at once

    # Task: 'text' is language modelling; the others read rows: lmtrain.data.prepare_task(config.data, **config.task)
    config.task = ml_collections.ConfigDict()
    config.task.name = 'text'  # 'text' | 'chat' | 'classify' | 'regress' | 'tag' | 'span'
    config.task.train = ()  # files of rows (jsonl, json, csv, tsv, parquet, conll), each a path or (path, label)
    config.task.validation = ()  # () takes data.validation of the training rows
    config.task.test = ()  # () takes data.test of them
    config.task.text = ()  # fields that are read; 'chat': () recognises four formats, one without label: conversation
    config.task.label = ''  # field of the class, number, tags, answers; the completion where it is 'chat'
    config.task.labels = ()  # classes by number; () is those of the training rows, as a base's head has them, or sorted
    config.task.shots = 0  # training rows kept of each class; 0 is all
    config.task.buckets = 4  # lengths that batches come in at most, one compiled program each
    config.task.pack = False  # several conversations in a row, isolated ('chat' alone)
    config.task.too_long = 'error'  # rows beyond data.seq_len: 'error' | 'cut' | 'drop'
    config.task.template = 'auto'  # 'chat': 'auto' (tokenizer's, or 'plain') | 'plain' | 'none' | a name | a Jinja file
    config.task.date = ''  # that a template with strftime_now writes, 'YYYY-MM-DD'; '' is today, kept when resumed

    # Start: lmtrain.training.init_from.open_base(**config.init without frozen_dtype); with a base, the model
    # section is the base's except for dropout, dtype, remat, unroll and attention
    config.init = ml_collections.ConfigDict()
    config.init.base = ''  # folder of a run or a Hugging Face directory; '' draws parameters anew
    config.init.adapter = ''  # PEFT directory whose leaves are joined to the base's
    config.init.ignore = ()  # unknown fields of the base's config.json or adapter_config.json that are skipped
    config.init.frozen_dtype = 'float32'  # of the base's leaves that do not learn: 'float32' | 'bfloat16'

    # Model: lmtrain.models.Transformer(**config.model)
    config.model = ml_collections.ConfigDict()
    config.model.vocab_size = config.data.get_oneway_ref('vocab_size')  # embedding rows; at least the tokenizer's size
    config.model.max_len = config.data.get_oneway_ref('seq_len')  # tokens of context; rows of learned positions
    config.model.num_layers = 4
    config.model.width = 256  # D
    config.model.num_heads = 4  # H
    config.model.num_kv_heads = config.model.get_oneway_ref('num_heads')  # fewer: grouped-query attention
    config.model.head_dim = config.model.get_ref('width') // config.model.get_ref('num_heads')  # K
    config.model.mlp_dim = 4 * config.model.get_ref('width')  # F
    config.model.positions = 'rotary'  # 'rotary' | 'learned' | 'sinusoidal' | 'none'
    config.model.rope_theta = 10_000.0
    config.model.norm = 'rmsnorm'  # 'rmsnorm' | 'layernorm' | 'rmsnorm1p' (times 1 + scale)
    config.model.norm_eps = 1e-5
    config.model.norm_place = (
        'pre'  # 'pre' | 'post' (BERT) | 'branch' (after each, OLMo 2) | 'sandwich' (both, Gemma 2)
    )
    config.model.embed_norm = False  # a norm after the embeddings (BERT, crammed BERT)
    config.model.activation = 'swiglu'  # 'swiglu' | 'geglu' | 'gelu' (tanh form) | 'gelu_exact' | 'relu' | 'relu2'
    config.model.bias = False  # in every projection and norm
    config.model.tied = True  # the head is the embedding, transposed
    config.model.causal = True  # False: a bidirectional encoder
    config.model.mlm_head = False  # BERT's dense, activation, norm and bias before the tied head
    config.model.qk_norm = False  # RMSNorm of queries and keys, per head
    config.model.logit_softcap = 0.0  # cap * tanh(logits / cap); 0 is off
    config.model.attention_softcap = 0.0  # the same on attention scores; 0 is off
    config.model.window = 0  # keys a query sees, itself included; 0 is all
    config.model.dropout = 0.0  # of embeddings, attention outputs and feed-forward outputs
    config.model.dtype = 'float32'  # of activations and matrix products; parameters are float32
    config.model.remat = 'none'  # kept for backward: 'none' (all) | 'dots' (matrix products) | 'full' (layer inputs)
    config.model.unroll = config.model.get_oneway_ref('num_layers')  # layers a scan iteration holds; 1 compiles fastest
    config.model.attention = 'auto'  # 'auto' (the devices' kernel where it takes the rows) | 'xla' | 'cudnn' | 'splash'
    # What single families add (lmtrain/models/<family>.py)
    config.model.family = ''  # Hugging Face's model_type, under which the model is exported; '' is none
    config.model.biased = ()  # of 'query', 'key', 'value', 'output', 'mlp', 'norm': have a bias where bias=False
    config.model.parallel = False  # attention and feed-forward read the same input (GPT-NeoX)
    config.model.qk_norm_over = 'head'  # 'head' | 'projection' (all heads at once, OLMo 2)
    config.model.embed_scale = 1.0  # factor of the embeddings; Gemma's is sqrt(width)
    config.model.attention_scale = 0.0  # factor of the scores; 0 is 1/sqrt(head_dim)
    config.model.rotary_dim = 0  # dimensions of a head that are turned; 0 is all
    config.model.rope_scaling = ()  # (('rope_type', 'llama3'), ('factor', 8.0), ...): lmtrain.models.rotary.SCALINGS
    config.model.global_layers = ()  # layers, from 0 on, that see all where the others see a window
    config.model.local_rope_theta = 0.0  # of the layers that see a window; 0 is rope_theta
    config.model.first_norm = True  # the first layer has a norm before its attention (ModernBERT's has none)
    config.model.token_types = 0  # rows of BERT's table of sentence types
    config.model.position_offset = 0  # of learned positions (RoBERTa)
    config.model.head = 'lm'  # of the checkpoint: 'lm' | 'classify' | 'tag' | 'span' | 'none'
    config.model.num_labels = 0  # its outputs, where it is none of 'lm', 'none'
    config.model.head_pool = 'first'  # what 'classify' reads: 'first' | 'last' | 'mean'
    config.model.head_activation = ''  # of the dense layer before it; '' is none
    config.model.head_bias = True

    # Adaptation: lmtrain.adapt.method(config.adapt.method, model, params, **config.adapt[method]); the head of a task
    # (task_head/..., or heads/<task> unless objective.pool is auto) learns with any method
    config.trainable = ''  # regex of the paths that learn, the others are frozen; '' is what the method says
    config.adapt = ml_collections.ConfigDict()
    config.adapt.method = 'full'  # 'full', 'layers', 'bitfit', 'norms', 'lora', 'ia3', 'prompt', 'prefix', 'head'
    config.adapt.cut = ()  # layers in each segment layers_0, layers_1, ... for adapters of some layers; () is one stack
    config.adapt.dropout = 0.0  # of what enters a low-rank path
    config.adapt.layers = Section()
    config.adapt.layers.last = 0  # how many of the last layers learn; or
    config.adapt.layers.trainable = ''  # a regex over paths with the layer's number: layers/11/mlp/up/kernel
    config.adapt.lora = ml_collections.ConfigDict()
    config.adapt.lora.rank = (('.*/attention/(query|value)/kernel', 8),)  # first match wins; no match, no LoRA
    config.adapt.lora.alpha = (('.*', 16.0),)  # the scale is alpha / rank
    config.adapt.lora.rslora = False  # alpha / sqrt(rank)
    config.adapt.lora.dora = False  # learns the lengths of the kernel's columns apart from their directions
    config.adapt.prompt = ml_collections.ConfigDict()
    config.adapt.prompt.length = 20  # P embeddings ahead of every row
    config.adapt.prompt.init = 'vocab'  # 'random' | 'vocab' (rows of the embedding) | 'text'
    config.adapt.prompt.text = ''  # of 'text'
    config.adapt.prompt.hidden = 0  # width of the network that makes them (P-tuning), folded on export; 0 is none
    config.adapt.prefix = ml_collections.ConfigDict()
    config.adapt.prefix.length = 20  # P keys and values ahead of every row, in every layer
    config.adapt.prefix.stddev = 0.02
    config.adapt.prefix.hidden = 0  # width of the network that makes them, folded on export; 0 is none

    # Objective: a loss of the task, lmtrain/tasks/<task>.py
    config.objective = ml_collections.ConfigDict()
    config.objective.name = ''  # another loss on the columns of the task, of those in its file; '' is the first of them
    config.objective.z_loss = 0.0  # weight of log(Z)^2 (PaLM, section 5); 'text' and 'chat'
    # The head of a task, unless the base has one. 'auto': that of transformers' class of the family (BERT's pooler, a
    # decoder's last token); 'first' | 'last' | 'mean' (of all tokens): an added projection, which is read there
    config.objective.pool = 'auto'  # of a new head: 'auto' (as transformers' class) | 'first' | 'last' | 'mean'

    # Budget: exactly one is set, and the schedule ends on it; one from the command line replaces the recipe's
    config.budget = ml_collections.ConfigDict()
    config.budget.steps = config_dict.placeholder(int)
    config.budget.tokens = config_dict.placeholder(float)
    config.budget.flops = config_dict.placeholder(float)
    config.budget.hours = config_dict.placeholder(float)  # wall clock; such a run is not repeatable to the bit

    # Optimizer: lmtrain.optimizer.optimizer(**config.optimizer)
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = 'adamw'  # 'adamw' | 'muon' | 'lion' | 'adafactor' | 'sgd'
    config.optimizer.learning_rate = 1e-3  # at the peak
    config.optimizer.learning_rates = ()  # ((path regex, factor), ...), first match wins, the rest 1.0
    config.optimizer.weight_decay = 0.1  # times the learning rate
    config.optimizer.decayed = '.*/(kernel|embedding|lora_[ab])'  # paths that decay: matrices only
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.clip = 1.0  # global norm; 0 is off
    config.optimizer.accumulate = 1  # micro-batches a step

    # Schedule: lmtrain.optimizer.schedule(**config.schedule), a function of the share of the budget that is spent
    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = 'cosine'  # 'cosine' | 'linear' | 'constant' | 'wsd' (warmup, stable, decay)
    config.schedule.warmup = 0.02  # share of the budget
    config.schedule.start = 0.0  # learning rate at the beginning of warmup, over the peak
    config.schedule.decay = 0.2  # 'wsd' alone: the last share of the budget, falling linearly
    config.schedule.final = 0.1  # learning rate at the end, over the peak

    # Sweep: training.sweep.members(**config.sweep), runs on one base that train together as one program. The lists run
    # side by side, each with one entry a member, or one for all, or none (then all have what the run would have)
    config.sweep = ml_collections.ConfigDict()
    config.sweep.seeds = ()  # each in place of config.seed: of what learns, of dropout and of the order of the data
    config.sweep.learning_rates = ()  # each in place of config.optimizer.learning_rate
    config.sweep.orders = ()  # seeds of the order of the data alone; (0,) gives all members the same batches

    # Mesh: lmtrain.parallel.sharding.mesh(**config.mesh); the product is the number of devices, -1 fills
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.mesh.sequence = 1

    # Evaluation: lmtrain.training.evaluate
    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.every_steps = 500  # and at the end
    config.evaluate.max_batches = 0  # of the validation split, a fixed random sample; 0 is all of it
    config.evaluate.sources = ()  # further texts whose validation loss is measured before and after: ('python',)

    # Checkpoints: lmtrain.checkpoint.Checkpoints(**config.checkpoint)
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 500  # and at the end
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1  # by validation loss, of those whose step was evaluated

    # Watchdog: runtime.lifecycle.Watchdog(**config.watchdog); seconds after which a phase is taken for stalled and the
    # process ends with the stacks of its threads and exit code 75; 0 is never
    config.watchdog = ml_collections.ConfigDict()
    config.watchdog.start = 7200.0  # restore or load, and compile
    config.watchdog.step = 3600.0
    config.watchdog.evaluate = 14400.0
    config.watchdog.save = 3600.0

    config.sdc_check_every = (
        0  # steps between two that are taken twice and compared to the bit, as are copies; 0 is never
    )

    # What is shown and written
    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # a line of metrics.jsonl, and the live line
    config.log.tensorboard = True

    # Plans: `lmtrain plan`
    config.plan = ml_collections.ConfigDict()
    config.plan.price = 0.0  # of one chip for an hour, in any currency; 0 is not known
    config.plan.mfu = 0.4  # share of the peak that a budget in hours or money is taken to reach

    # Samples of the report: lmtrain.inference.sample.generate(**config.sample)
    config.sample = ml_collections.ConfigDict()
    config.sample.prompts = ('',)
    config.sample.max_tokens = 128
    config.sample.temperature = 0.8  # 0 is greedy
    config.sample.top_k = 0  # 0 is all
    config.sample.top_p = 1.0
    return config.lock()  # a recipe may change values, not add names
