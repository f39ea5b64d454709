"""Small plausible faults, written from the sources alone: {module: [(what goes wrong, old text, new text)]}.

The old text stands once in the module. A fault that changes no result is in EQUIVALENT with the reason.
"""
# ruff: noqa: E501  a line of a module is quoted as it stands

FAULTS = {
    'lmtrain/tree.py': [
        ('a pattern matches the beginning of a path', 're.fullmatch(pattern, path)]', 're.match(pattern, path)]'),
        ('the last rule wins', 'rules[hits[0]][1]', 'rules[hits[-1]][1]'),
        ('layers of a second segment are counted from 0', 'first = stop - size - starts[which]', 'first = stop - size'),
        (
            'segments are sorted as text: layers_10 before layers_2',
            "[f'{STACK}_{i}' for i in range(len(stacks))]",
            'sorted(stacks)',
        ),
        ('every element has four bytes', '* leaf.dtype.itemsize', '* 4'),
        ('one common path is accepted', 'if shared:', 'if len(shared) > 1:'),
    ],
    'lmtrain/training/step.py': [
        ('the batch of the shortest rows', "compiled[batch['tokens'].shape[-1]]", 'compiled[min(compiled)]'),
        ('dropout repeats at every step', 'state.rng), state.step)', 'state.rng), 0)'),
        ('fewer than one target counts as one', 'jnp.where(weight > 0, weight, 1.0)', 'jnp.maximum(weight, 1.0)'),
        ('the norm is that of the sum', 'optax.tree.norm(grads) * scale', 'optax.tree.norm(grads)'),
        (
            'small gradients are scaled up to the limit',
            'jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))',
            '(clip / jnp.maximum(norm, 1e-12))',
        ),
        ('factors of paths are ignored', '(-rate * factor) * d', '-rate * d'),
        ('an update that is not finite is taken', ' & jnp.isfinite(update_norm)', ''),
        (
            'the count in a row is never reset',
            "skipped * (counters['skipped_in_a_row'] + 1)",
            "counters['skipped_in_a_row'] + skipped",
        ),
        ('moments of a skipped step are kept', 'opt_state = if_taken(opt_state, state.opt_state)', 'pass'),
        ('a skipped step is not counted', 'step=state.step + 1,', 'step=state.step + finite.astype(jnp.int32),'),
        ('weights count as 0 or 1', 'jnp.sum(value * weights)', 'jnp.sum(value * (weights > 0))'),
        (
            'a row counts once for each device that has a part of it',
            'jnp.where(hooks.position_offset(1) == 0, weights, 0.0)',
            'weights',
        ),
        (
            'the norm of parameters is that before the step',
            "'param_norm': optax.tree.norm(trainable)",
            "'param_norm': optax.tree.norm(state.trainable)",
        ),
    ],
    'lmtrain/optimizer.py': [
        (
            'the floor cuts the fall off',
            'jnp.minimum(final + (1.0 - final) * remaining, 1.0)',
            'jnp.maximum(final, remaining)',
        ),
        (
            'warmup stays at its start and then follows the ramp',
            'start + (1.0 - start) * jnp.clip(progress / warmup, 0.0, 1.0)',
            'jnp.maximum(start, progress / warmup)',
        ),
        ("'wsd' falls over the whole rest", '(1.0 - progress) / falling', '(1.0 - progress) / (1.0 - warmup)'),
        (
            'Adam with Nesterov momentum',
            'optax.scale_by_adam(b1, b2, eps)',
            'optax.scale_by_adam(b1, b2, eps, nesterov=True)',
        ),
        (
            'epsilon under the root',
            'optax.scale_by_adam(b1, b2, eps)',
            'optax.scale_by_adam(b1, b2, eps, eps_root=eps)',
        ),
        ("Lion's betas exchanged", 'optax.scale_by_lion(b1, b2)', 'optax.scale_by_lion(b2, b1)'),
        ('SGD with Nesterov momentum', 'optax.trace(b1)', 'optax.trace(b1, nesterov=True)'),
        (
            'Adafactor forgets at another rate',
            'optax.scale_by_factored_rms()',
            'optax.scale_by_factored_rms(decay_rate=0.9)',
        ),
        ('Adafactor clips at 2', 'optax.clip_by_block_rms(1.0)', 'optax.clip_by_block_rms(2.0)'),
        ('a part of a path decays', 'pattern.fullmatch(path)', 'pattern.search(path)'),
        (
            'Muon without Nesterov',
            'ahead = jax.tree.map(lambda g, m: g + MUON_MOMENTUM * m, updates, trace)',
            'ahead = trace',
        ),
        ("Muon's update is scaled by the smaller side", 'math.sqrt(max(m.shape[1:]))', 'math.sqrt(min(m.shape[1:]))'),
        ('four Newton-Schulz steps', '2.0315), 5', '2.0315), 4'),
        (
            'Adafactor factors a stack of layers',
            'by_path(STACKED, per_layer(_adafactor()), _adafactor())',
            '_adafactor()',
        ),
        (
            'nan is inside of every range',
            'low <= value < high if open_above else low <= value <= high',
            'not (value < low or (value >= high if open_above else value > high))',
        ),
        (
            'layers in segments are no matrices to Muon',
            "LAYER_MATRICES = 'layers[^/]*/.*kernel'",
            "LAYER_MATRICES = 'layers/.*kernel'",
        ),
    ],
    'lmtrain/training/loop.py': [
        (
            "a checkpoint gets an older state's metric",
            'if self.evaluated_at == self.step else None',
            'if self.validation else None',
        ),
        (
            'the clock restarts at 0 after a resume',
            "run.config.budget.hours, extra['elapsed'])",
            'run.config.budget.hours, 0.0)',
        ),
        (
            "an evaluation runs under the step's time limit",
            "self.watchdog.expect('evaluate')\n        validation",
            "self.watchdog.expect('step')\n        validation",
        ),
        ('no evaluation at the end', 'evaluate_now = progress >= 1.0 or self.due', 'evaluate_now = self.due'),
        ('a run ends one skipped step too late', '>= MAX_SKIPPED_IN_A_ROW', '> MAX_SKIPPED_IN_A_ROW'),
        (
            'the evaluation that a signal cut short gives no metric',
            'self.checkpoints.set_metric(self.step, self.metric)',
            'pass',
        ),
        (
            'the hours of the schedule are those of the clock',
            "extra['hours'] = self.progress * hours",
            "extra['hours'] = self.clock.elapsed / 3600",
        ),
        ('memory of an earlier start is forgotten', "before.get('peak_memory', 0)", '0'),
        ('seconds of one device', '+ devices * now', '+ now'),
        (
            'tokens are those of the next step',
            'self.clock.elapsed} | self.run.spent(self.step, ',
            'self.clock.elapsed} | self.run.spent(self.step + 1, ',
        ),
        (
            'the learning rate is one step late',
            'progress = self.clock.spent(step + 1) if',
            'progress = self.clock.spent(step) if',
        ),
    ],
    'lmtrain/evaluation/statistics.py': [
        ('deviation over n', 'np.std(numbers, ddof=1)', 'np.std(numbers, ddof=0)'),
        ('a one-sided interval', '0.5 + confidence / 2', 'confidence'),
        ('seeds are not random', 'signs = 1, rows', 'signs = False, rows'),
        ('seeds are not drawn', 'drawn += error * rng', 'drawn += 0.0 * rng'),
        ('a few seeds agree on purpose', ' * residual)', ' * 0.0)'),
        ('McNemar reads all rows', 'int(np.sum(first < second))', 'int(np.sum(first <= second))'),
        ("Bonferroni in place of Holm's", 'len(order) - np.arange(len(order))', 'len(order)'),
        ('adjusted p values are not monotonic', 'np.maximum.accumulate(', '('),
        ('a power of p <= alpha on one side', 'stats.binom.ppf(alpha / 2, count', 'stats.binom.ppf(alpha, count'),
    ],
    'lmtrain/evaluation/equivalence.py': [
        (
            'one of two one-sided tests',
            'difference, least = abs(float(values.mean()))',
            'difference, least = float(values.mean())',
        ),
        ('arms that agree on few rows are equivalent', 'of_rows / num_rows), least)', 'of_rows / num_rows), 1e-9)'),
        ('the seeds do not limit the rows', 'largest**2 - of_seeds', 'largest**2'),
        ('few rows show that arms agree', 'max(of_rows / room, least_rows)', 'of_rows / room'),
    ],
    'lmtrain/compare/pages/choice.py': [
        ('only a p below 1 % is significant', 'differs < LEVEL', 'differs < 0.01'),
        ('an arm that is ahead is less accurate', " and tested['difference'] > 0", ''),
        ('equivalence without a correction', "('p_equivalent_holm', 'p_holm')", "('p_equivalent', 'p_holm')"),
        ('what is not significant is equivalent', 'and within < LEVEL', 'and differs >= LEVEL'),
        (
            'the upper end of the interval decides over the baseline',
            'values.ends(entry)[0] > floor[0]',
            'values.ends(entry)[1] > floor[0]',
        ),
        ('the lower baseline counts', 'return max(((', 'return min((('),
        ('an arm is the cheapest for less than one query', 'plan[1][0] < 1:', 'plan[1][0] < 0:'),
    ],
    'lmtrain/compare/pages/recommendation.py': [
        (
            'the difference shown is not that from the most accurate arm',
            'if choice.arm != choice.leader:\n        return choice.leader',
            'if choice.arm != choice.leader:\n        return choice.arm',
        ),
        ('the worst prompt gives the break-even', 'best = max(own', 'best = min(own'),
        ('arms that rise more slowly are named', 'gains[arm] > gains[reference]', 'gains[arm] < gains[reference]'),
    ],
    'lmtrain/compare/pages/pareto.py': [
        ('arms of one cost dominate none', 'one[0] <= other[0]', 'one[0] < other[0]'),
        (
            'overlapping intervals show a difference',
            'one.interval[0] > other.interval[1]',
            'one.interval[0] > other.interval[0]',
        ),
        ('p without correction decides', "return tested['p_holm'] < LEVEL", "return tested['p'] < LEVEL"),
    ],
    'lmtrain/compare/pages/values.py': [
        ('fewer rows than there are decide', "max(tested['rows_to_decide'], present + 1)", "tested['rows_to_decide']"),
        ('an arm without rows has no result at a size', 'scored.get(size, scored.get(0))', 'scored.get(size)'),
        ('ends of a turned interval are in the wrong order', '[-limits[1], -limits[0]]', '[-limits[0], -limits[1]]'),
        (
            'an unknown cost of selection is 0',
            'return None if trained is None or selected is None else trained + selected',
            'return None if trained is None else trained + (selected or 0)',
        ),
    ],
    'lmtrain/compare/description_length.py': [
        ('the first block is coded by a model', 'lengths = [ends[0] * row_bits,', 'lengths = [0.0,'),
        ('nats are bits', 'loss / math.log(2) for', 'loss for'),
        ('a loss that is infinite passes', '0 <= loss < math.inf]', '0 <= loss]'),
    ],
    'lmtrain/report/run_records.py': [
        ('every run without results has stopped', "record['state'] = 'running'", "record['state'] = 'stopped'"),
        ('the selection rows of a trial are ignored', "if 'selection.loss' in record else", 'if False else'),
        ('a comparison is a run', "is_comparison = 'trials' in folders", "is_comparison = 'other' in folders"),
        ('the first evaluation is the last', 'evaluated[-1][name] for name', 'evaluated[0][name] for name'),
        (
            'seconds of the last step alone',
            "line['seconds_per_step'] * (line['step'] - before)",
            "line['seconds_per_step']",
        ),
    ],
    'lmtrain/report/runs.py': [
        (
            'fields that differ alike are not last',
            'return [*first.values(), *others]',
            'return [*others, *first.values()]',
        ),
        ('a run without the field fulfils a condition', "absent = symbol == '!='", 'absent = True'),
        ('texts are compared by order', "ordered = symbol not in ('=', '!=')", 'ordered = False'),
        ('a column may be too wide', 'if needed <= room:', 'if True:'),
        ('the usual value is written too', 'return value if 2 * count > total else None', 'return None'),
        ('formulas reach a spreadsheet', "startswith(('=', '+', '-', '@'))", 'startswith(())'),
        (
            'the end of a long text is lost',
            "if '/' in text else f'{text[: width - 1]}…'",
            "if False else f'{text[: width - 1]}…'",
        ),
    ],
    'lmtrain/report/run_curves.py': [
        (
            'losses of all tasks share a panel',
            "record.get('task.name', 'text') if unit == 'loss' else ''",
            "''",
        ),
    ],
    'lmtrain/data/cache_contents.py': [
        ('what is being written is removed', 'fcntl.LOCK_EX | fcntl.LOCK_NB', '0 | fcntl.LOCK_UN'),
        ('links are entries', 'if kind and not path.is_symlink():', 'if kind:'),
        ('every entry is due', "entry.kind == 'incomplete' or entry.used <= limit", 'True'),
    ],
    'lmtrain/compare/selection.py': [
        ('the highest loss is chosen', 'return min(usable', 'return max(usable'),
        (
            'a loss that is nan is chosen',
            "each['loss'] is not None and math.isfinite(each['loss'])",
            "each['loss'] is not None",
        ),
        ('steps without a checkpoint are candidates', "if line['step'] not in saved:", 'if False:'),
    ],
    'lmtrain/compare/trained.py': [
        (
            'a head is chosen by its raw loss',
            'temperature = choice_scores.fit_temperature(log_p, rows, task.classes)',
            'temperature = 1.0',
        ),
        ('the temperature of a head is forgotten', "length, chosen['temperature'])", 'length)'),
        ('checkpoints of other runs stay', "path.parent == folder / chosen['run'] / 'checkpoints' and ", ''),
    ],
    'lmtrain/compare/updates.py': [
        ('blocks of other sizes are not scored', 'if scored != comparison.spans(trial):', 'if False:'),
        ('draws are never repeated', 'prompted.draws(comparison, trial, form, chosen)', "record['draws']"),
        (
            'orders are never measured later',
            'prompted.num_orders(comparison, trial, form, count)',
            "len(record.get('orders', ()))",
        ),
        (
            'forgetting of the largest size alone is not measured',
            'return forgetting.is_missing(comparison, trial, record)',
            'return False',
        ),
        (
            'templates are never repeated',
            "prompted.templates(comparison, trial, chosen, record['selection'])",
            "record['templates']",
        ),
    ],
    'lmtrain/compare/prompted.py': [
        ('embeddings of the pool are free', 'measures.embedding(model, pool, form), ', ''),
        (
            'a template changes the rows and not the demonstrations',
            'comparison.model, own, form, queries',
            'comparison.model, pool, form, queries',
        ),
        ('orders have other demonstrations too', 'pool = _shown(pool, form, count)', 'pass'),
        ('orders repeat', 'seen.setdefault(tuple(', 'seen.setdefault(len(seen) or tuple('),
    ],
    'lmtrain/compare/rows.py': [
        ('selection rows are in the subsets', 'ordered[:count], ordered[count:]', 'ordered[:count], ordered'),
        ('a text is in two parts', 'if key not in seen:', 'if key:'),
        ('the seeds have the same rows', "hash_unit(f'subset {seed}'", "hash_unit('subset'"),
        ('other files of the same names pass', 'if digest not in files.values():', 'if False:'),
    ],
    'lmtrain/compare/choice_scores.py': [
        (
            'the contrast is a sum',
            "nats - np.array([row['nats'] for row in alone])",
            "nats + np.array([row['nats'] for row in alone])",
        ),
        (
            'the temperature is not fitted',
            "about['temperature'] = fit_temperature(scaled(scored, about), rows, classes)",
            'pass',
        ),
    ],
    'lmtrain/compare/analysis.py': [
        ('no correction for many pairs', "each[f'{name}_holm'] = p\n", "each[f'{name}_holm'] = each[name]\n"),
        ('size 0 holds for no size', "each['size'] in (size, 0)", "each['size'] == size"),
        (
            'the worst and the best prompt have one interval',
            'round(result[name] * rows)',
            "round(result['best'] * rows)",
        ),
        (
            'the order has the deviation of other demonstrations',
            'python_statistics.fmean(own)) ** 2',
            "result['mean']) ** 2",
        ),
    ],
    'lmtrain/training/split_errors.py': [
        ('positions count as rows', '_of_rows(value * weights) * value', 'value * weights * value'),
        ('strata count alike', 'variance += weight**2 *', 'variance +='),
        ('bytes count as targets', "'nats', 'bytes', 'c')", "'nats', 'targets', 'd')"),
    ],
    'lmtrain/training/sweep.py': [
        ('the median in place of the mean', 'float(np.mean(values)) for name', 'float(np.median(values)) for name'),
        (
            'a sweep ends where one member fails',
            "jnp.min(measured['skipped_in_a_row'])",
            "jnp.max(measured['skipped_in_a_row'])",
        ),
        ('skipped steps are averaged', "reduced['skipped'] = jnp.sum", "reduced['skipped'] = jnp.mean"),
        ('one interval over all learning rates', 'alike = [rows[index] for index in indices]', 'alike = rows'),
        ('all members read one order', "own['orders'] or own['seeds']", "own['orders'] or (seed,) * count"),
        ('two equal members pass', 'result.count(member) > 1', 'result.count(member) > 2'),
    ],
    'lmtrain/runtime/faults.py': [
        (
            'a fault strikes at every later step',
            '(name, int(number)) == (point, step)',
            'name == point and int(number) <= step',
        ),
    ],
    'lmtrain/runtime/lifecycle.py': [
        ('a limit of 0 is a limit', 'self._limits[phase] or math.inf', 'self._limits[phase]'),
        ('a second signal does not end the process', 'signal.signal(again, signal.SIG_DFL)', 'pass'),
        ('handlers are not put back', 'signal.signal(number, handler)', 'pass'),
        ('another exit code for an exception', 'EXCEPTION = 70', 'EXCEPTION = 1'),
    ],
    'lmtrain/runtime/multihost.py': [
        ('only facts of the first process are compared', 'sorted(first.keys() | other.keys())', 'sorted(first.keys())'),
        ('the mean of the votes', 'rows.max(axis=0)', 'rows.mean(axis=0)'),
        (
            "'now' gives the answer of before",
            'reduced if now or before is None else before',
            'reduced if before is None else before',
        ),
    ],
    'lmtrain/runtime/sdc.py': [
        (
            'replicas are never unequal',
            'differs = jax.lax.pmax(total, replicated) != jax.lax.pmin(total, replicated)',
            'pass',
        ),
        (
            'only metrics are compared',
            '_unequal(_bitwise_equal(first, second))',
            '_unequal(_bitwise_equal(first[1:], second[1:]))',
        ),
    ],
    'lmtrain/parallel/redistribute.py': [
        (
            'too few matrices a device',
            '-(-matrices // _num_devices(spread_axes, mesh))',
            'max(1, matrices // _num_devices(spread_axes, mesh))',
        ),
        ('the rows of pieces come in another order', "jnp.einsum('ftnrc->nfrtc', x)", "jnp.einsum('ftnrc->nrftc', x)"),
        (
            'turned stacks are not turned',
            'any(axis in spec and spec.index(axis) != 1 + i',
            'any(axis in spec and spec.index(axis) != 2 - i',
        ),
    ],
    'lmtrain/parallel/sharding.py': [
        (
            '-1 leaves devices out',
            'if math.prod(sizes.values()) != len(devices):',
            'if math.prod(sizes.values()) > len(devices):',
        ),
        (
            'key kernels are not divided',
            "attention/(query|key|value)/kernel', (None, 'fsdp', 'tensor')",
            "attention/(query|value)/kernel', (None, 'fsdp', 'tensor')",
        ),
        ('accumulation is left out of the check', 'batch_size % (accumulate * devices)', 'batch_size % devices'),
        ('an axis of one device is named', 'axis if axis and mesh.shape[axis] > 1 else None', 'axis'),
        (
            'positions are not divided over sequence',
            "[None] * (ndim - 2) + ['sequence'] if ndim > 1 and",
            "[None] * (ndim - 2) + ['sequence'] if ndim > 2 and",
        ),
        ('segments are divided over sequence', '1 if name in SEGMENT_COLUMNS else x.ndim', 'x.ndim'),
    ],
    'lmtrain/parallel/collectives.py': [
        (
            'gradients of replicated leaves are averaged',
            'jax.lax.psum(gradient, axes) if axes',
            'jax.lax.pmean(gradient, axes) if axes',
        ),
        (
            'gradients travel in the dtype of the computation',
            'return (_per_tensor_shard(reduce_scatter, tensor_spec, nested)(g),)',
            'return (_per_tensor_shard(reduce_scatter, tensor_spec, nested)(g.astype(comm_dtype)).astype(g.dtype),)',
        ),
        (
            'rows of the next device are read',
            "own = index - count * jax.lax.axis_index('tensor')",
            "own = index - count * (1 - jax.lax.axis_index('tensor'))",
        ),
        (
            'every device of sequence begins at 0',
            "length * jax.lax.axis_index('sequence').astype(jnp.int32)",
            "0 * length * jax.lax.axis_index('sequence').astype(jnp.int32)",
        ),
        (
            'gathered weights are kept for the backward pass',
            "NOT_SAVED or 'sequence' in axis_name",
            "NOT_SAVED or 'fsdp' in axis_name",
        ),
    ],
    'lmtrain/training/budget_change.py': [
        ('a longer run warms up again', "own['warmup_budget'] or float(before.value", '0.0 * float(before.value'),
        ('a step of the decay is continued', 'spent(counters, budget) < limit', 'spent(counters, budget) < 2 * limit'),
        (
            'a longer run counts tokens and not steps',
            'return step / total_steps(',
            "return extra['tokens'] / total_steps(",
        ),
        ('the new schedule begins at 0', "'begin': float(done)", "'begin': 0.0"),
    ],
    'lmtrain/training/choose.py': [
        ('a member has the best step of all', 'evaluations.losses(lines, member), ch', 'evaluations.losses(lines), ch'),
    ],
    'lmtrain/report/evaluations.py': [
        ('the older of two equal steps is the best', '(measured[step], -step)', '(measured[step], step)'),
        ('an improvement does not count', 'if loss < best else', 'if loss < 0 * best else'),
        ('the best member is that of all rates', 'min(ranks, key=ranks.get)', 'max(ranks, key=ranks.get)'),
    ],
    'lmtrain/report/trackers.py': [
        ('each start is a run of its own', 'if name not in ids:', 'if name:'),
    ],
    'lmtrain/report/writers.py': [
        ('a line cut short by a full disk stays', 'os.ftruncate(self._file, end)', 'pass'),
        ('TensorBoard drops the point of the checkpoint', 'step=start + 1', 'step=start'),
        ('a broken file is complained of every time', 'self._broken.add(name)', 'pass'),
        (
            'nan is written as JSON has no number for',
            'return str(value) if isinstance(value, float) and not math.isfinite(value) else value',
            'return value',
        ),
    ],
    'lmtrain/report/metrics.py': [
        (
            'time left counts from 0',
            '(1.0 - progress) * (now - since) / spent',
            '(1.0 - progress) * (now - since) / progress',
        ),
        ('waiting is counted since the start', '(waited - waited_before) / seconds', 'waited / seconds'),
        (
            'means are over steps',
            "np.asarray(values['targets' + members], np.float64)",
            "np.ones_like(values['targets' + members])",
        ),
        ('means hold the last line', 'state, self.state = self.state, {}', 'state = self.state'),
        ('earlier starts are not counted', 'self.before + (time', '0 * self.before + (time'),
        ('hours are minutes', '(3600 * self.hours)', '(60 * self.hours)'),
    ],
    'lmtrain/files.py': [
        ('a relative XDG_CACHE_HOME counts', 'configured if os.path.isabs(configured) else', 'configured or'),
        (
            'the root is forgotten',
            "local_path(root, 'data.root') / expanded if root else Path(expanded)",
            'Path(expanded)',
        ),
        ('a URL is a path', 'if URL.match(text):', 'if False:'),
    ],
    'lmtrain/cost/flops.py': [
        ('a window is one key wider', 'first = max(0, start - window + 1)', 'first = max(0, start - window)'),
        (
            "a gated feed-forward's gate is not counted",
            "up = ('gate', 'up') if 'glu' in m.activation else ('up',)",
            "up = ('up',)",
        ),
        ('the gradient of a frozen kernel is counted', '(int(trained) + int(flows))', '(1 + int(flows))'),
        ('learned prefixes are no keys', ' + extra_keys', ''),
    ],
    'lmtrain/cost/hardware.py': [
        ('another peak of the H100', "(r'.*\\bH100\\b.*', 989.5e12", "(r'.*\\bH100\\b.*', 756e12"),
        ('cores are chips', 'cores=2 * self.chips', 'cores=self.chips'),
        ('two dimensions of a v5p pass', "shape.count('x') + 1 != dimensions", "shape.count('x') + 1 > dimensions"),
    ],
    'lmtrain/cost/memory.py': [
        ('a sharded leaf counts whole', 'sharding.shard_shape(leaf.shape) if sharding else leaf.shape', 'leaf.shape'),
        (
            'memory of float32 moments is halved',
            "'moments': shard_bytes(state.opt_state)",
            "'moments': shard_bytes(state.opt_state) // 2",
        ),
        ('layers without gradients keep activations', 'elements[policy] if flows else 0.0', 'elements[policy]'),
        ('frozen matrices keep their inputs', "'frozen' if frozen and", "'none' if frozen and"),
    ],
    'lmtrain/cost/ledger.py': [
        ('the other members of a sweep are free', '(members - 1) * flops', '0 * flops'),
        ('a sweep is charged to its best member', "cost['executed_flops'] / members", "cost['executed_flops']"),
        ('demonstrations are read for every row', 'flops.shared + rows * flops.cached', 'rows * flops.whole'),
        ('prices divide', 'ratio * extra / saved', 'extra / saved / ratio'),
        (
            'the cached prompt pays for its demonstrations',
            "'query_flops_cached' if cached else",
            "'query_flops' if cached else",
        ),
        ('energy in kilojoules', '/ 3.6e6 * prices.kwh', '/ 3.6e3 * prices.kwh'),
        ('what adapters add is not stored', 'if kind_of(path) or re.fullmatch', 'if re.fullmatch'),
    ],
    'lmtrain/cost/query.py': [
        ('the last token of a choice is read', 'read(n - 1, context + n - 1, n - 1)', 'read(n, context + n, n)'),
        ('LoRA is computed beside its kernel', ' if path not in matrices', ''),
        ('a soft prompt is free', 'virtual + query.shared, query.classes', 'query.shared, query.classes'),
        ('a head reads the last position alone', 'classes and query.row ', 'None '),
    ],
    'lmtrain/cost/hlo.py': [
        ('the body of a loop counts once', 'body * _trips(i, computations) if body', 'body if body'),
        ('a conditional counts both branches', 'max(map(flops, branches))', 'sum(map(flops, branches))'),
        ('a product counts once', 'return 2.0 * math.prod(_sizes(out))', 'return 1.0 * math.prod(_sizes(out))'),
    ],
    'lmtrain/cost/traffic.py': [
        (
            'a reduction over all travels once',
            "received[kind, axes] += times * whole * share * (2 if kind == 'all-reduce' else 1)",
            'received[kind, axes] += times * whole * share',
        ),
        ('a scatter counts its result', "(n if kind == 'reduce-scatter' else 1)", '1'),
        (
            'micro-batches gather once',
            "(2 if path.startswith('layers') else 1) * micro * whole * wire",
            "(2 if path.startswith('layers') else 1) * whole * wire",
        ),
    ],
    'lmtrain/training/evaluate.py': [
        (
            'a mixture is weighted by its shares and its sizes',
            'scaled = [(share / count, own)',
            'scaled = [(share, own)',
        ),
        ('the counts are those of the weighted rows', 'return result | counts | {', 'return result | {'),
        ('sums in float32', 'np.asarray(value, np.float64)', 'np.asarray(value, np.float32)'),
        ('bits per byte of the mean', "sums['nats'] / LN2 / sums['bytes']", "sums['nats'] / LN2 / sums['targets']"),
        (
            'the penalty counts as likelihood',
            "loss = sums['nats'] / sums['targets']",
            "loss = sums['loss'] / sums['targets']",
        ),
        ('a source has the same share of batches', 'max(1, round(max_batches * share))', 'max(1, max_batches)'),
    ],
    'lmtrain/evaluation/heads.py': [
        (
            'rows are drawn without repetition',
            'rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))',
            '[range(len(pairs))] * RESAMPLES',
        ),
        ('the own head is preferred', "if task.name in params.get('heads', {}):", 'if False:'),
    ],
    'lmtrain/evaluation/json_schema.py': [
        ('true is a number', "and not isinstance(value, bool),\n    'integer'", ",\n    'integer'"),
        ('true is 1', 'a == b and isinstance(a, bool) == isinstance(b, bool)', 'a == b'),
        ('only the first type counts', 'any(TYPES[name](value) for name in types)', 'TYPES[types[0]](value)'),
        ('items are not checked', "value if isinstance(value, list) and 'items' in schema else ()", '()'),
    ],
    'lmtrain/evaluation/perplexity.py': [
        ('windows overlap', 'whole[max(0, end - 1 - context) : first]', 'whole[max(0, end - context) : first]'),
        ('the first token is not predicted', 'range(1, len(whole), context)', 'range(2, len(whole), context)'),
        ('bits are nats', "/ math.log(2), np.array([row['bytes']", ", np.array([row['bytes']"),
        ('characters are counted', 'len(text.encode())', 'len(text)'),
        ('the error of independent sizes', 'bits - ratio * sizes', 'bits - bits.mean()'),
    ],
    'lmtrain/evaluation/scoring.py': [
        (
            'the last answer counts',
            'max(span.normal(text) == span.normal(answer) for answer in answers)',
            'span.normal(text) == span.normal(answers[-1])',
        ),
        ('the whole match is compared', 'match[1] if compiled.groups else match[0]', 'match[0]'),
        ('invalid answers match', 'value is not ... and any(', 'any('),
    ],
    'lmtrain/evaluation/task_file.py': [
        ('paths start at the current folder', 'read_rows(name, str(path.parent))', "read_rows(name, '')"),
        ('unknown fields are ignored', 'if name not in fields:', 'if False:'),
        ('demonstrations are limited as well', 'demonstrations or (rows if', 'demonstrations or (rows[:limit] if'),
        ('a choice without a row passes', 'if choice not in answers]', 'if False]'),
    ],
    'lmtrain/evaluation/task_run.py': [
        ('the raw choice is shown', 'np.argmax(nats / np.array(lengths.get(task.by, 1)))', 'np.argmax(nats)'),
        ('nats of the first choice', 'question.choices.index(question.answer)', '0'),
        ('choices with the same tokens pass', '!= choice or choices.count(choice) > 1:', '!= choice and False:'),
    ],
    'lmtrain/evaluation/predictions.py': [
        ('the fill of the last batch is scored', 'if example >= 0:', 'if True:'),
    ],
    'lmtrain/report/page.py': [
        ('the mean where the median is promised', 'statistics.median(values)', 'statistics.fmean(values)'),
        ('gained and forgotten exchanged', '(after / before - 1)', '(before / after - 1)'),
        ('a bar in a cell breaks the table', r"cell.replace('|', r'\|')", 'cell'),
        ('a tie counts as won', 'if bits < value', 'if bits <= value'),
        (
            'the first command is shown',
            "for start in reversed(starts) if start.get('command')",
            "for start in starts if start.get('command')",
        ),
        ('bits are nats', "f'{loss / LN2:.4f}'", "f'{loss:.4f}'"),
        ('fences of code as long as those of the text', 'max(3, 1 + max(', 'max(3, max('),
        ('planned over actual', 'actual[key] / planned[key]', 'planned[key] / actual[key]'),
    ],
    'lmtrain/report/terminal.py': [
        ('999.6 has four digits', 'while abs(value) >= 999.5', 'while abs(value) >= 1000'),
        ('minutes without the seconds', 'whole % size // smaller', 'whole // smaller % size'),
        ('frozen parameters learn', "'yes' if path in trainable_leaves else 'no'", "'yes'"),
    ],
    'lmtrain/report/summary.py': [
        ('rows of all micro-batches', 'rows // (accumulate * replicas)', 'rows // replicas'),
    ],
    'lmtrain/report/live.py': [
        (
            'the least important field stays',
            'max(cells, key=lambda cell: cell[0])',
            'min(cells, key=lambda cell: cell[0])',
        ),
        (
            'the line fills the last column',
            'shutil.get_terminal_size().columns - 1',
            'shutil.get_terminal_size().columns',
        ),
    ],
    'lmtrain/report/plot.py': [
        (
            'a gap in the loss ends the picture',
            'for step, value in values if math.isfinite(value)]',
            'for step, value in values]',
        ),
        (
            'nats where bits are promised',
            "evaluated[-1][f'validation_{unit}'] / evaluated[-1][name] if evaluated and not rewarded else 1.0",
            '1.0',
        ),
    ],
    'lmtrain/runtime/preflight.py': [
        ('devices of a host share nothing', 'host_memory() // jax.local_device_count()', 'host_memory()'),
        ('moments need no room', "('parameters', 'gradients', 'moments')", "('parameters', 'gradients')"),
    ],
    'lmtrain/adapt/adapter.py': [
        ('a misspelt leaf passes', 'if kind is None or not kind.fits', 'if kind is not None and not kind.fits'),
        (
            'two adapters share their random numbers',
            'adapter(jax.random.fold_in(rng, i), params)',
            'adapter(rng, params)',
        ),
        ('a head may take the name of an output', 'in OUTPUTS:', "in ('hidden',):"),
    ],
    'lmtrain/adapt/lora.py': [
        ('alpha is the scale', 'layer_alpha / np.maximum(np.sqrt(r) if rslora else r, 1)', 'layer_alpha'),
        ('rsLoRA divides by the rank', 'np.sqrt(r) if rslora else r', 'r'),
        ("A's bound is its deviation", 'bound = rows**-0.5', 'bound = (3 / rows) ** 0.5'),
        ('columns beyond a rank are drawn', 'maxval=bound) * used[..., None, :]', 'maxval=bound)'),
        (
            'the magnitude is that of the base alone',
            'column_norm(kernel, a, b, scale))[..., None, :]',
            'column_norm(kernel, a, 0 * b, scale))[..., None, :]',
        ),
        (
            'merged in the dtype of the kernel',
            'kernel.astype(jnp.float32) + scale[..., None, None] * (a @ b)',
            'kernel + (scale[..., None, None] * (a @ b)).astype(kernel.dtype)',
        ),
        ('the embedding of a tied head is merged', "and 'head/kernel' not in leaves", "and 'head/kernel' in leaves"),
    ],
    'lmtrain/adapt/ia3.py': [
        (
            'factors of outputs fold into rows',
            "factor[..., None, :] if name == 'ia3_out' else factor[..., None]",
            "factor[..., None, :] if name == 'ia3_in' else factor[..., None]",
        ),
        (
            'the bias is not scaled',
            "if name == 'ia3_out' and f'{parent}/bias' in leaves:",
            "if name == 'ia3_in' and f'{parent}/bias' in leaves:",
        ),
        ('factors begin at 0', 'jnp.ones((*shape[:-2], shape[axis]))', 'jnp.zeros((*shape[:-2], shape[axis]))'),
    ],
    'lmtrain/adapt/prompt.py': [
        ("Gemma's factor is forgotten", "new = {'embedding': x_PD * scale}", "new = {'embedding': x_PD}"),
        (
            "'random' has PEFT's deviation of 1",
            'jnp.std(table_VD.astype(jnp.float32)) * jax.random',
            '1.0 * jax.random',
        ),
        (
            'a short text is filled with its last token',
            'np.resize(ids, length)',
            'np.pad(ids, (0, max(0, length - len(ids))), mode="edge")[:length]',
        ),
    ],
    'lmtrain/adapt/prefix.py': [
        ('keys and values begin alike', "leaf(f'{name}/{leaf_name}', layers)", 'leaf(name, layers)'),
        ('the deviation is ignored', 'return stddev * jax.random.normal', 'return 0.02 * jax.random.normal'),
    ],
    'lmtrain/adapt/head.py': [
        ('no bias', "if bias else {'kernel'", "if not bias else {'kernel'"),
    ],
    'lmtrain/adapt/methods.py': [
        ('BitFit learns the biases of norms alone', "r'.*/bias'", "r'.*norm/bias'"),
        ('norms learn without their biases', "r'.*norm/(scale|bias)'", "r'.*norm/scale'"),
        (
            "a checkpoint's head stays frozen",
            "if model.head not in ('lm', 'none') and name != 'full':",
            "if model.head not in ('lm', 'none') and name == 'layers':",
        ),
        ('the first layers learn', 'range(N - last, N)', 'range(last)'),
    ],
    'lmtrain/adapt/multi.py': [
        ('a missing IA3 is 0', 'jnp.full(largest, kind.neutral, jnp.float32)', 'jnp.zeros(largest, jnp.float32)'),
        (
            'padding counts in the largest change',
            "jnp.where((batch['segment_ids'] > 0)[..., None], change, 0)",
            'change',
        ),
        ('every row uses the first adapter', 'lambda leaf: leaf[index], adapters)', 'lambda leaf: leaf[0], adapters)'),
    ],
    'lmtrain/adapt/peft/adapters.py': [
        (
            'values before keys',
            "enumerate(('prefix_key', 'prefix_value')):",
            "enumerate(('prefix_value', 'prefix_key')):",
        ),
        (
            'prefixes are stored head by head',
            'np.stack(layers, axis=1).reshape(len(layers[0]), -1)',
            'np.stack(layers, axis=2).reshape(len(layers[0]), -1)',
        ),
        ('another base passes', 'if recorded != actual:', 'if recorded is None:'),
    ],
    'launch/distributed.py': [
        ('two processes of one number pass', 'or other in lines:', 'or False:'),
        ('one of three flags is enough', 'if chosen and len(chosen) < len(names):', 'if chosen and not chosen:'),
        (
            'a process takes one GPU of a node of its own',
            "alone = alone or environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'",
            'alone = alone',
        ),
    ],
    'lmtrain/adapt/peft/lora.py': [
        ("A's transposed", "yield f'{parent}/lora_a', a.T", "yield f'{parent}/lora_a', a.T[:, ::-1]"),
        ('rsLoRA is read as LoRA', "r**0.5 if fields['use_rslora'] else r", 'r'),
        (
            'alpha of the pattern is ignored',
            "alpha = _of_pattern(fields['alpha_pattern'], name, fields['lora_alpha'])",
            "alpha = fields['lora_alpha']",
        ),
        ('a target without tensors passes', 'if is_target != (name in named):', 'if not is_target and name in named:'),
    ],
    'lmtrain/adapt/peft/write.py': [
        ('alpha is the scale', 'alpha = float(scale) * r', 'alpha = float(scale)'),
        ('scales of joined kernels differ unseen', 'b[i][: ranks[i]] * (scales[i] / scale)', 'b[i][: ranks[i]]'),
        ('an ambiguous name stands alone', 'same <= adapted and word not in AMBIGUOUS', 'same <= adapted'),
    ],
    'lmtrain/adapt/peft/modules.py': [
        ('a layer without LoRA gets ones', 'kind_of(path).neutral or 0.0', '1.0'),
    ],
    'lmtrain/models/lm_head.py': [
        (
            'the gradient of a chunk is rounded',
            'total + new[name]',
            'total + new[name].astype(dtype).astype(total.dtype)',
        ),
        (
            'the cotangent of the logits stays float32',
            'flat = g.astype(dtype).reshape(-1, V)',
            'flat = g.reshape(-1, V)',
        ),
        ('the gradient of the cap is forgotten', 'g *= 1.0 - jnp.square(out / softcap)', 'g *= 1.0'),
        (
            'ids that fill the vocabulary up have a probability',
            '(first + jnp.arange(V) < size)',
            '(first + jnp.arange(V) < V)',
        ),
        ('z-loss has no gradient', '(g_log_z - g_picked)[..., None] * jnp.exp', '(-g_picked)[..., None] * jnp.exp'),
        (
            'evaluation reads rounded logits',
            "('logprob', 'log_z', 'saved'), round_logits=False, max_saved=0)",
            "('logprob', 'log_z', 'saved'), round_logits=True, max_saved=0)",
        ),
        (
            'a float32 model keeps its logits',
            'hooks.keep_logits and hidden_BTD.dtype != jnp.float32',
            'hooks.keep_logits',
        ),
        (
            'the bias has no gradient in z',
            "new['bias'] = jnp.sum(g, axis=(0, 1))",
            "new['bias'] = 0 * jnp.sum(g, axis=(0, 1))",
        ),
    ],
    'lmtrain/parallel/vocab_padding.py': [
        ('the fill is no multiple of 128', 'math.lcm(128, tensor)', 'tensor'),
        ('low-rank tables are not padded', 'TABLES.get(path, vocab_axis(path))', 'TABLES.get(path)'),
        ('the fill is of ones', 'for i in range(leaf.ndim)])', 'for i in range(leaf.ndim)], constant_values=1.0)'),
    ],
    'lmtrain/tasks/token_loss.py': [
        ('z-loss without its square', "outputs['log_z'] ** 2", "outputs['log_z']"),
        ('the reported likelihood holds the penalty', "'nats': nats}", "'nats': penalised}"),
    ],
    'lmtrain/tasks/tag.py': [
        (
            'weights of all tokens are 1',
            "batch['label_weights']\n\n\ndef predict",
            "jnp.ones_like(batch['label_weights'])\n\n\ndef predict",
        ),
        ('an I- of another kind goes on', 'not (mark in CONTINUES and this == kind)', 'mark not in CONTINUES'),
        (
            'precision and recall exchanged',
            'precision, recall = correct / max(len(guessed), 1), correct / max(len(expected), 1)',
            'precision, recall = correct / max(len(expected), 1), correct / max(len(guessed), 1)',
        ),
        (
            'the last sub-token of a word is labelled',
            'if start < end and word_of_char[start] > last:',
            'if start < end and word_of_char[start] >= last:',
        ),
    ],
    'lmtrain/tasks/span.py': [
        ('the sum and not the mean of both ends', 'jnp.mean(nats, axis=1)', 'jnp.sum(nats, axis=1)'),
        ('spans may be one token longer', 'end < start + longest', 'end <= start + longest'),
        ('an end before its start', '(start <= end) & ', ''),
        ('articles count', "re.sub(r'\\b(a|an|the)\\b', ' ', plain)", 'plain'),
        (
            'the last window answers',
            "max(best.get(source, (-np.inf, '')), (float(span_score), text))",
            '(float(span_score), text)',
        ),
        (
            'a word counts as often as it stands in one',
            'shared = sum((collections.Counter(one) & collections.Counter(other)).values())',
            'shared = len(set(one) & set(other))',
        ),
        ('windows do not overlap', 'begin += max(capacity // 2, 1)', 'begin += capacity'),
    ],
    'lmtrain/tasks/regress.py': [
        ('half of the squared error', "{'loss': error**2", "{'loss': error**2 / 2"),
        (
            'correlation without its means',
            '(labels - labels.mean()) * (predictions - predictions.mean())',
            'labels * predictions',
        ),
    ],
    'lmtrain/tasks/segments.py': [
        ('tokens of the prompt count', "values_BT * batch['loss_mask']", 'values_BT'),
        (
            'rejected sides are the chosen ones',
            'values_BS[:, 0::2], values_BS[:, 1::2]',
            'values_BS[:, 0::2], values_BS[:, 0::2]',
        ),
        ('an absent pair counts', '> 0).astype(jnp.float32)', '>= 0).astype(jnp.float32)'),
        ('live is the model itself', 'forward(batch, reference_model=True)', 'forward(batch)'),
    ],
    'lmtrain/tasks/preference.py': [
        (
            'labels are smoothed to the wrong side',
            '-(1 - smoothing) * jax.nn.log_sigmoid(logits) - smoothing',
            '-smoothing * jax.nn.log_sigmoid(logits) - (1 - smoothing)',
        ),
        ('the target of IPO is 1 / beta', '1 / (2 * beta)) ** 2', '1 / beta) ** 2'),
        (
            'the margin of SimPO is subtracted from nothing',
            '_difference(rewards) - target_margin',
            '_difference(rewards)',
        ),
        ('odds are probabilities', 'mean - _log1mexp(mean)', 'mean'),
        (
            'the reference is left out',
            'own.logprob - segments.reference_logprob(forward, batch, reference)',
            'own.logprob',
        ),
    ],
    'lmtrain/tasks/reward.py': [
        (
            'the margin is added',
            "difference - segments.sides(batch['margin'])[0]",
            "difference + segments.sides(batch['margin'])[0]",
        ),
        ('differences are centred', 'centring * (chosen + rejected) ** 2', 'centring * (chosen - rejected) ** 2'),
        ('every bin weighs the same', "sum(each['pairs'] * abs(", 'sum(total / len(bins) * abs('),
        ('an added head reads the first segment', "pool, batch['scored'])", "pool, jnp.ones_like(batch['scored']))"),
    ],
    'lmtrain/tasks/unpaired.py': [
        (
            'the estimate may be negative',
            'jnp.maximum(jnp.sum(mismatched, axis=1, keepdims=True) / count, 0.0)',
            'jnp.sum(mismatched, axis=1, keepdims=True) / count',
        ),
        ('the estimate is of the texts themselves', 'jnp.sum(mismatched, axis=1', 'jnp.sum(ratio, axis=1'),
        (
            'undesirable completions are desirable',
            'sign, weight = 2 * label - 1',
            'sign, weight = jnp.ones_like(label)',
        ),
        ('rows of the group before count twice', 'weight = first + offset >= begin and first', 'weight = first'),
    ],
    'lmtrain/tasks/pairs.py': [
        ('equal sides are kept', 'if pair.chosen == pair.rejected:', 'if pair.chosen is pair.rejected:'),
        (
            'an empty rejected side is kept',
            'preferences.is_empty(pair.chosen) or preferences.is_empty(pair.rejected)',
            'preferences.is_empty(pair.rejected)',
        ),
        (
            'all of the excess is cut from each prompt',
            '- form.length.seq_len, 0) / 2)',
            '- form.length.seq_len, 0) / 1)',
        ),
        ('the mask is not shifted', 'np.array([*trained[1:], False], np.float32)', 'np.array(trained, np.float32)'),
    ],
    'lmtrain/data/preferences.py': [
        ('the last answer may be part of the prompt', 'zip(chosen[:-1], rejected[:-1])', 'zip(chosen, rejected)'),
        ('no end token is added', 'ids, trained = [*ids, tokenizer.end_id], [*trained, True]', 'pass'),
        ('the begin token is cut', '[*self.prompt[:1], *self.prompt[1 + count :]]', '[*self.prompt[count:]]'),
    ],
    'lmtrain/training/reference.py': [
        ('the cache is the same for every base', 'start = base.hash if base else', 'start = 0 if base else'),
        ('the first side of a row is written twice', 'at += size', 'at += 0'),
        ('a trained base is accepted', '    if trained:', '    if not trained:'),
    ],
    'lmtrain/models/task_head.py': [
        ('the activation is left out', 'x = ACTIVATIONS[m.head_activation](x)', 'x = x'),
        ('the mean counts padding', 'jnp.maximum(jnp.sum(real_BT, axis=1), 1)[:, None]', 'T'),
        ('the last position, padding or not', 'T - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)', 'jnp.full(B, T - 1)'),
    ],
    'lmtrain/tasks/classify.py': [
        ('classes of the truth alone', 'np.unique(np.concatenate([labels, guesses]))', 'np.unique(labels)'),
        ('the class of the first row', 'labels[batch["labels"][row]]', 'labels[batch["labels"][0]]'),
    ],
    'lmtrain/checkpoint/checkpoints.py': [
        ('brackets in a name are a pattern', 'glob.has_magic(part) or not in_utf8(part)', 'not in_utf8(part)'),
        (
            'a name that is no UTF-8 is taken for one',
            'glob.has_magic(part) or not in_utf8(part)',
            'glob.has_magic(part)',
        ),
        ('the checkpoint before a decay is deleted', 'if step <= self.branch', 'if step < 0'),
        (
            'a metric that is nan is the best',
            'if metric is None or not math.isfinite(metric) else',
            'if metric is None else',
        ),
        ('the newest is not kept', '[-self.keep_last :] +', '[: self.keep_last] +'),
        (
            'a failure of the thread is dropped',
            'self._error = self._failed(step, temporary, error)',
            'self._failed(step, temporary, error)',
        ),
        ('what a save left half written stays', 'shutil.rmtree(leftover)', 'pass'),
        (
            'the best are those with the highest loss',
            'ranked(self.directory)[: self.keep_best]',
            'ranked(self.directory)[::-1][: self.keep_best]',
        ),
    ],
    'lmtrain/checkpoint/manifest.py': [
        ('an index without arrays is sealed', 'if path not in arrays]', 'if path in ()]'),
        ('a folder with leading zeros is a step', "r'0|[1-9][0-9]*'", "r'[0-9]+'"),
        (
            'the older of two equal ones',
            'key=lambda step: (metrics[step], -step)',
            'key=lambda step: (metrics[step], step)',
        ),
        ('a file too many passes', 'for name in sorted(present - expected.keys()):', 'for name in ():'),
        (
            'a bit that is turned passes',
            'if digest != expected[name]:',
            "if digest['bytes'] != expected[name]['bytes']:",
        ),
        ('a checkpoint of another step passes', "if str(manifest['step']) != folder.name:", 'if False:'),
    ],
    'lmtrain/training/workdir.py': [
        ('a run may change its seed', "(r'log\\..*', 'free'),", "(r'log\\..*', 'free'),\n    (r'seed', 'free'),"),
        ('lines of the step itself are cut', "json.loads(line)['step'] > step", "json.loads(line)['step'] >= step"),
        ('True equals 1', 'if json.dumps(one) != json.dumps(other):', 'if one != other:'),
        ('a budget is free under every schedule', 'kind = budget_change.kind(saved, current)', "kind = 'free'"),
        ('a half-written line of the lineage stays', "file.truncate(file.read().rfind(b'\\n') + 1)", 'file.read()'),
        (
            'checkpoints that are there count twice',
            'needed, free = (keep + 1.2) * state_bytes - existing',
            'needed, free = (keep + 1.2) * state_bytes',
        ),
    ],
    'lmtrain/checkpoint/leaves.py': [
        ('another dtype passes', "'dtype': str(np.dtype(leaf.dtype))", "'dtype': 'float32'"),
        ('the state is not copied', 'copies[path] = np.array(leaf)', 'copies[path] = np.asarray(leaf)'),
    ],
    'lmtrain/inference/prompting.py': [
        ('the standard error over n', 'p * (1 - p) / (n - 1)', 'p * (1 - p) / n'),
        ('likelihood per character', '[len(choice.encode()) for', '[len(choice) for'),
        ('the last demonstration is dropped', 'else drawn[1:]', 'else drawn[:-1]'),
        ('the least likely choice', 'int(np.argmax(each))', 'int(np.argmin(each))'),
        (
            'the chance of the first row',
            'sum(1 / len(q.choices) for q in questions) / len(questions)',
            '1 / len(questions[0].choices)',
        ),
    ],
    'lmtrain/inference/likelihood.py': [
        (
            'the first token of a continuation is predicted by itself',
            '[last, *range(span.start, span.stop)]',
            '[span.start, *range(span.start, span.stop)]',
        ),
        (
            'continuations of a row see each other',
            '= branch, start + np.arange(len(ids))',
            '= branch > 0, start + np.arange(len(ids))',
        ),
        ('a continuation begins at position 0', 'len(own) if branch else 0', '0'),
        (
            'prompts share a row with a soft prompt',
            'alone = not past and virtual_tokens.prompt(params) is not None',
            'alone = False',
        ),
        (
            'a common beginning is the longest of two',
            'int(common[start + 1 : j].min())',
            'int(common[start + 1 : j].max())',
        ),
        ('a text is encoded with the angles of a shorter one', '> _fixed_angles(model, context)', '> np.inf'),
    ],
    'lmtrain/inference/rendering.py': [
        ('a choice that begins another is always likelier', 'if _one_begins_another(wholes):', 'if False:'),
        (
            'a blank before a generated answer stays',
            "text_before(question, demonstrations, separator, instruction).rstrip(' ')",
            'text_before(question, demonstrations, separator, instruction)',
        ),
        (
            'the prompt is encoded alone',
            'common = min(common_length(alone, whole) for whole in wholes)',
            'common = len(alone)',
        ),
    ],
    'lmtrain/models/kv_cache.py': [
        ('keys behind the end of a past are read', 'index_S[None] < past.length[:, None]', 'index_S[None] >= 0'),
        ('a window counts from the end of the past', 'start_B[:, None] + index_S[None]', 'index_S[None]'),
        ('parts are averaged without their maxima', 'jnp.exp(each - top) for each', 'jnp.exp(0 * each) for each'),
        (
            'the second text begins where the first does',
            "start_b = start_b + cache['length']",
            "start_b = 0 * cache['length']",
        ),
        ('a ring forgets its oldest token late', '(jnp.arange(S) <= index)[None]', '(jnp.arange(S) < index)[None]'),
        ('a cache of a window does not wrap', 'index % S, 0)', 'index, 0)'),
        (
            'samples read the prompt of another',
            'jnp.repeat(x_b, rows // len(x_b), axis=0)',
            'jnp.tile(x_b, rows // len(x_b))',
        ),
    ],
    'lmtrain/inference/calibration.py': [
        ('the prior multiplies', '- np.logaddexp.reduce(prior, axis=0)', '+ np.logaddexp.reduce(prior, axis=0)'),
        ('the prior is a mean of logarithms', 'np.logaddexp.reduce(prior, axis=0)', 'np.mean(prior, axis=0)'),
    ],
    'lmtrain/inference/prompt_search.py': [
        ('answers are not divided by those of all choices', 'nats[right] - np.logaddexp.reduce(nats)', 'nats[right]'),
        (
            'a change that is not better is taken',
            'evaluate(changed) > evaluate(best)',
            'evaluate(changed) < evaluate(best)',
        ),
        ('prompts that do not fit are eligible', "if entry['fits'] else -math.inf", "if entry['fits'] else 0.0"),
    ],
    'lmtrain/inference/demonstrations.py': [
        ("the draw of 'fixed' is the order of the texts", "if how == 'fixed':", 'if False:'),
        ("all seeds of 'fixed' draw the same", "hash_unit(f'demonstrations {seed}'", "hash_unit('demonstrations'"),
        ('known embeddings are computed again', 'if text not in vectors]', ']'),
        ('a row may be its own demonstration', 'drawn = drawn[~np.isin(drawn, own)]', 'pass'),
        ('the most similar row is first', 'drawn if how in', 'drawn if how not in'),
        (
            'draws do not depend on the row',
            'np.random.default_rng([seed, *digest.tolist()])',
            'np.random.default_rng([seed])',
        ),
    ],
    'lmtrain/inference/questions.py': [
        ('an index counts from 1', 'return choices[index]', 'return choices[index - 1]'),
        ('each conversation decides by itself', 'bool(settings.template) != bool(answer)', 'not answer'),
    ],
    'lmtrain/models/linear.py': [
        ('rsqrt of the width alone', 'min(0.02, math.sqrt(0.4 / width))', '0.02'),
        (
            'the DoRA norm is differentiated',
            'column_norm(*map(jax.lax.stop_gradient, (kernel, a, b, scale)))',
            'column_norm(kernel, a, b, scale)',
        ),
        ('the low-rank path skips dropout', '(x if drop is None else drop(x, self.name)).reshape', 'x.reshape'),
        ('LoRA of an embedding is not scaled', 'x + scale.astype(x.dtype) * (a[index]', 'x + (a[index]'),
    ],
    'lmtrain/models/layers.py': [
        ('the mean is not taken off', "if kind == 'layernorm':", "if kind == 'none':"),
        ('the norm in the dtype of its input', 'y = x.astype(jnp.float32)\n', 'y = x\n'),
        (
            'epsilon outside of the root',
            'jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)',
            'jnp.mean(jnp.square(y), axis=-1, keepdims=True)) + eps',
        ),
        (
            'Gemma multiplies by its scale alone',
            "1 + scale.astype(jnp.float32) if kind == 'rmsnorm1p' else scale",
            'scale',
        ),
        (
            'the tanh form in place of the exact one',
            'gelu_exact = recomputed(functools.partial(jax.nn.gelu, approximate=False))',
            'gelu_exact = recomputed(functools.partial(jax.nn.gelu, approximate=True))',
        ),
        (
            'a scan keeps the steps of an activation',
            'result = jax.custom_vjp(function, nondiff_argnums=tuple(range(static)))',
            'return function',
        ),
        ('gate and up exchanged', 'GATES[self.activation](gate, up)', 'GATES[self.activation](up, gate)'),
        ('what is left by dropout is not scaled', 'x_BTD / (1 - rate)', 'x_BTD'),
        (
            'dropout keeps where it should drop',
            'jax.random.fold_in(key, row), 1 - rate,',
            'jax.random.fold_in(key, row), rate,',
        ),
        ('every row has the same mask', 'jax.random.fold_in(key, row), 1 - rate', 'key, 1 - rate'),
    ],
    'lmtrain/models/block.py': [
        (
            'attention and feed-forward drop the same elements',
            "jax.random.fold_in(key, name == 'mlp')",
            'jax.random.fold_in(key, 0)',
        ),
        (
            'outputs begin as large as all',
            "std if m.norm_place == 'post' else std / (2 * m.num_layers) ** 0.5",
            'std',
        ),
        ('outputs begin smaller by N, not 2N', '(2 * m.num_layers) ** 0.5', 'm.num_layers**0.5'),
        (
            'the feed-forward of a parallel layer reads the sum',
            'if m.parallel:',
            'if False:',
        ),
    ],
    'lmtrain/models/transformer.py': [
        ('layers share the key of dropout', 'jax.random.fold_in(key, i)', 'key'),
        (
            'the key of the embeddings is that of a layer',
            'jax.random.fold_in(key, m.num_layers)',
            'jax.random.fold_in(key, 0)',
        ),
        ("RoBERTa's offset is forgotten", 'positions_BT + m.position_offset', 'positions_BT'),
        (
            'Gemma scales its embeddings after the positions alone',
            'x_BTD *= jnp.asarray(m.embed_scale, x_BTD.dtype)',
            'x_BTD *= jnp.asarray(m.embed_scale**2, x_BTD.dtype)',
        ),
        ('global layers see a window', 'return inputs._replace(window=0)', 'return inputs'),
        ('a scan exchanges local and global angles', 'jnp.where(local, *pair)', 'jnp.where(~local, *pair)'),
        (
            'the cache grows by padding',
            'jnp.sum((segments > 0).astype(jnp.int32), axis=1)',
            'segments.shape[1]',
        ),
        (
            'positions of a cached row start at 0',
            'positions = jnp.broadcast_to(start_B1 + jnp.arange(T, dtype=jnp.int32)[None], (B, T))',
            'positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))',
        ),
        (
            'types of the second text are of the first',
            "text.get('token_types', jnp.zeros_like(text['tokens']))",
            "jnp.zeros_like(text['tokens'])",
        ),
    ],
    'lmtrain/models/hf_heads.py': [
        (
            "a decoder's head reads its first token",
            "{'head_pool': 'last', 'head_bias': False}",
            "{'head_pool': 'first', 'head_bias': False}",
        ),
    ],
    'lmtrain/models/safetensors.py': [
        ('a file with a gap passes', 'if start != end:', 'if start < end:'),
        ('data begins 8 bytes early', '8 + length + offsets[0]', 'length + offsets[0]'),
        ('weights of an earlier export stay', 'path.unlink()', 'pass'),
        ('a key that stands twice passes', 'if len(dict(pairs)) != len(pairs):', 'if False:'),
    ],
    'lmtrain/models/families/gemma.py': [
        ('every layer of Gemma 2 but the first of two sees all', 'if (i + 1) % every else', 'if i % every else'),
        (
            'the scale of scores is that of the heads',
            "fields.take('query_pre_attn_scalar', 256) ** -0.5",
            "256**-0.5 + 0 * fields.take('query_pre_attn_scalar', 256)",
        ),
        (
            'no cap of the scores',
            "0.0 if third else fields.take('attn_logit_softcapping', 50.0) or 0.0",
            "0.0 * (fields.take('attn_logit_softcapping', None if third else 50.0) or 0.0)",
        ),
        (
            'embeddings are not scaled',
            "'embed_scale': sizes['width'] ** 0.5}\n    sizes['biased']",
            "'embed_scale': 1.0}\n    sizes['biased']",
        ),
    ],
    'lmtrain/models/families/llama.py': [
        (
            "the norm's epsilon is LLaMA 3's",
            "'norm_eps': fields.take('rms_norm_eps', eps)",
            "'norm_eps': fields.take('rms_norm_eps', eps) and 1e-5",
        ),
        (
            'as many key heads as heads',
            "fields.take('num_key_value_heads', None) or num_heads",
            "fields.take('num_key_value_heads', None) and num_heads or num_heads",
        ),
        (
            'gate and up exchanged',
            "'mlp.gate_proj': ('mlp/gate',),\n    'mlp.up_proj': ('mlp/up',)",
            "'mlp.gate_proj': ('mlp/up',),\n    'mlp.up_proj': ('mlp/gate',)",
        ),
    ],
    'lmtrain/models/families/mistral.py': [
        (
            'no window is 4,096',
            "fields.take('sliding_window', 4096), sizes",
            "fields.take('sliding_window', 4096) or 4096, sizes",
        ),
        (
            'the window of the file is ignored',
            'windows(window, every, count)',
            'windows(window and 4096, every, count)',
        ),
    ],
    'lmtrain/models/families/qwen.py': [
        ('the first layers have the window', 'if window and i >= first else', 'if window and i < first else'),
        (
            'a window that is switched off is used',
            "if not fields.take('use_sliding_window', False):",
            "if fields.take('use_sliding_window', False) is None:",
        ),
    ],
    'lmtrain/models/families/phi3.py': [
        (
            'key before query',
            "('attention/query', 'attention/key', 'attention/value')",
            "('attention/key', 'attention/query', 'attention/value')",
        ),
        ('heads are turned whole', 'partial=1.0)', 'partial=None)'),
    ],
    'lmtrain/models/families/modernbert.py': [
        ('the window is one narrower', '// 2 + 1, kinds', '// 2, kinds'),
        ('every layer but the first of three sees all', 'if i % every else', 'if (i + 1) % every else'),
        ('up before gate', "'mlp.Wi': ('mlp/gate', 'mlp/up')", "'mlp.Wi': ('mlp/up', 'mlp/gate')"),
    ],
    'lmtrain/models/families/gpt_neox.py': [
        (
            'layers are not parallel',
            "fields.take('use_parallel_residual', True)",
            "not fields.take('use_parallel_residual', True)",
        ),
        ('heads are turned whole', "fields.take('rotary_pct', 0.25)", "fields.take('rotary_pct', 0.25) and 1.0"),
    ],
    'lmtrain/models/hf.py': [
        ('the exact GELU is the tanh form', "'gelu': 'gelu_exact'", "'gelu': 'gelu'"),
        (
            'interleaved heads are split in blocks',
            'x.reshape(*x.shape[:-1], entry.heads, len(widths), -1)',
            'x.reshape(*x.shape[:-1], len(widths), entry.heads, -1).swapaxes(-3, -2)',
        ),
        (
            'a field that nobody reads passes',
            '{*self.ignore} and value not in (None, False, {}, [])',
            '{*self.ignore} and value is None',
        ),
    ],
    'lmtrain/models/pretrained.py': [
        (
            'a head beside a tied embedding is dropped',
            'if not np.array_equal(tensors[head].read(), tensors[embedding].read()):',
            'if tensors[head].shape != tensors[embedding].shape:',
        ),
        (
            'layers are read in the order of their names',
            'for layer, key in enumerate(keys):',
            'for layer, key in enumerate(sorted(keys)):',
        ),
    ],
    'lmtrain/data/pack.py': [
        (
            'the first row that fits and not the tightest',
            'space = (fitting & -fitting).bit_length() - 1',
            'space = fitting.bit_length() - 1',
        ),
        (
            'the last window is as long as all',
            'np.minimum(seq_len, np.repeat(ends, pieces) - start)',
            'np.full(len(start), seq_len)',
        ),
        (
            'positions run through a row',
            "'positions': column(position)",
            "'positions': column(np.arange(len(position)) % seq_len)",
        ),
        (
            'every piece has segment 1',
            'column(np.repeat(segment + 1, length))',
            'column(np.repeat(np.minimum(segment, 0) + 1, length))',
        ),
        (
            'a text is cut earlier by the same in all rows',
            'start = np.maximum(start - shift, 0)',
            'start = np.maximum(start - shift[0], 0)',
        ),
    ],
    'lmtrain/data/corpus.py': [
        (
            'baselines of a mixture are weighted by its sizes',
            'p * x.num_bytes / x.num_rows if p else 0.0',
            'x.num_bytes',
        ),
        ('a source alone has the splits of all', 'own = self.source_splits[index]', 'own = self.splits'),
        ('a source without rows has a share', 'if len(part.rows.first) > 1 else 0.0', 'if True else 0.0'),
        ('weights may change in a run', '[rule, *settings, [text.weight for text in texts]]', '[rule, *settings]'),
    ],
    'lmtrain/data/tokenizers/hf_files.py': [
        (
            'the map overrides the config',
            "for name in ('special_tokens_map.json', 'tokenizer_config.json'):",
            "for name in ('tokenizer_config.json', 'special_tokens_map.json'):",
        ),
        (
            'a template of its own file is not read',
            "files = [('default', directory / 'chat_template.jinja')]",
            'files = []',
        ),
        (
            'accents of a cased vocabulary go',
            "'lowercase': not any(name != name.lower() for name in plain)",
            "'lowercase': True",
        ),
        (
            'flags that do not matter count',
            "(('lstrip', 'rstrip') if flags['special'] else TOKEN_FLAGS)",
            '(TOKEN_FLAGS)',
        ),
        (
            'the second [SEP] is of the first text',
            "{'SpecialToken': {'id': '[SEP]', 'type_id': 1}}",
            "{'SpecialToken': {'id': '[SEP]', 'type_id': 0}}",
        ),
        (
            'tokens of older files are none',
            "return {'added_tokens_decoder': decoder | entries} if entries else {}",
            'return {}',
        ),
    ],
    'lmtrain/data/tokenizers/base.py': [
        ('a literal name of the mask is one', 'if special == name]', 'if special in KNOWN_MASKS]'),
        (
            'a prompt has no begin',
            'return [self.begin_id, *self.encode(text)]',
            'return [self.end_id, *self.encode(text)]',
        ),
        (
            'offsets of bytes',
            'of_byte = np.repeat(',
            'of_byte = np.arange(len(text.encode()) + 1) if text else np.repeat(',
        ),
        ('the blank that is put before a text counts', 'sizes[0] -= 1', 'pass'),
        ('characters of four bytes have three', ' + (code >= 0x10000)', ''),
        (
            'half a character is shown',
            "codecs.getincrementaldecoder('utf-8')('replace'), self.leading",
            "codecs.getincrementaldecoder('latin-1')('replace'), self.leading",
        ),
        ('the hash does not say whether tokens are hidden', 'bytes([self.mask_id is not None])', "b''"),
        (
            'special tokens are content',
            'np.array(list(self.specials), np.int32))',
            'np.array([self.end_id], np.int32))',
        ),
        ('bytes of a stretch that are over are lost', 'reached[-1] = total', 'pass'),
    ],
    'lmtrain/data/stream.py': [
        ('a sample is the first rows', 'if self._order is None else self._order[index]', ''),
        (
            'a sample is of the seed',
            'hash_rng.permutation(sum(self.sizes), SAMPLE)',
            'hash_rng.permutation(sum(self.sizes), self.seed)',
        ),
        ('sources begin anew in every epoch', 'np.arange(epoch * quota, (epoch + 1) * quota)', 'np.arange(quota)'),
        (
            'every epoch has the same order',
            'order = hash_rng.permutation(size, self.seed, SHUFFLE, source, number)',
            'order = hash_rng.permutation(size, self.seed, SHUFFLE, source)',
        ),
        (
            'the mixture has the same order in every epoch',
            'SHUFFLE, len(self.parts), epoch)',
            'SHUFFLE, len(self.parts))',
        ),
        (
            'the seed is ignored',
            'hash_rng.permutation(size, self.seed, SHUFFLE',
            'hash_rng.permutation(size, 0, SHUFFLE',
        ),
        ('a second source comes once an epoch', 'round(self.sizes[0] * part.weight)', 'round(size * part.weight)'),
        (
            'evaluation hides other tokens for other seeds',
            'seed = self.seed if self.shuffle else 0',
            'seed = self.seed',
        ),
        (
            'one text is cut at the same places in every pass',
            'hash_rng.random_bits(self.seed, SHIFT, source, number)',
            'hash_rng.random_bits(self.seed, SHIFT, source)',
        ),
        (
            'the hash of a batch leaves out its names',
            "f'{name} {values.dtype} {values.shape};'.encode() + values.tobytes()",
            'values.tobytes()',
        ),
    ],
    'lmtrain/data/masking.py': [
        (
            'nine of ten become MASK',
            'np.where(action < 8, np.int32(tokenizer.mask_id)',
            'np.where(action < 9, np.int32(tokenizer.mask_id)',
        ),
        (
            'a random token may be a special one',
            'content_ids[hash_rng.random_bits(seed, MASK_TOKEN, *place) % np.uint64(len(content_ids))]',
            '(hash_rng.random_bits(seed, MASK_TOKEN, *place) % np.uint64(tokenizer.vocab_size)).astype(np.int32)',
        ),
        (
            'the share is of the row and not of its content',
            'np.round(rate * content.sum(1))',
            'np.round(rate * np.full(len(content), seq_len))',
        ),
        (
            'words run on across documents',
            "joined[:, 1:] &= batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]",
            'joined[:, 1:] &= True',
        ),
        (
            'all rows hide the same places',
            'hash_rng.random_bits(seed, MASK_ORDER, index[:, None], unit)',
            'hash_rng.random_bits(seed, MASK_ORDER, 0 * index[:, None], unit)',
        ),
    ],
    'lmtrain/data/padded_stream.py': [
        (
            'a sample is of neighbours',
            'hash_rng.permutation(count, SAMPLE) if self.sampled else np.arange(count)',
            'np.arange(count)',
        ),
        ('a sample is of the shortest', 'if self.shuffle or self.sampled:', 'if self.shuffle:'),
        (
            'batches of a length come in the same order in every epoch',
            'order = hash_rng.permutation(len(rows), BATCH_ORDER, epoch)',
            'order = hash_rng.permutation(len(rows), BATCH_ORDER)',
        ),
        (
            'rows of a length have the same order in every epoch',
            'hash_rng.permutation(count, self.seed, SHUFFLE, epoch)',
            'hash_rng.permutation(count, self.seed, SHUFFLE)',
        ),
        ('the last batch of an epoch is not filled', '[: self.repeated]', '[:0]'),
        ('an empty row learns', '(example >= 0)', '(example >= -1)'),
    ],
    'lmtrain/data/hash_rng.py': [
        (
            'parts commute',
            'np.asarray(state ^ np.asarray(part).astype(np.uint64))',
            'np.asarray(np.asarray(part).astype(np.uint64))',
        ),
    ],
    'lmtrain/data/baselines.py': [
        ('counts without one added', 'minlength=vocab_size) + 1.0', 'minlength=vocab_size) + 0.5'),
        ('the begin of a document is paid for', 'return context[counts], token[counts]', 'return context, token'),
        ('xz at its usual level', 'preset=9 | lzma.PRESET_EXTREME', 'preset=6'),
        (
            'contexts that were never seen cost nothing',
            'backoff = np.where(seen, different[context], 1)',
            'backoff = np.where(seen, 1, 1)',
        ),
    ],
    'lmtrain/data/example_store.py': [
        ('lengths are multiples of 16', 'ROUND = 8', 'ROUND = 16'),
        ('the token after the last example is missing', 'np.zeros(1, np.int32)])', 'np.zeros(0, np.int32)])'),
        ('a pair that no row holds is lost', 'np.flatnonzero(of_groups > seq_len)', 'np.flatnonzero(length > seq_len)'),
    ],
    'lmtrain/data/splits.py': [
        (
            'the tail is train',
            "int(characters * (1 - sum(shares))), int(characters * (1 - rule['test']))",
            "int(characters * (1 - rule['validation'])), int(characters * (1 - rule['test']))",
        ),
        (
            'a split of one document is enough',
            'miss > min(NEAR, share / 2) or not enough',
            'miss > min(NEAR, share / 2)',
        ),
        ('shares are missed', 'miss > min(NEAR, share / 2) or not enough', 'not enough'),
        ('modules are cut', 'whole = grouped or keeps_documents_whole', 'whole = keeps_documents_whole'),
        (
            'validation stands where the test should',
            '(1 - validation - test, 1 - test)',
            '(1 - validation - test, 1 - validation)',
        ),
        ('a character is cut in two', 'cut -= 1', 'break'),
        ('a file that was just written is trusted', '> SETTLED for', '> 0 for'),
        (
            'the size of a file is not compared',
            'stat.st_size, stat.st_ino, stat.st_mtime_ns',
            'stat.st_ino, stat.st_mtime_ns',
        ),
    ],
    'lmtrain/data/cache.py': [
        ('a damaged file passes', 'manifest == _describe(directory)', 'manifest.keys() == _describe(directory).keys()'),
        ('what a process left half made stays', 'shutil.rmtree(remnant)', 'pass'),
        (
            'the key ignores the order of its parts',
            'json.dumps(parts, sort_keys=True)',
            'json.dumps(sorted(map(str, parts)))',
        ),
    ],
    'lmtrain/data/text_files.py': [
        ('a byte order mark is text', "text if offset else text.removeprefix('\\ufeff')", 'text'),
        ('a compressed bomb unpacks', 'if packed and offset > limit:', 'if packed and offset < 0:'),
        ('lines are counted from the last one read', "line += raw.count(b'\\n', 0, error.start)", 'line += 0'),
        ('UTF-32 is read as UTF-16', "codecs.BOM_UTF32_LE: 'utf-32',", ''),
        ('UTF-16 without a mark is text', 'even + odd > 0.4 * len(head)', 'even + odd > len(head)'),
    ],
    'lmtrain/data/source.py': [
        ('comments of games are moves', "r'\\{[^}]*\\}|;.*'", "r';.*'"),
        ('the same file counts twice', 'if file.resolve() in seen:', 'if file in seen:'),
        (
            'a README is text beside the data',
            'for each in (DATA_ENDINGS, TEXT_ENDINGS)',
            'for each in (DATA_ENDINGS + TEXT_ENDINGS, TEXT_ENDINGS)',
        ),
        ('empty files are not counted', "skipped['empty'] += 1", 'pass'),
    ],
    'lmtrain/data/rows.py': [
        ('the place of a row is one line late', "f'{path}:{first_line}'", "f'{path}:{first_line + 1}'"),
        ('a row that is too short is filled', 'if len(cells) != len(header):', 'if len(cells) > len(header):'),
    ],
    'lmtrain/data/examples.py': [
        (
            'the second text is cut first',
            'min(len(parts[0]), max(limit - len(parts[1]), limit // 2))',
            'min(len(parts[0]), limit)',
        ),
    ],
    'lmtrain/plan/scaling_laws.py': [
        ('exponents exchanged', '(flops / 6) ** self.beta', '(flops / 6) ** self.alpha'),
        ('10 tokens a parameter', 'RATIO = 20.0', 'RATIO = 10.0'),
    ],
    'lmtrain/plan/search.py': [
        ('the slowest first', '(-one.speed, sum', '(one.speed, sum'),
    ],
    'lmtrain/plan/compiled.py': [
        (
            'weights are read once',
            "(3 if config.model.remat != 'none' else 2) * config.optimizer.accumulate",
            "3 if config.model.remat != 'none' else 2",
        ),
        ('temporaries are forgotten', 'total=arguments + temporaries + new', 'total=arguments + new'),
        ('money for one chip', 'price * target.chips * time / 3600', 'price * time / 3600'),
    ],
    'lmtrain/training/init_from.py': [
        ("the base's dropout is taken", "COMPUTE = ('dropout', 'dtype'", "COMPUTE = ('dtype'"),
        ('a base that has changed passes', 'if base.hash != fingerprint:', 'if fingerprint is None:'),
        ('a member is always the first', 'np.asarray(leaf)[member], parts', 'np.asarray(leaf)[0], parts'),
    ],
    'lmtrain/inference/decode.py': [
        ('sampling before the temperature', '(logits_BV - top_B1) / settings.temperature', 'logits_BV - top_B1'),
        ('top-p keeps one token too few', '(before_BV < top_p)', '(before_BV + probability_BV <= top_p)'),
        (
            'top-p of all and not of the top-k',
            'jnp.where(remaining_BV, sorted_BV, -jnp.inf), axis=-1)',
            'sorted_BV, axis=-1)',
        ),
        (
            'all rows draw the same',
            'jax.random.fold_in(jax.random.fold_in(key, tag), step)',
            'jax.random.fold_in(key, step)',
        ),
        (
            'padding of the vocabulary is drawn',
            'draw(_keys(settings, state.step), _restricted(logits_BV, settings), settings, method)',
            'draw(_keys(settings, state.step), logits_BV, settings, method)',
        ),
        (
            'log-probabilities of what may be drawn alone',
            'jax.nn.logsumexp(logits_BV, axis=1)',
            'jax.nn.logsumexp(_restricted(logits_BV, settings), axis=1)',
        ),
        (
            'the dropped tokens of a window count as read',
            "past |= {'length': length_P - dropped_P,",
            "past |= {'length': length_P,",
        ),
        ('an argmax of the last block alone', 'jnp.argmax(jnp.max(x_BNS, axis=2)', 'jnp.argmax(x_BNS[:, :, -1]'),
        (
            'an infinite logit passes',
            'jnp.isfinite(jnp.sum(logits_BV, axis=1))',
            '~jnp.isnan(jnp.max(logits_BV, axis=1))',
        ),
        ('queries, keys and values are joined with inputs of their own', " and f'{linear}/ia3_in' not in leaves", ''),
        (
            'kernels are not rounded to the dtype of the computation',
            'leaf.astype(model.dtype).swapaxes(-1, -2).astype(dtype)',
            'leaf.swapaxes(-1, -2).astype(dtype)',
        ),
    ],
    'lmtrain/inference/rollout.py': [
        (
            'the end token is no part of a completion',
            'jnp.arange(length)[None] < lengths_N[:, None]',
            'jnp.arange(length)[None] < lengths_N[:, None] - 1',
        ),
        ('a completion that was cut has ended', 'state.stopped[:count]', 'state.done[:count]'),
    ],
    'launch/slurm.py': [
        ('M:S is H:M', '[0, *parts, 0][:3]', '[*parts, 0, 0][:3]'),
        ('a job is not requeued', "'#SBATCH --requeue',", "'#SBATCH --no-requeue',"),
        ('GPUs of a node for each task', 'gpus // tasks,', 'gpus,'),
        ('a signal after the limit passes', 'limit <= values.save_seconds', 'limit < 0'),
    ],
    'launch/gke.py': [
        ('chips are hosts', 'return chips // values.chips_per_host', 'return chips'),
        ('any folder passes', ".startswith('/runs/')", ".startswith('/')"),
        (
            'a run that asks for it is not started again',
            'HOPELESS = (2, lifecycle.NON_FINITE',
            'HOPELESS = (2, lifecycle.REQUEUE, lifecycle.NON_FINITE',
        ),
    ],
    'launch/local.py': [
        ('the end by a signal is a success', 'code if code >= 0 else 128 - code', 'max(code, 0)'),
        ('who lost a peer is blamed', 'lost = (lifecycle.LOST, -signal.SIGABRT)', 'lost = ()'),
        ('GPUs go to the first process', "','.join(names[i * share : (i + 1) * share])", "','.join(names[:share])"),
        ('every exit code is tried again', 'outcome.code not in launcher.AGAIN or', ''),
    ],
    'launch/tpu.py': [
        (
            'who only lost a peer stands for the run',
            'by_itself = 0 < code < 128 and code != lifecycle.LOST',
            'by_itself = 0 < code < 128',
        ),
        ('lines are shown twice', 'elif int(number) > shown:', 'elif int(number) >= 0:'),
        ('a run on the disk of the TPU passes', "if not workdir.startswith('/'):", 'if not workdir:'),
        ('the TPU stays', 'if created and not values.keep:', 'if created and values.keep:'),
    ],
    'launch/launcher.py': [
        ('a value behind a blank is not found', 'result = text if equals else following', 'result = text'),
        ("the launcher's own flags pass", 'and name in OWN:', 'and name in ():'),
    ],
    'launch/recipe.py': [
        ("a budget joins the recipe's own", 'config.budget[key] = None', 'pass'),
    ],
    'launch/cli.py': [
        ('a path of a flag is not expanded', "known[name].value = str(local_path(value, f'--{name}'))", 'pass'),
        ('what the terminal lacks ends the run', "stream.reconfigure(errors='replace')", 'pass'),
        ('a broken pipe is an error', 'return 141', 'return 1'),
        ('an override without its value takes the next flag', "if not equals and text.startswith('--'):", 'if False:'),
    ],
    'launch/process_setup.py': [
        ('the folder of programs is made although one is named', 'if not configured and (programs', 'if (programs'),
        ("the user's variables are replaced", 'if name not in os.environ}', '}'),
    ],
    'lmtrain/data/labels.py': [
        ('classes that are numbers are sorted as text', 'tuple(sorted(whole, key=int))', 'tuple(sorted(whole))'),
        (
            "the base's order is not taken",
            'return Classes(tuple(folded[_folded(name)] for name in base), True, ())',
            'return Classes(names, True, ())',
        ),
        (
            'a number is an index though classes are numbers',
            'if (whole := _whole(name)) and not _numbered(names) and',
            'if (whole := _whole(name)) and',
        ),
        ('1.0 is another class than 1', "return match[1] if match else ''", "return match[0] if match else ''"),
        (
            'counts are those of other classes',
            "f'{_shown(name)} {counts[i]:,}' for i, name in enumerate(names)",
            "f'{_shown(name)} {counts[i + 1]:,}' for i, name in enumerate(names)",
        ),
    ],
    'lmtrain/models/attention_kernels.py': [
        ('a branch does not see its trunk', '(key_B1S == 0) | (key_B1S == query_BT1)', 'key_B1S == query_BT1'),
        (
            'the window of a branch counts the tokens of a row',
            'visible_BTS &= _in_tree(mask, start, stop, first, last)',
            'visible_BTS &= _in_tree(mask._replace(window=0), start, stop, first, last)',
        ),
        (
            'scores in the dtype of the operands',
            'return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)',
            'return jnp.einsum(equation, a, b).astype(jnp.float32)',
        ),
        (
            'the sum of the weights in their dtype',
            'keepdims=True, dtype=jnp.float32)',
            'keepdims=True, dtype=weights_BGTS.dtype).astype(jnp.float32)',
        ),
        ('the gradient of keys is not scaled', 'to_key = scale * multiply(', 'to_key = multiply('),
        ('the mean is not taken from the gradient of the weights', ' - mean_BGT1) * inverse_BGT1', ') * inverse_BGT1'),
        (
            'a window is one wider',
            'conditions.append(jnp.abs(distance) < mask.window)',
            'conditions.append(jnp.abs(distance) <= mask.window)',
        ),
        ('a query does not see itself', 'conditions.append(distance >= 0)', 'conditions.append(distance > 0)'),
        (
            'prefix keys ignore the window',
            'jnp.arange(P)[None, None] < mask.window',
            'jnp.arange(P)[None, None] < mask.window + 10_000',
        ),
        ('a block begins one key late', 'max(0, start - window + 1) if window', 'max(0, start - window + 2) if window'),
        (
            'the cap is not multiplied back',
            'score_BGTS = softcap * jnp.tanh(score_BGTS / softcap)',
            'score_BGTS = jnp.tanh(score_BGTS / softcap)',
        ),
        (
            'head h reads key-value head h mod G',
            'query_BTHK.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)',
            'query_BTHK.reshape(B, T, R, G, K).transpose(0, 3, 2, 1, 4)',
        ),
        (
            'cuDNN gets the window of a bidirectional model',
            'own_window = mask.causal and isinstance',
            'own_window = isinstance',
        ),
        ('cuDNN has its own scale', 'scale=scale,\n        is_causal', 'is_causal'),
        ('cuDNN reads no segments', 'mask=None if visible_BTS is None else visible_BTS[:, None]', 'mask=None'),
        ('every GPU has a kernel', 'if capability < (8, 0):', 'if not capability:'),
    ],
    'lmtrain/models/attention.py': [
        (
            'the scale of the model is ignored',
            "'scale': m.attention_scale or m.head_dim**-0.5",
            "'scale': m.head_dim**-0.5",
        ),
        ('keys are not rotated', 'rotate(key_BTGK, *inputs.rotary)', 'key_BTGK'),
        ('values get the norm of keys', "name != 'value'", "name != 'values'"),
    ],
    'lmtrain/models/rotary.py': [
        (
            'angles of half the frequencies',
            'half = cos.shape[-1]\n',
            'half = cos.shape[-1] // 2 * 2\n    cos, sin = jnp.roll(cos, 1, -1), jnp.roll(sin, 1, -1)\n',
        ),
        (
            'neighbouring pairs are turned',
            'first * cos - second * sin, second * cos + first * sin, rest',
            'first * cos + second * sin, second * cos - first * sin, rest',
        ),
        (
            'a document has the length of its row',
            'return 1 + longest_S[jnp.searchsorted(sorted_S, segments_T)]',
            'return 1 + jnp.max(longest_S) + 0 * segments_T',
        ),
        ('long factors one position early', 'length[..., None] > original', 'length[..., None] >= original'),
        ("'dynamic' counts from 0", '(factor * length / original - (factor - 1))', '(factor * length / original)'),
        (
            'low and high frequencies exchanged',
            '(1 - smooth) * plain / factor + smooth * plain',
            'smooth * plain / factor + (1 - smooth) * plain',
        ),
        (
            'cos and sin of YaRN are not scaled',
            '(cos, sin) if factor == 1 else (cos * factor, sin * factor)',
            '(cos, sin)',
        ),
        (
            'the ramp of YaRN is turned round',
            'plain / factor * ramp + plain * (1 - ramp)',
            'plain / factor * (1 - ramp) + plain * ramp',
        ),
    ],
    'lmtrain/models/generation.py': [
        (
            'only one end token is kept',
            'ids = value if isinstance(value, list) else []',
            'ids = value[:1] if isinstance(value, list) else []',
        ),
        (
            'the end tokens of config.json are not read',
            "+ _ids(model, END, directory / 'config.json')",
            "+ _ids(own, END, directory / 'config.json')",
        ),
        (
            'an end token that cannot be drawn is named',
            '[token for token in every if token < size]',
            '[token for token in every]',
        ),
    ],
    'lmtrain/data/chat/traced.py': [
        ('a slice has the origin of the beginning', 'self._origin[part])', 'self._origin[: len(self._origin[part])])'),
        ('pieces of a split that stand twice', 'at = self.index(piece, at)', 'at = self.index(piece)'),
        (
            'a change of case marks all as it was',
            'if len(text) == len(self) else 0',
            'if len(text) == len(self) else self._origin[:1] * len(text)',
        ),
        (
            "text of unknown origin is the template's",
            'bytes(len(text))\n\n\ndef concat',
            "b'\\1' * len(text)\n\n\ndef concat",
        ),
    ],
    'lmtrain/data/chat/template.py': [
        (
            'one character of the template is enough',
            'own = all(flags & TEMPLATE for flags in origin[begin:end])',
            'own = any(flags & TEMPLATE for flags in origin[begin:end])',
        ),
        (
            'a token may reach across the border of an answer',
            '[begun, *(bound for bound in bounds if begun < bound < end), end]',
            '[begun, end]',
        ),
        (
            'the date is that of today',
            'datetime.datetime.fromisoformat(self.date).strftime(form)',
            'datetime.datetime.now().strftime(form)',
        ),
        (
            'bytes behind a special token count as text',
            'space = text.text[special.span[0] : special.begin] + text.text[special.end : special.span[1]]',
            'space = text.text[special.span[0] : special.span[1]]',
        ),
    ],
    'lmtrain/data/chat/encoding.py': [
        (
            'the end of an answer is not learned',
            '[*ids, tokenizer.end_id], [*trained, True]',
            '[*ids, tokenizer.end_id], [*trained, False]',
        ),
        (
            'the mask is of the token itself',
            'np.array([*trained[1:], False], np.float32)',
            'np.array(trained, np.float32)',
        ),
        ('a text begins twice', 'if ids[:1] != [begin] and (template is None', 'if (template is None'),
        ('the system has no say', "first = [{'role': 'system', 'content': system}] if system else []", 'first = []'),
        (
            "the template's own mark ends no answer",
            'return after[0] if after else tokenizer.end_id',
            'return tokenizer.end_id',
        ),
    ],
    'lmtrain/data/chat/conversation.py': [
        (
            'weights of 0 are learned',
            'all(message.get(name, True) for name in TRAIN_FIELDS)',
            'all(message.get(name, True) is not None for name in TRAIN_FIELDS)',
        ),
        (
            'a tool speaks as the assistant',
            "if message['role'] == 'assistant' and",
            "if message['role'] in ('assistant', 'tool') and",
        ),
        (
            'the input of an instruction is left out',
            'for name in questions if row',
            'for name in questions[:1] if row',
        ),
        ('the prompt of a conversation is learned as well', 'and index >= first and', 'and'),
    ],
    'lmtrain/data/document.py': [
        ('a text without a split is train', "split: str = ''", "split: str = 'train'"),
    ],
    'lmtrain/data/tokenizers/subword.py': [
        (
            'the first token is END',
            'super().__init__(pieces, specials, ends[0], mask, leading)',
            'super().__init__(pieces, specials, ends[-1], mask, leading)',
        ),
        ('the file has no begin', 'self.begin_id = self.special_ids[begins[0]]', 'pass'),
        ('a special token in content passes', 'hits = tokens[np.isin(tokens, reserved)]', 'hits = tokens[:0]'),
        ('the shortest piece is cut', 'if match.start() - start >= size:', 'if match.start() >= size:'),
        ('the newline stays behind', 'start = match.start()\n    return', 'start = match.end()\n    return'),
        (
            'a Unigram has no unknown token',
            "return None if index is None else model['vocab'][index][0]",
            "return None if not index else model['vocab'][index][0]",
        ),
        (
            'merges of a hidden word stay',
            "if not {*pair, ''.join(pair)} & names.keys()]",
            'if not {*pair} & names.keys()]',
        ),
        ('the second text has the type of the first', 'encoded.type_ids[of.index(1)] if middle else 0', '0'),
        (
            'a file overrides no flags',
            "added[flags['content']] = {'id': int(token)} | flags",
            "added.setdefault(flags['content'], {'id': int(token)} | flags)",
        ),
        ('the byte 0xAD prints', '*range(161, 173)', '*range(161, 174)'),
    ],
    'lmtrain/data/tokenizers/load.py': [
        ('a damaged tokenizer passes', "if tokenizer.hash != facts['hash']:", "if tokenizer.kind != facts['kind']:"),
        ('the mask has no room', 'vocab_size - 1 - mask', 'vocab_size - 1'),
        ('the last row is too many', 'if needed < limit:', 'if needed < limit - 1:'),
        (
            'any entry beyond the table is an error',
            'needed = max(largest, *specials)',
            'needed = max(largest, tokenizer.vocab_size - 1, *specials)',
        ),
        (
            'a run that hid nothing has no mask',
            'if mask and saved.mask_id is None:',
            'if not mask and saved.mask_id is None:',
        ),
    ],
    'lmtrain/data/tokenizers/spm.py': [
        ('a word reads its second blank', "name.replace('▁', ' ').encode())", "name.replace('▁', '').encode())"),
        ('the shortest added token is found', 'sorted(self._words, key=len)[::-1]', 'sorted(self._words, key=len)'),
        ('offsets of a stretch begin at 0', 'offsets.append((at + begin, at + end))', 'offsets.append((begin, end))'),
        (
            'a text goes on with a blank',
            'return ids[len(before) :] if separate else self.encode(text)',
            'return self.encode(text)',
        ),
        ('unknown is a word', 'model.is_control(token) or model.is_unknown(token)', 'model.is_control(token)'),
    ],
    'lmtrain/data/tokenizers/to_transformers.py': [
        (
            'a pair has nothing between',
            "'pair': [*prefix, first, *between, second, *suffix]",
            "'pair': [*prefix, first, second, *suffix]",
        ),
        ('bytes are split as words', "'use_regex': False", "'use_regex': True"),
        (
            'the begin token is the end',
            "'bos_token': tokenizer.begin_id, 'eos_token': tokenizer.end_id",
            "'bos_token': tokenizer.begin_id, 'eos_token': tokenizer.begin_id",
        ),
        ('a word that is spelled like a mark stays', 'hide_special_tokens(spec, dict(missing).values())', 'pass'),
        ('only the blank divides words', "f'[{WHITE_SPACE}]+'", "'[ ]+'"),
    ],
    'lmtrain/tasks/token_preview.py': [
        (
            'the mask is that of the token',
            'learned = np.concatenate([[False], batch[',
            'learned = np.concatenate([[True], batch[',
        ),
        (
            'the target of another token',
            'decode(tokenizer, [target])',
            'decode(tokenizer, [int(batch["tokens"][row][position])])',
        ),
        ('padding is learned', "mask[batch['segment_ids'] > 0].all()", 'mask.all()'),
    ],
    'lmtrain/data/preview.py': [
        (
            'the end of a long stretch is cut off',
            '{text[: STRETCH // 2]} ... {text[-STRETCH // 2 :]}',
            '{text[:STRETCH]} ... ',
        ),
    ],
    'lmtrain/data/chat/sandbox.py': [
        ('JSON is escaped for HTML', 'ensure_ascii=False, indent', 'ensure_ascii=True, indent'),
        ("what JSON quotes is the template's", 'flags_of(value) & ~TEMPLATE | CONTENT', 'flags_of(value) | TEMPLATE'),
        ("blocks leave their line's end", 'trim_blocks=True', 'trim_blocks=False'),
        ('every generation is learned', 'if not flags_of(text) & ANSWER:', 'if not text:'),
        ('a text that joins has no origin', 'Traced(d, origin_of(d)).join', 'Traced(d, bytes(len(d))).join'),
    ],
    'lmtrain/tasks/prepare.py': [
        ('rows are hashed without their split', 'json.dumps([split, row.fields]', 'json.dumps([row.fields]'),
        (
            'the first answer alone is learned',
            "tokens, sizes = examples.tokens[1:][learned], examples.flat['bytes'][learned]",
            "tokens, sizes = examples.tokens[:-1], examples.flat['bytes'][learned]",
        ),
        (
            'buckets do not change the fingerprint',
            'shares, config.shots, config.lengths or config.buckets, config.pack)',
            'shares, config.shots, config.pack)',
        ),
    ],
    'lmtrain/tasks/task_rows.py': [
        (
            'the first rows of a class',
            "np.argsort(_draws('shots', [row.fields for row in rows]), kind='stable').tolist()",
            "range(len(_draws('shots', [row.fields for row in rows])))",
        ),
        ('one class is enough', 'if len(classes.names) < 2:', 'if len(classes.names) < 1:'),
        (
            'shots of all classes together',
            'for group in chosen.values() for index in group[: config.shots]',
            'for index in sum(chosen.values(), [])[: config.shots]',
        ),
        ('the tail is train', 'if draw >= second]', 'if draw >= first]'),
    ],
    'lmtrain/inference/prompts.py': [
        ('a system text of its own is doubled', "'' if own else system", 'system'),
        ('the developer is no system', "in ('system', 'developer')", "in ('system',)"),
        ('the first answer', 'which: int | None = -1', 'which: int | None = 0'),
        ('the first message is shown', "prompt.messages[-1]['content']", "prompt.messages[0]['content']"),
        ('the tools are left out', "'' if own else system, prompt.tools)", "'' if own else system)"),
        (
            'an answer is part of its prompt',
            "if message['role'] != 'assistant'), default=0",
            "if message['role'] != 'none'), default=0",
        ),
    ],
    'lmtrain/training/samples.py': [
        ('an answer begins with its prompt', 'if chats else whole', 'if not chats else whole'),
        (
            'the prompt without its first token',
            'tokenizer.decode([*prompt[1:], *ids])',
            'tokenizer.decode([*prompt, *ids])',
        ),
        ('a prompt fills the row', 'if len(ids) < context:', 'if len(ids) <= context:'),
        ('the last answer is asked for', 'prompts.before_answer(dialogue, 0)', 'prompts.before_answer(dialogue, -1)'),
        (
            'texts that were cut at the context ended',
            'reasons.count("stop")',
            '(reasons.count("stop") + reasons.count("context"))',
        ),
    ],
    'lmtrain/training/export.py': [
        (
            'the scratch model ends at its begin',
            "'eos_token_id': tokenizer.end_id}",
            "'eos_token_id': tokenizer.begin_id + 1}",
        ),
        (
            'a file is written over',
            'if to.is_dir() and any(entry != partial for entry in to.iterdir()):',
            'if to.is_file():',
        ),
        ('heads are no part of the model', "if not path.startswith('heads/')}", '}'),
        (
            'padding is in the text',
            'if token is not None and token not in inside), None)',
            'if token is not None), None)',
        ),
        ('the classes are not written', 'like=like, labels=labels)', 'like=like)'),
        ('PEFT gets another class', 'kind = task.peft_type if model.causal', "kind = 'TOKEN_CLS' if model.causal"),
    ],
    'lmtrain/training/load.py': [
        ('the template ends no answer', '[*run.end_ids, *([end] if end is not None else [])]', '[*run.end_ids]'),
        ('a name is needed for messages', 'template is None and chats', 'template is None and not chats'),
        ('another corpus passes', 'if saved.get(name, value) != value:', 'if name not in saved:'),
        ('the scores of a task are left out', 'if run.task.score:', 'if not run.task.score:'),
        ("the template's date is today", "(run.template.date if run.template else '') or", "'' or"),
    ],
    'lmtrain/training/run.py': [
        ('tokens are those of the next step', 'name: steps * each', 'name: (steps + 1) * each'),
        ('rollouts are free', 'outside = sum(parts.values())', 'outside = self.reference_flops'),
        (
            'tokens of an epoch and not of its bytes',
            '* split.num_tokens / split.num_bytes',
            '* split.num_bytes / split.num_tokens',
        ),
        ('all of the memory is logits', 'self.device_memory / 2', 'self.device_memory * 2'),
        ('a base changes unseen', "'base': self.initial.base.hash if self.initial.base else ''", "'base': ''"),
        ('a reward changes unseen', "'reward': self.reward_hash", "'reward': ''"),
        (
            'hidden tokens are rounded down',
            'round(rate * self.config.data.seq_len)',
            'int(rate * self.config.data.seq_len)',
        ),
        (
            'accumulated rows are all in memory',
            'config.data.batch_size // config.optimizer.accumulate // replicas',
            'config.data.batch_size // replicas',
        ),
        ('arithmetic of one member', '(max(len(self.initial.members), 1) * part for part', '(part for part'),
        ('the date is not written down', "self.template.date if self.template else ''", "''"),
    ],
    'lmtrain/training/initial.py': [
        (
            "members' own seeds are ignored",
            '*(member.seed for member in self.members)',
            '*(index for index, member in enumerate(self.members))',
        ),
        (
            'the adapter draws what the model draws',
            'self.method.start(jax.random.fold_in(key, 2), params)',
            'self.method.start(key, params)',
        ),
        ('frozen leaves in float32', 'x.astype(dtype) if path in of_base else x for', 'x for'),
        ('a checkpoint holds the base', 'if path not in of_base}', '}'),
        (
            'what learns stays in bfloat16',
            'lambda leaf: leaf.astype(jnp.float32), trainable',
            'lambda leaf: leaf, trainable',
        ),
    ],
    'lmtrain/training/build.py': [
        (
            'classes of another base are kept',
            'labels = base.labels if has_head else ()',
            'labels = base.labels if base else ()',
        ),
        ('other classes take the head', 'corpus.labels_of_base or not task.has_classes', 'True'),
        (
            'the bias of a decoder',
            'bias = not head.model.causal or not task.pools_rows',
            'bias = not head.model.causal',
        ),
    ],
    'lmtrain/training/checks.py': [
        ('heads divide by nothing', 'if model[field] % tensor:', 'if model[field] < tensor:'),
        ('seeds have no limit', 'if not 0 <= config.seed < 2**32:', 'if not 0 <= config.seed:'),
        (
            'causal models read masked tokens',
            'if not task.reads_rows and causal == bool(mask_rate):',
            'if not task.reads_rows and not causal and not mask_rate:',
        ),
        ('prompts stand before packed rows', 'config.data.isolate and not config.data.mask_rate', 'False'),
    ],
    'lmtrain/training/train.py': [
        ('lines after the checkpoint stay', 'workdir.truncate_jsonl(directory / name, resumed_from or -1)', 'pass'),
        (
            'the cost of a finished run is that of its last start',
            "results['cost'] = workdir.read(path).get('cost', results['cost'])",
            'pass',
        ),
        (
            'the losses before are those after',
            'if loop.step:',
            'if False:',
        ),
        (
            'a code change passes on other processes',
            "'code': multihost.source_hash()} | versions()",
            "'code': ''} | versions()",
        ),
    ],
    'lmtrain/plan/dry_run.py': [
        ('the shortest batches', '[-1]  # of the longest batches', '[0]  # of the longest batches'),
        (
            'arithmetic of all devices',
            'planned = run.flops_per_step.executed / run.mesh.size',
            'planned = run.flops_per_step.executed',
        ),
        (
            'a batch of another seed is shown',
            "run.stream('train', shuffle=True).batch(0)",
            "run.stream('train').batch(0)",
        ),
    ],
    'lmtrain/report/provenance.py': [
        (
            'quotes of the command are lost',
            "shlex.join(['lmtrain', *sys.argv[1:]])",
            "' '.join(['lmtrain', *sys.argv[1:]])",
        ),
        ('devices of this process', '{len(devices)} x', '{jax.local_device_count()} x'),
    ],
    'lmtrain/training/state.py': [
        ('frozen leaves have moments', 'opt_state=tx.init(trained)', 'opt_state=tx.init(params)'),
        (
            'the frozen parameters hide those that learn',
            'tree.join(self.frozen, self.trainable)',
            'self.frozen or self.trainable',
        ),
        ('a state begins at step 1', 'step=jnp.zeros((), jnp.int32)', 'step=jnp.ones((), jnp.int32)'),
    ],
    'lmtrain/models/virtual_tokens.py': [
        ('ReLU before the first layer', '(jax.nn.relu(x_PD) if i else x_PD)', 'jax.nn.relu(x_PD)'),
        (
            'values and keys of the network exchanged',
            "attention = params[name]['attention'] | {'prefix_key': key, 'prefix_value': value}",
            "attention = params[name]['attention'] | {'prefix_key': value, 'prefix_value': key}",
        ),
        ('every segment reads the first layers', 'first += n', 'first += 0'),
        ('the text is not shifted', "batch['positions'] + own.shape[0]", "batch['positions']"),
        ('a prompt enters twice', 'if own is None or past:', 'if own is None:'),
        (
            'the prompt is a document of its own',
            "jnp.pad(batch['segment_ids'], front, mode='edge')",
            "jnp.pad(batch['segment_ids'], front, constant_values=7)",
        ),
    ],
    'lmtrain/models/settings.py': [
        (
            'a layer that sees all has a window',
            'bool(self.window) and layer not in self.global_layers',
            'bool(self.window)',
        ),
        (
            'learned positions reach behind their end',
            'length > self.max_len - self.position_offset',
            'length > self.max_len',
        ),
        (
            'an odd part of a head turns',
            "dimension = 'rotary_dim' if self.rotary_dim else 'head_dim'",
            "dimension = 'head_dim'",
        ),
        (
            'a kernel reads a window of some layers',
            'if self.global_layers and self.unroll != self.num_layers else',
            'if self.global_layers else',
        ),
        ('dropout of 1 passes', 'if not 0 <= self.dropout < 1:', 'if not 0 <= self.dropout <= 1:'),
    ],
    'lmtrain/models/families/bert.py': [
        ('types of sentences are one', "fields.take('type_vocab_size', 2)", "fields.take('type_vocab_size', 1)"),
        (
            'the tanh form',
            "fields.choose('hidden_act', UNGATED_NAMES, 'gelu')",
            "fields.choose('hidden_act', UNGATED_NAMES, 'gelu_new')",
        ),
        ("TensorFlow's beta is the scale", "for name in ('gamma', 'beta')]", "for name in ('beta', 'gamma')]"),
        ('epsilon of every norm', "fields.take('layer_norm_eps', 1e-12)", "fields.take('layer_norm_eps', 1e-5)"),
        ('untied biases are one', 'biases if model.tied else reversed(biases)', 'biases'),
        ('the pooler has no tanh', "'classify': {'head_activation': 'tanh'}, 'tag'", "'classify': {}, 'tag'"),
    ],
    'lmtrain/models/families/roberta.py': [
        ('positions begin at the padding', "'position_offset': padding + 1}", "'position_offset': padding}"),
        ('padding is written as its offset', 'model.position_offset - 1}', 'model.position_offset}'),
        (
            'the head of the classes is the dense one',
            "'classifier.dense': 'task_head/dense', 'classifier.out_proj': 'task_head/out'",
            "'classifier.out_proj': 'task_head/dense', 'classifier.dense': 'task_head/out'",
        ),
    ],
    'lmtrain/models/families/gpt2.py': [
        ('the feed-forward is three times as wide', 'or 4 * width', 'or 3 * width'),
        (
            'scores are never scaled',
            "0.0 if fields.take('scale_attn_weights', True) else 1.0",
            "1.0 if fields.take('scale_attn_weights', True) else 0.0",
        ),
        ('key before query', "for name in ('query', 'key', 'value')]", "for name in ('key', 'query', 'value')]"),
        ('the scale is not written', "'scale_attn_weights': not model.attention_scale", "'scale_attn_weights': True"),
        ('an untied head is not read', 'return tensors + ([] if model.tied else', 'return tensors + ([] if True else'),
    ],
    'lmtrain/models/families/olmo2.py': [
        (
            "the norm's epsilon of the published sizes",
            'llama.common(fields, eps=1e-5) | PLACES',
            'llama.common(fields, eps=1e-6) | PLACES',
        ),
        (
            'norms of both branches exchanged',
            "{'attention_norm': 'post_attention_layernorm', 'mlp_norm': 'post_feedforward_layernorm'}",
            "{'attention_norm': 'post_feedforward_layernorm', 'mlp_norm': 'post_attention_layernorm'}",
        ),
        (
            'the output has no bias',
            "biased = ('query', 'key', 'value', 'output') if",
            "biased = ('query', 'key', 'value') if",
        ),
        ('norms over each head', "'qk_norm_over': 'projection'", "'qk_norm_over': 'head'"),
    ],
    'launch/model_flags.py': [
        (
            'a step is text',
            'int(flag_values.step) if flag_values.step.isdecimal()',
            'flag_values.step if flag_values.step.isdecimal()',
        ),
        ('both models pass', 'elif flag_values.workdir:', 'elif flag_values.workdir and flag_values.adapter:'),
        ('remarks are results', "print(f'{dim}{lines}{plain}', file=sys.stderr)", "print(f'{dim}{lines}{plain}')"),
        (
            'the system text is not looked through',
            'special_names([*prompts, system], run.tokenizer)',
            'special_names(prompts, run.tokenizer)',
        ),
        ('a system text without a template passes', 'chats = bool(system) or not all(', 'chats = not all('),
    ],
    'launch/show.py': [
        (
            'the mark of a field that is as it was',
            'in standard and resolved[key] != standard[key]]',
            'in standard and resolved[key] == standard[key]]',
        ),
        (
            'what was typed is not marked',
            "overridden = {text.partition('=')[0] for text in values.override}",
            "overridden = {text.partition('=')[2] for text in values.override}",
        ),
        (
            'the note of the field before',
            'field[2] or heading)',
            'heading or field[2])',
        ),
        ('fractions of ten digits are cut', 'value:.6g', 'value:.2g'),
    ],
    'launch/generate.py': [
        ('texts of the first prompt alone', 'current += 1', 'current += 2'),
        ('the rows of a .jsonl are prompts as they stand', 'if rows else line', 'if not rows else line'),
        (
            'control characters steer the terminal',
            'if sys.stdout.isatty() else text',
            'if not sys.stdout.isatty() else text',
        ),
    ],
    'launch/evaluate.py': [
        (
            'demonstrations are drawn though none is asked for',
            'or (every if int(shots) else [])',
            'or every',
        ),
        (
            'the limit is off by one',
            'every[: values.limit or None]',
            'every[: values.limit and values.limit + 1 or None]',
        ),
        (
            'the choices are one field',
            "values.choices.split(',') if ',' in values.choices else values.choices",
            'values.choices',
        ),
        (
            'the step is not read',
            'api.evaluate(workdir, values.split, step=step, member=member, overrides',
            'api.evaluate(workdir, values.split, overrides',
        ),
        ('the system text is dropped', 'system=values.system,', "system='',"),
    ],
    'launch/output_files.py': [
        ('a folder that is not there', 'if not file.parent.is_dir():', 'if file.parent.is_file():'),
    ],
    'launch/predict.py': [
        ('the columns of the rows are lost', '[row | new for', '[new for'),
        ('cut rows are not counted', 'if cut:', 'if cut > len(rows):'),
    ],
    'launch/chat.py': [
        (
            'an interrupt ends the program',
            'except KeyboardInterrupt:\n        if pieces:',
            'except OSError:\n        if pieces:',
        ),
        ('a path is a command', 'name[1:].isalpha()', 'len(name) > 1'),
    ],
    'lmtrain/inference/chat.py': [
        ('no room for the answer', 'len(ids) + room <= self.context + 1', 'len(ids) <= self.context'),
        ('dropped turns are not counted', 'dropped + 1', 'dropped'),
        ('an answer without text is kept', 'if answer or self.finish_reason:', 'if True:'),
    ],
    'lmtrain/data/row_files.py': [
        (
            'objects among other values are divided',
            'not all(isinstance(value, Mapping) and value',
            'not any(isinstance(value, Mapping) and value',
        ),
        ('a column of the rows is replaced', 'while (chosen :=', 'if (chosen :='),
    ],
    'lmtrain/training/model_card.py': [
        ('the home directory is named', ".replace(str(Path.home()), '~')", ''),
        ('figures of another step', "'' if last == step", "'' if True"),
    ],
    'launch/export.py': [
        ('the step is not read', ', step=step, member', ', member'),
        ('an adapter is always merged', 'merge=values.merge', 'merge=True'),
    ],
    'launch/train.py': [
        (
            'runs have one folder',
            "values.workdir or f'runs/{recipe.stem(values.config)}'",
            "values.workdir or 'runs/train'",
        ),
        ('another exit code for a failure', 'sys.excepthook = lifecycle.exit_on_exception', 'pass'),
        ('SIGTERM before the first step is not taken', 'signal.signal(signal.SIGTERM, lifecycle.exit_requeue)', 'pass'),
    ],
    'launch/plan.py': [
        ('two budgets pass', 'if len(budgets) > 1:', 'if len(budgets) > 2:'),
        (
            'money buys hours of one chip',
            'values.money / config.plan.price / target.chips',
            'values.money / config.plan.price',
        ),
        ('hours at the full peak', 'return hours * 3600 * config.plan.mfu *', 'return hours * 3600 *'),
        (
            'what is copied has no overrides',
            "[f'lmtrain train --config={values.config}', *words]",
            "[f'lmtrain train --config={values.config}']",
        ),
    ],
    'lmtrain/cost/budget.py': [
        ('a budget is rounded down', 'math.ceil(left / {', 'int(left / {'),
    ],
    'lmtrain/tasks/pooling.py': [
        ('padding is pooled', "outputs, batch['segment_ids'], pool", 'outputs, None, pool'),
    ],
    'lmtrain/training/resolve.py': [
        ('the vocabulary of an older run is not taken', 'padded == size +', 'padded != size +'),
        ('the date of the folder is not taken', "config.task.date = config.task.date or saved['task']['date']", 'pass'),
    ],
    'lmtrain/api/texts.py': [
        ("the recipe's settings are ignored", '(model.config or base.get_config()).sample', 'base.get_config().sample'),
        ('0 counts as not given', 'section[name] if value is None else value', 'value or section[name]'),
    ],
    'lmtrain/data/token_files.py': [
        ('characters for bytes', 'self.num_bytes += len(text)', 'self.num_bytes += len(text.decode())'),
    ],
}

# Faults above that change no result, and why.
EQUIVALENT = {
    (
        'lmtrain/data/tokenizers/to_transformers.py',
        'bytes are split as words',
    ): 'there are no merges, so each byte is a token in any word'
}
