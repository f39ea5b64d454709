"""starts a run in a Kubernetes cluster as a JobSet: one pod per TPU host, restarted together.

The image has lmtrain installed (`pip install '.[tpu,parquet]'` in a copy of this tree; parquet for FineWeb); --claim
is a PersistentVolumeClaim that every pod can write (ReadWriteMany), mounted at /runs. The cluster needs the JobSet
controller. A stopped pod has 300 s to save the step, with --spot only the 15 s that GKE grants; if this is too short,
the run resumes from the last checkpoint (config.checkpoint.every_steps).

lmtrain gke --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=16x16 --claim=runs \\
            -- train --config=configs/pretrain_gpt2.py --workdir=/runs/gpt2
"""

import json
import math
import re
import subprocess

from absl import flags

from launch import launcher
from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle

FLAGS = flags.FlagValues()
launcher.define(FLAGS, retries=20)
for name, default, help in (
    ('name', 'lmtrain', 'name of the JobSet'),
    ('namespace', 'default', 'namespace of the JobSet'),
    ('image', '', 'container image, such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/lmtrain:TAG'),
    ('accelerator', '', 'cloud.google.com/gke-tpu-accelerator of the nodes, such as tpu-v5-lite-podslice'),
    ('topology', '', 'cloud.google.com/gke-tpu-topology of the nodes, such as 16x16'),
    ('claim', '', 'PersistentVolumeClaim of the runs, mounted at /runs'),
):
    flags.DEFINE_string(name, default, help, flag_values=FLAGS)
flags.DEFINE_integer('chips_per_host', 4, 'TPU chips of a node', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer('slices', 1, 'number of slices', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool('spot', False, 'on spot nodes', flag_values=FLAGS)

PORTS = (8471, 8482)  # of the TPU runtime in a slice, and of jax's process 0 (jax/_src/clusters/cloud_tpu_cluster.py)
SLICES = 8080  # of the runtime if there are several slices (MEGASCALE)
HOPELESS = (2, lifecycle.NON_FINITE, lifecycle.DISK)  # exit codes that a restart does not fix


def run(values: flags.FlagValues) -> None:
    """Creates the JobSet. Raises InputError naming a flag, or the reason of kubectl."""
    words = launcher.train(values, 'gke')
    text = json.dumps(manifest(values, words), indent=1)  # JSON is YAML, and needs no quoting by hand
    if values.print_only:
        print(f"kubectl create -f - <<'END_OF_MANIFEST'\n{text}\nEND_OF_MANIFEST")
        return
    launcher.need('kubectl', 'https://kubernetes.io/docs/tasks/tools')
    # Not `apply`: a JobSet that has ended would be "unchanged" and not start.
    done = subprocess.run(
        ['kubectl', 'create', '-f', '-'], input=text, capture_output=True, encoding='utf-8', errors='replace'
    )
    where = f'--namespace={values.namespace}'
    if done.returncode:
        reason = ' '.join(done.stderr.split())
        if '(AlreadyExists)' in reason:
            reason += f'; take another --name, or delete the old one: kubectl delete jobset {values.name} {where}'
        raise InputError(f'kubectl refuses: {reason}')
    first = f'jobset.sigs.k8s.io/jobset-name={values.name},batch.kubernetes.io/job-completion-index=0'
    print(done.stdout.strip())
    print(f'  kubectl get jobset {values.name} {where}')
    print(f'  kubectl logs --follow --selector={first} {where}')
    print(f'  kubectl delete jobset {values.name} {where}')


def manifest(values: flags.FlagValues, words: list[str]) -> dict:
    """The JobSet (jobset.x-k8s.io/v1alpha2). Raises InputError naming a flag."""
    hosts = hosts_per_slice(values)
    if not (launcher.value(words, 'workdir') or '').startswith('/runs/'):
        raise InputError(
            f'--workdir={launcher.value(words, "workdir") or ""!r} after --: a folder on the claim, such as '
            '--workdir=/runs/gpt2; anything else is lost with the pod'
        )
    # A pod that fails ends its Job; the JobSet then restarts all Jobs, unless the exit code is hopeless.
    hopeless = {'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': sorted(HOPELESS)}}
    job = {
        'parallelism': hosts,
        'completions': hosts,
        'completionMode': 'Indexed',
        'backoffLimit': 0,
        'podFailurePolicy': {'rules': [hopeless]},
        'template': {'spec': pod(values, words)},
    }
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': values.name,
            'namespace': values.namespace,
            # A slice is a node pool: two Jobs never share one.
            'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
        },
        'spec': {
            'failurePolicy': {
                'maxRestarts': values.retries,
                'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
            },
            'replicatedJobs': [{'name': 'slice', 'replicas': values.slices, 'template': {'spec': job}}],
        },
    }


def hosts_per_slice(values: flags.FlagValues) -> int:
    """Pods of a slice. Raises InputError naming a flag that is missing or malformed."""
    for name in ('image', 'accelerator', 'topology', 'claim'):
        if not values[name].value:
            raise InputError(f'--{name} is missing: {values[name].help}')
    if not re.fullmatch('[a-z]([-a-z0-9]{0,38}[a-z0-9])?', values.name):
        raise InputError(f'--name={values.name!r}: at most 40 small letters, digits and -, a letter first')
    if not re.fullmatch(r'\d+(x\d+){1,2}', values.topology):
        raise InputError(f'--topology={values.topology!r}: chips along each side, such as 16x16 or 4x4x4')
    chips = math.prod(map(int, values.topology.split('x')))
    if not chips or chips % values.chips_per_host:
        raise InputError(f'--topology={values.topology} is no multiple of --chips_per_host={values.chips_per_host}')
    return chips // values.chips_per_host


def pod(values: flags.FlagValues, words: list[str]) -> dict:
    """The specification of a pod: one process on one TPU host."""
    tpus = {'google.com/tpu': values.chips_per_host}
    ports = [*PORTS, *([SLICES] if values.slices > 1 else [])]
    container = {
        'name': 'train',
        'image': values.image,
        'command': ['lmtrain', *words, '--distributed'],
        # For the reader: no port needs to be opened. Nor is hostNetwork needed, which some set for several slices
        # (GoogleCloudPlatform/kubernetes-engine-samples, llm-training-jax-tpu-gemma3/training_multislice_jobset.yaml).
        'ports': [{'containerPort': port} for port in ports],
        'resources': {'requests': tpus, 'limits': tpus},
        'volumeMounts': [{'name': 'runs', 'mountPath': '/runs'}],
    }
    selector = {
        'cloud.google.com/gke-tpu-accelerator': values.accelerator,
        'cloud.google.com/gke-tpu-topology': values.topology,
    }
    return {
        'restartPolicy': 'Never',
        # SIGTERM saves the step. GKE leaves 15 of the 30 s of a spot node to pods that are not the system's
        # (https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms).
        'terminationGracePeriodSeconds': 15 if values.spot else 300,
        'nodeSelector': selector | ({'cloud.google.com/gke-spot': 'true'} if values.spot else {}),
        'containers': [container],
        'volumes': [{'name': 'runs', 'persistentVolumeClaim': {'claimName': values.claim}}],
    }
