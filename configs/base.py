"""Every field of a config with its default and unit. A recipe (a config file) states what differs.

Sections are in the order in which a run uses them. Most hold the keyword arguments of one function, named in their
comment. A number that depends on another one is a field reference, so an override (`--config.a.b=...`) also changes
what depends on it. (`get_oneway_ref`, because setting a plain `get_ref` would change the field that it refers to.)
"""

import warnings

import ml_collections
from ml_collections import config_dict

# Former names of fields -> their names. Recipes, overrides and the folders of older runs may still have them.
RENAMED = {'verify_every': 'sdc_check_every', 'corrupt': 'mask_rate', 'learns': 'trainable'}


class Section(ml_collections.ConfigDict):
    """A ConfigDict that also takes a field under its former name, with a warning, and one value for a tuple.

    A tuple of (regex, value) pairs takes a number, which replaces the value of every pair; another tuple takes a text,
    its only element.

    >>> config = get_config()
    >>> with warnings.catch_warnings(record=True, action='always') as notes:
    ...     config.data.corrupt = 0.15
    >>> config.data.mask_rate, str(notes[0].message)
    (0.15, "config field 'corrupt' is now called 'mask_rate'")
    >>> config.task.train, config.adapt.lora.alpha = 'train.csv', 32.0
    >>> config.task.train, config.adapt.lora.alpha
    (('train.csv',), (('.*', 32.0),))
    """

    def __getitem__(self, key):
        return super().__getitem__(self._current(key))

    def __setitem__(self, key, value):
        key = self._current(key)
        current = self[key] if key in self and type(value) in (str, int, float) else None
        super().__setitem__(key, _as_tuple(value, current) if isinstance(current, tuple) else value)

    def _current(self, key):
        if key not in RENAMED or key in self or RENAMED[key] not in self:
            return key
        warnings.warn(f'config field {key!r} is now called {RENAMED[key]!r}', FutureWarning, stacklevel=4)
        return RENAMED[key]


def _as_tuple(value, current: tuple):
    """One value in the form of the tuple that it replaces; unchanged if it has no such form."""
    if has_pairs(current):
        return value if isinstance(value, str) else tuple((pattern, value) for pattern, _ in current)
    return (value,) if isinstance(value, str) else value


def has_pairs(value: tuple) -> bool:
    """Whether a tuple is a list of (regex, value).

    >>> has_pairs((('.*', 8),)), has_pairs(('train.csv',)), has_pairs(())
    (True, False, False)
    """
    return bool(value) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)


