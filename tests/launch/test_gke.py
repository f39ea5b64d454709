"""The JobSet of a run, and the input of kubectl."""

import json
import stat

import pytest

from launch import cli, gke

NASTY = "/runs/a b $(touch pwned) 'c'"
TPUS = ['--image=me/lmtrain:1', '--accelerator=tpu-v5-lite-podslice', '--topology=16x16', '--claim=shared']
TRAIN = ['--', 'train', '--config=tiny', f'--workdir={NASTY}']


def manifest(*argv):
    values = cli.parse(gke, [*TPUS, *argv, *TRAIN])
    return gke.manifest(values, values.command)


def test_one_pod_per_host_and_common_restart():
    found = manifest('--slices=2', '--retries=7', '--spot')
    assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    (jobs,) = found['spec']['replicatedJobs']
    job = jobs['template']['spec']
    assert (jobs['replicas'], job['parallelism'], job['completions'], job['backoffLimit']) == (2, 64, 64, 0)
    pod = job['template']['spec']
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
        'cloud.google.com/gke-tpu-topology': '16x16',
        'cloud.google.com/gke-spot': 'true',
    }
    (container,) = pod['containers']
    assert container['command'] == ['lmtrain', 'train', '--config=tiny', f'--workdir={NASTY}', '--distributed']
    assert [port['containerPort'] for port in container['ports']] == [8471, 8482, 8080]
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    assert pod['restartPolicy'] == 'Never'  # what podFailurePolicy asks for


def test_termination_grace_period():
    pods = [manifest(*argv)['spec']['replicatedJobs'][0]['template']['spec']['template'] for argv in ([], ['--spot'])]
    assert [pod['spec']['terminationGracePeriodSeconds'] for pod in pods] == [300, 15]


def test_42_restarts_and_hopeless_codes_fail():
    spec = manifest('--retries=7')['spec']
    (rule,) = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules']
    assert rule == {'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [2, 3, 4]}}
    assert spec['failurePolicy'] == {
        'maxRestarts': 7,
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
    }


def test_kubectl_receives_the_manifest(tmp_path, monkeypatch, capsys):
    (tmp_path / 'kubectl').write_text(f'#!/bin/sh\necho "$*"\nexec cat >{tmp_path}/manifest\n')
    (tmp_path / 'kubectl').chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert cli.main(['gke', *TPUS, *TRAIN]) == 0
    assert capsys.readouterr().out.startswith('create -f -\n')
    assert json.loads((tmp_path / 'manifest').read_text()) == manifest()


def test_existing_jobset_is_an_error_with_a_way_out(tmp_path, monkeypatch, capsys):
    """`apply` would call a JobSet that has ended "unchanged", and start nothing."""
    there = 'Error from server (AlreadyExists): error when creating "STDIN": jobsets.jobset.x-k8s.io "x" already exists'
    (tmp_path / 'kubectl').write_text(f"#!/bin/sh\n[ $1 = create ] || exit 0\necho '{there}' >&2\nexit 1\n")
    (tmp_path / 'kubectl').chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert cli.main(['gke', *TPUS, '--name=x', '--namespace=me', *TRAIN]) == 2
    out, said = capsys.readouterr()
    assert (out, said.count('\n')) == ('', 1)
    assert said.endswith('kubectl delete jobset x --namespace=me\n')


def test_print_only_prints_the_command(capsys):
    assert cli.main(['gke', *TPUS, '--print_only', *TRAIN]) == 0
    first, *text, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("kubectl create -f - <<'END_OF_MANIFEST'", 'END_OF_MANIFEST')
    assert json.loads('\n'.join(text)) == manifest()


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (TRAIN, ['--image is missing']),
        ([*TPUS, '--topology=16*16', *TRAIN], ["--topology='16*16'", '4x4x4']),
        ([*TPUS, '--topology=2x1', *TRAIN], ['--topology=2x1', '--chips_per_host=4']),
        ([*TPUS, '--name=Run', *TRAIN], ["--name='Run'"]),
        ([*TPUS, '--', 'train', '--config=tiny'], ['--workdir', '/runs/gpt2']),
        ([*TPUS, '--', 'train', '--config=tiny', '--workdir=/tmp/gpt2'], ["--workdir='/tmp/gpt2'", '/runs/gpt2']),
        ([*TPUS, '--', 'train', '--config=tiny', '--workdir=/runs2/gpt2'], ["--workdir='/runs2/gpt2'"]),
        (TPUS, ['nothing after --', 'lmtrain gke']),
        ([*TPUS, *TRAIN], ['kubectl is not on PATH', 'https://']),
    ],
)
def test_invalid_flags_are_one_line(argv, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert cli.main(['gke', *argv]) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert all(part in said for part in parts)