def get_config():
    config = Section()
    config.seed = 0  # seed of the parameters, the order of the data and dropout

    # Data: lmtrain.data.prepare(**config.data)
    config.data = Section()
    config.data.source = 'python'  # 'python' (embedded) | 'tfds:NAME' | file, folder or glob of text or rows
    config.data.mix = ()  # further sources, with weights relative to the first one's 1.0: (('more/*.txt', 0.25),)
    config.data.root = ''  # directory for relative paths of sources; '' is the current directory
    config.data.cache = ''  # directory of tokenized text; '' is $XDG_CACHE_HOME/lmtrain or ~/.cache/lmtrain
    config.data.text_field = 'text'  # column of jsonl, parquet and TFDS rows that holds the document
    config.data.document = 'file'  # documents of a text file: 'file' (one) | 'line' | 'paragraph' (after blank lines)
    config.data.split = 'auto'  # 'document' (by hash) | 'tail' (of the concatenated text) | 'auto' (hash, or tails)
    config.data.validation = 0.05  # fraction of the text
    config.data.test = 0.05  # fraction of the text
    config.data.tokenizer = 'bpe'  # 'bytes' | 'chars' | 'whitespace' | 'bpe' (trained) | 'base' (of init.base) | a file
    config.data.vocab_size = 4096  # entries of 'bpe', special tokens included; unused by the others
    config.data.seq_len = 256  # tokens per row
    config.data.batch_size = 32  # rows per step, over all devices and micro-batches
    config.data.isolate = True  # no attention between documents that are packed into one row
    config.data.mask_rate = 0.0  # fraction of tokens hidden for masked language modelling; 0 is causal
    config.data.whole_word = False  # hides whole words

    # Task: 'text' is language modelling; the others read rows:
    # lmtrain.tasks.prepare.prepare_task(config.data, **config.task)
    config.task = Section()
    # 'text' | 'chat' | 'classify' | 'regress' | 'tag' | 'span' | 'reward' | 'preference' (pairs) | 'unpaired' (labels)
    # | 'policy' (GRPO) | 'ppo'
    config.task.name = 'text'
    config.task.train = ()  # rows in jsonl, json, csv, tsv, parquet, conll: paths, (path, label); or 'generated:sort'
    config.task.validation = ()  # the same; () splits data.validation off the training rows
    config.task.test = ()  # the same; () splits data.test off the training rows
    config.task.text = ()  # fields of the text; 'chat': () detects the format, one field without label is a dialogue
    config.task.label = ''  # field of the class, number, tags or answers; of the completion for 'chat'
    config.task.labels = ()  # classes in the order of their ids; () is the base's order, or sorted
    config.task.shots = 0  # training rows per class; 0 is all
    config.task.buckets = 4  # maximum number of row lengths, each with its own compiled program
    config.task.lengths = ()  # these row lengths, the last of them data.seq_len; () are those with the least padding
    config.task.pack = False  # packs several texts into a row, isolated: 'chat', 'reward', 'preference'
    config.task.too_long = 'error'  # rows longer than data.seq_len: 'error' | 'cut' | 'drop'
    config.task.group = 4  # 'unpaired': rows of the files that share a row of a batch and a KL estimate
    config.task.template = 'auto'  # 'chat': 'auto' (tokenizer's, or 'plain') | 'plain' | 'none' | a name | a Jinja file
    config.task.date = ''  # date of templates with strftime_now, 'YYYY-MM-DD'; '' is that of the first start

    # Start: lmtrain.training.init_from.open_base. With a base, the model section is the base's except for dropout,
    # dtype, remat, unroll and attention.
    config.init = Section()
    config.init.base = ''  # folder of a run or a Hugging Face directory; '' is random initialisation
    config.init.adapter = ''  # PEFT directory whose leaves are added to the base
    config.init.ignore = ()  # unknown fields of the base's config.json or adapter_config.json to skip
    config.init.frozen_dtype = 'float32'  # dtype of the base's frozen leaves: 'float32' | 'bfloat16'

    # Model: lmtrain.models.Transformer(**config.model)
    config.model = ml_collections.ConfigDict()
    config.model.vocab_size = config.data.get_oneway_ref('vocab_size')  # rows of the embedding, >= the tokenizer's
    config.model.max_len = config.data.get_oneway_ref('seq_len')  # tokens of context; rows of learned positions
    config.model.num_layers = 4  # N
    config.model.width = 256  # D
    config.model.num_heads = 4  # H
    config.model.num_kv_heads = config.model.get_oneway_ref('num_heads')  # fewer: grouped-query attention
    config.model.head_dim = config.model.get_ref('width') // config.model.get_ref('num_heads')  # K
    config.model.mlp_dim = 4 * config.model.get_ref('width')  # F
    config.model.positions = 'rotary'  # 'rotary' | 'learned' | 'sinusoidal' | 'none'
    config.model.rope_theta = 10_000.0  # base of the rotary frequencies
    config.model.norm = 'rmsnorm'  # 'rmsnorm' | 'layernorm' | 'rmsnorm1p' (times 1 + scale)
    config.model.norm_eps = 1e-5  # added to the variance
    config.model.norm_place = 'pre'  # 'pre' | 'post' (BERT) | 'branch' (after, OLMo 2) | 'sandwich' (both, Gemma 2)
    config.model.embed_norm = False  # a norm after the embeddings (BERT, crammed BERT)
    config.model.activation = 'swiglu'  # 'swiglu' | 'geglu' | 'gelu' (tanh form) | 'gelu_exact' | 'relu' | 'relu2'
    config.model.bias = False  # whether all projections and norms have biases
    config.model.tied = True  # the head is the transposed embedding
    config.model.causal = True  # False: a bidirectional encoder
    config.model.mlm_head = False  # BERT's dense layer, activation, norm and bias before the tied head
    config.model.qk_norm = False  # RMSNorm of queries and keys, per head
    config.model.logit_softcap = 0.0  # cap * tanh(logits / cap); 0 is off
    config.model.attention_softcap = 0.0  # the same for attention scores; 0 is off
    config.model.window = 0  # keys that a query attends to, including its own; 0 is all
    config.model.dropout = 0.0  # dropout rate of embeddings, attention outputs and feed-forward outputs
    config.model.dtype = 'float32'  # dtype of activations and matrix products; parameters are float32
    config.model.remat = 'none'  # saved for the backward pass: 'none' (all) | 'dots' (products) | 'full' (layer inputs)
    config.model.unroll = config.model.get_oneway_ref('num_layers')  # layers per scan iteration; 1 compiles fastest
    config.model.attention = 'auto'  # 'auto' (the device's kernel if it supports the rows) | 'xla' | 'cudnn' | 'splash'
    # Settings of single families (lmtrain/models/families)
    config.model.family = ''  # Hugging Face's model_type for export; '' is none
    config.model.biased = ()  # biases although bias=False: 'query', 'key', 'value', 'output', 'mlp', 'norm', 'head'
    config.model.parallel = False  # attention and feed-forward read the same input (GPT-NeoX)
    config.model.qk_norm_over = 'head'  # 'head' | 'projection' (all heads at once, OLMo 2)
    config.model.embed_scale = 1.0  # factor of the embeddings; sqrt(width) for Gemma
    config.model.attention_scale = 0.0  # factor of the scores; 0 is 1/sqrt(head_dim)
    config.model.rotary_dim = 0  # rotated dimensions per head; 0 is all
    config.model.rope_scaling = ()  # (('rope_type', 'llama3'), ('factor', 8.0), ...): lmtrain.models.rotary.SCALINGS
    config.model.global_layers = ()  # layers, from 0, with full attention if the others have a window
    config.model.local_rope_theta = 0.0  # rope_theta of the layers with a window; 0 is rope_theta
    config.model.first_norm = True  # norm before the first layer's attention (ModernBERT has none)
    config.model.token_types = 0  # rows of BERT's table of token types
    config.model.position_offset = 0  # offset of learned positions (RoBERTa)
    config.model.head = 'lm'  # head of the checkpoint: 'lm' | 'classify' | 'tag' | 'span' | 'none'
    config.model.num_labels = 0  # outputs of a head other than 'lm' and 'none'
    config.model.head_pool = 'first'  # input of 'classify': 'first' | 'last' | 'mean'
    config.model.head_activation = ''  # activation of the dense layer before the output; '' is no dense layer
    config.model.head_bias = True  # whether the output layer has a bias

    # Regex of trainable parameter paths in place of that of the method; '' keeps that of the method. Parameters that it
    # does not match are frozen, those of a new head too.
    config.trainable = ''

    # Adaptation: lmtrain.adapt.method(config.adapt.method, model, params, **config.adapt[method]). The head of a task
    # (task_head/..., or heads/<task> unless objective.pool is auto) is trained with every method.
    config.adapt = ml_collections.ConfigDict()
    config.adapt.method = 'full'  # 'full', 'layers', 'bitfit', 'norms', 'lora', 'ia3', 'prompt', 'prefix', 'head'
    config.adapt.cut = ()  # layers per segment layers_0, layers_1, ... for adapters of some layers; () is one stack
    config.adapt.dropout = 0.0  # dropout rate of the input of low-rank paths
    config.adapt.layers = Section()
    config.adapt.layers.last = 0  # number of last layers to train; 0 if `trainable` selects the layers
    config.adapt.layers.trainable = ''  # regex over paths with the layer's number: layers/11/mlp/up/kernel
    config.adapt.lora = Section()
    config.adapt.lora.rank = (('.*/attention/(query|value)/kernel', 8),)  # first match wins; 16 changes the rank alone
    config.adapt.lora.alpha = (('.*', 16.0),)  # the scale is alpha / rank; 32 changes it for all paths
    config.adapt.lora.targets = ''  # in place of rank's pattern: 'qv' | 'attention' | 'all-linear' | a regex
    config.adapt.lora.rslora = False  # the scale is alpha / sqrt(rank)
    config.adapt.lora.zero = 'b'  # factor that is 0 at first: 'b' | 'a' (then b is random)
    config.adapt.lora.dora = False  # trains magnitude and direction of the kernel's columns separately
    config.adapt.prompt = ml_collections.ConfigDict()
    config.adapt.prompt.length = 20  # P embeddings before every row
    config.adapt.prompt.init = 'vocab'  # 'random' | 'vocab' (rows of the embedding) | 'text'
    config.adapt.prompt.text = ''  # text for init='text'
    config.adapt.prompt.hidden = 0  # width of the network that computes them (P-tuning), merged on export; 0 is none
    config.adapt.prefix = ml_collections.ConfigDict()
    config.adapt.prefix.length = 20  # P keys and values before every row, in every layer
    config.adapt.prefix.stddev = 0.02  # standard deviation of the initial values
    config.adapt.prefix.hidden = 0  # width of the network that computes them, merged on export; 0 is none

    # Policy: completions that the model samples and learns from, lmtrain/training/rollouts.py ('policy' and 'ppo')
    config.policy = ml_collections.ConfigDict()
    config.policy.prompts = 16  # prompts per rollout
    config.policy.samples = 8  # completions per prompt
    config.policy.max_tokens = 64  # limit of a completion, end token included
    config.policy.temperature = 1.0  # sampling temperature of completions; above 0
    config.policy.epochs = 1  # passes over the completions of a rollout, in steps of data.batch_size rows
    config.policy.truncated = 'keep'  # completions without an end: 'keep' | 'mask' (not learned) | 'penalty' (reward)
    config.policy.penalty = 1.0  # subtracted from the reward of a truncated completion under 'penalty'
    config.policy.scale = 'group'  # GRPO divides advantages by the deviation of the 'group' | 'batch' | 'none'
    config.policy.gamma = 1.0  # discount of PPO
    config.policy.gae_lambda = 0.95  # lambda of PPO's advantage estimation
    config.policy.kl_target = 0.0  # adapts objective.kl_weight to this divergence of a completion, in nats; 0 is fixed
    config.policy.evaluate_temperature = 0.0  # sampling temperature of held-out completions; 0 is greedy
    config.policy.show_every = 10  # rollouts between tables of sample completions; 0 is never

    # Objective: a loss of the task, lmtrain/tasks/<task>.py
    config.objective = ml_collections.ConfigDict()
    config.objective.name = ''  # a loss in the file of the task; '' is the first
    config.objective.z_loss = 0.0  # weight of log(Z)^2 (PaLM, section 5); for 'text' and 'chat'
    config.objective.beta = 0.1  # 'preference', 'unpaired': strength of the reference model; usual: simpo 2, dpo_norm 5
    config.objective.label_smoothing = 0.0  # dpo, dpo_norm: probability that a pair is in the wrong order
    config.objective.target_margin = 0.5  # simpo: by how much the chosen side should be better (gamma)
    config.objective.desirable = 1.0  # kto: weight of desirable completions
    config.objective.undesirable = 1.0  # kto: weight of undesirable completions
    # Log-probabilities of the reference model: 'cached' (computed once, before the training) | 'live' (in every step,
    # from the frozen base; for methods that only add leaves)
    config.objective.reference = 'cached'
    config.objective.centring = 0.0  # 'reward': weight of the squared sum of both rewards; 0.01 keeps them around 0
    config.objective.clip_low = 0.2  # 'policy', 'ppo': no gradient for ratios below 1 - clip_low and advantages below 0
    config.objective.clip_high = 0.2  # the same for ratios above 1 + clip_high and advantages above 0
    config.objective.kl_weight = 0.0  # weight of the KL divergence from the base, in the loss ('grpo') or the reward
    config.objective.kl_estimator = 'k3'  # 'k1' (usual in a reward: 'rloo', 'ppo') | 'k2' | 'k3' (of Schulman)
    config.objective.aggregation = 'dapo'  # 'grpo': mean over 'dapo' (all tokens) | 'grpo' (each row) | 'dr_grpo'
    config.objective.ratio = 'token'  # 'grpo': ratio of each 'token', or the 'sequence' (with aggregation 'grpo': GSPO)
    config.objective.max_tokens = config.policy.get_oneway_ref('max_tokens')  # divisor of 'dr_grpo'
    config.objective.value_clip = 0.2  # 'ppo': limit of the change of a value
    config.objective.value_weight = 0.1  # 'ppo': weight of the value loss
    # Input of the task's head, if the base has no head for the task: 'auto' (that of the transformers class of the
    # family: BERT's pooler, a decoder's last token) | 'first' | 'last' (token) | 'mean' (of all tokens)
    config.objective.pool = 'auto'

    # Budget: exactly one is set, and the schedule ends with it; one on the command line replaces the recipe's
    config.budget = ml_collections.ConfigDict()
    config.budget.steps = config_dict.placeholder(int)  # optimizer steps
    config.budget.tokens = config_dict.placeholder(float)  # positions, padding included
    config.budget.flops = config_dict.placeholder(float)  # FLOPs of the model, with rollouts and cached references
    config.budget.hours = config_dict.placeholder(float)  # wall clock; such a run is not bitwise reproducible

    # Rewards of completions: lmtrain.rewards.build(config.reward)
    config.reward = ml_collections.ConfigDict()
    config.reward.verifier = ''  # '' | 'exact' | 'regex' | 'number' | 'json' | 'unit_test'
    config.reward.field = 'answer'  # field of a row: expected text, regex, number, JSON schema or Python code of a test
    config.reward.pattern = ''  # regex of every row, for 'regex'; '' is that of the field
    config.reward.model = ''  # folder of a reward model
    config.reward.file = ''  # Python file with one function (prompts, completions) -> rewards
    # Weights of the summed rewards: (('exact', 1.0), ('model', 0.5), ('file', 0.1)); () is 1.0 each; a reward of weight
    # 0 is only measured
    config.reward.weights = ()
    config.reward.seconds = 10.0  # limit of one unit test, one regex match or one call of the file
    config.reward.memory_mib = 1024  # limit of one unit test, per process

    # Optimizer: lmtrain.optimizer.optimizer(**config.optimizer)
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = 'adamw'  # 'adamw' | 'muon' | 'lion' | 'adafactor' | 'sgd'
    config.optimizer.learning_rate = 1e-3  # peak
    config.optimizer.learning_rates = ()  # ((path regex, factor), ...), first match wins, others have 1.0
    config.optimizer.weight_decay = 0.1  # multiplied by the learning rate
    config.optimizer.decayed = '.*/(kernel|embedding|lora_[ab])'  # paths with weight decay: matrices only
    config.optimizer.b1 = 0.9  # decay of the first moment; momentum
    config.optimizer.b2 = 0.95  # decay of the second moment
    config.optimizer.eps = 1e-8  # added to the root of the second moment
    config.optimizer.clip = 1.0  # maximum global norm of the gradients; 0 is off
    config.optimizer.accumulate = 1  # micro-batches per step

    # Schedule: lmtrain.optimizer.schedule(**config.schedule), a function of the spent fraction of the budget
    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = 'cosine'  # 'cosine' | 'linear' | 'constant' | 'wsd' (warmup, stable, decay)
    config.schedule.warmup = 0.02  # fraction of the budget
    config.schedule.start = 0.0  # learning rate at the start of warmup, relative to the peak
    config.schedule.decay = 0.2  # for 'wsd': the last fraction of the budget, with a linear decay
    config.schedule.final = 0.1  # learning rate at the end, relative to the peak
    # A run that is continued in its folder with another budget records here what `train` decided, in the budget's unit
    config.schedule.begin = 0.0  # spent budget at which the schedule begins; `train --extend` sets it
    config.schedule.warmup_budget = 0.0  # budget that `warmup` is a fraction of; 0 is all after `begin`

    # Sweep: several runs on one base, trained as one program, every learning rate with every seed:
    # lmtrain.training.sweep.members(**config.sweep). If a list is empty, all members have the value of the run.
    config.sweep = ml_collections.ConfigDict()
    config.sweep.seeds = ()  # replaces config.seed of each member: trainable leaves, dropout, order of the data
    config.sweep.learning_rates = ()  # replaces config.optimizer.learning_rate of each member
    config.sweep.orders = ()  # seeds of the order of the data only, one per seed; (0,) gives all the same batches
    config.sweep.zipped = False  # the lists are zipped instead: one entry per member, or one for all

    # Mesh: lmtrain.parallel.sharding.mesh(**config.mesh); the product is the number of devices, -1 fills
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices with different rows; over TPU slices if there are several
    config.mesh.fsdp = 1  # devices that divide rows, parameters and moments
    config.mesh.tensor = 1  # devices that divide heads, feed-forward columns and the vocabulary
    config.mesh.sequence = 1  # devices that divide the positions of a row

    # Evaluation: lmtrain.training.evaluate
    config.evaluate = Section()
    config.evaluate.every_steps = 500  # steps between evaluations; one more at the end
    config.evaluate.max_batches = 0  # validation batches per evaluation, a fixed random sample; 0 is all
    config.evaluate.patience = 0  # ends after so many evaluations in a row without a lower validation loss; 0 is never
    config.evaluate.sources = ()  # further texts whose validation loss is measured before and after: ('python',)

    # Checkpoints: lmtrain.checkpoint.Checkpoints(**config.checkpoint)
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 500  # steps between checkpoints; one more at the end
    config.checkpoint.keep_last = 2  # number of latest checkpoints to keep
    config.checkpoint.keep_best = 1  # number of best ones by validation loss, among evaluated steps

    # Watchdog: runtime.lifecycle.Watchdog(**config.watchdog); a phase that takes longer than this many seconds has
    # stalled: the process prints the stacks of its threads and ends with exit code 75; 0 is never
    config.watchdog = ml_collections.ConfigDict()
    config.watchdog.start = 7200.0  # restore or load, and compile
    config.watchdog.step = 3600.0  # one step
    config.watchdog.evaluate = 14400.0  # one evaluation
    config.watchdog.save = 3600.0  # one save

    config.sdc_check_every = 0  # steps between two steps that are executed twice and compared bitwise; 0 is never

    # Logs: lmtrain.report.metrics and lmtrain.report.terminal
    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # steps between lines of metrics.jsonl and of the terminal
    config.log.plot = True  # draws the loss for the report
    config.log.tensorboard = True  # writes TensorBoard files too
    # Further trackers: 'wandb' (Weights & Biases), 'mlflow'; both are extras of the same name, offline by default
    config.log.trackers = ()

    # Plans: `lmtrain plan`
    config.plan = ml_collections.ConfigDict()
    config.plan.price = 0.0  # price of one chip-hour, in any currency; 0 is unknown
    config.plan.mfu = 0.4  # model FLOPs utilisation assumed for a budget in hours or money

    # Samples of the report: lmtrain.inference.sample.generate(**config.sample)
    config.sample = Section()
    config.sample.prompts = ('',)  # texts to continue; ('',) is the beginnings of validation documents or rows
    config.sample.max_tokens = 128  # tokens per text
    config.sample.temperature = 0.8  # 0 is greedy
    config.sample.top_k = 0  # most likely tokens to draw from; 0 is all
    config.sample.top_p = 1.0  # probability mass to draw from; 1 is all
    return config.lock()  # a recipe may change values, not add names
