"""The report in headless Chromium: it renders at two widths without errors, requests or covered labels."""

import base64
import contextlib
import json
import os
import shutil
import subprocess

import pytest

from lmtrain.compare import report

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--remote-debugging-pipe',
    '--no-first-run',
    '--disable-extensions',
]
EVENTS = ('Network.requestWillBeSent', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded')

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed')


class Browser:
    """A tab of Chromium, driven by the DevTools protocol over pipes: messages of JSON that end with a zero byte."""

    def __init__(self, commands, answers):
        self.commands, self.answers, self.events, self.buffer, self.number = commands, answers, [], b'', 0
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = {'sessionId': self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']}
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')

    session = {}

    def call(self, method, **params):
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params} | self.session
        os.write(self.commands, json.dumps(message).encode() + b'\0')
        while (answer := self.read()).get('id') != self.number:
            self.events.append(answer)
        assert 'error' not in answer, answer
        return answer['result']

    def read(self):
        while b'\0' not in self.buffer:
            chunk = os.read(self.answers, 1 << 16)
            assert chunk, 'Chromium ended'
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)

    def open(self, path, width, dark=False):
        """Loads a file at a width; returns the events of EVENTS until it was loaded."""
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.call('Emulation.setEmulatedMedia', features=[scheme])
        self.call(
            'Emulation.setDeviceMetricsOverride', width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        self.events.clear()
        self.call('Page.navigate', url=path.as_uri())
        while not any(event.get('method') == 'Page.loadEventFired' for event in self.events):
            self.events.append(self.read())
        self.evaluate('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
        return [event for event in self.events if event.get('method') in EVENTS]

    def evaluate(self, expression):
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def screenshot(self, path):
        shot = self.call('Page.captureScreenshot', captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot['data']))


@contextlib.contextmanager
def chromium(profile):
    """A `Browser`, which is ended with the block."""
    (command_end, commands), (answers, answer_end) = os.pipe(), os.pipe()
    line = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
    process = subprocess.Popen(
        ['bash', '-c', line, CHROMIUM, *FLAGS, f'--user-data-dir={profile}'],
        pass_fds=(command_end, answer_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_end)
    os.close(answer_end)
    try:
        yield Browser(commands, answers)
    finally:
        os.close(commands)  # Chromium ends with its pipe
        process.wait(timeout=20)
        os.close(answers)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('profile')) as tab:
        yield tab


@pytest.fixture(scope='module')
def pages(comparison, tmp_path_factory):
    """{name: report.html}: of ten arms, and of twenty with similar results and long names."""
    prompts = {f'prompt {i}': ('prompt', 0.4 + i / 90, 0.5 + i / 70, 0, i * 1e11, 1e9 + i * 1e9) for i in range(9)}
    trained = {f'adapter {i}': ('train', 0.2 + i / 90, 0.5 + i / 60, 10**i, 2e13 + i * 1e12, 1e9) for i in range(9)}
    names = {'an adapter with a name that no plot has room for': ('train', 0.5, 0.8, 10**9, 1e14, 1e9)}
    names |= {'a prompt with <b>a name</b> that no plot has room for': ('prompt', 0.6, 0.75, 0, 1e13, 1e11)}
    paths = {}
    for name, results in {'plain': comparison(), 'crowded': comparison(arms=prompts | trained | names)}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / 'results.json').write_text(json.dumps(results))
        paths[name] = report.write(folder)
    return paths


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1200, 400])
@pytest.mark.parametrize('name', ['plain', 'crowded'])
def test_page_renders(browser, pages, name, width, dark):
    page = pages[name]
    events = browser.open(page, width, dark)
    requests = [event['params']['request']['url'] for event in events if event['method'] == EVENTS[0]]
    assert [url for url in requests if not url.startswith('data:')] == [page.as_uri()]
    assert [event for event in events if event['method'] != EVENTS[0]] == []
    assert browser.evaluate('document.documentElement.scrollWidth') <= width  # wide tables scroll in their own boxes
    covered = browser.evaluate(COVERED)
    assert not covered


# Pairs of texts of one figure whose boxes overlap, and texts that reach out of their figure.
COVERED = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const shared = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  const covers = (a, b) => shared(a, b, 'left', 'right') > 1 && shared(a, b, 'top', 'bottom') > 3;
  const pairs = texts.flatMap(([one, a], i) =>
    texts.slice(i + 1).filter(([, b]) => covers(a, b)).map(([other]) => one + ' / ' + other));
  const out = texts.filter(([, a]) => a.left < frame.left - 2 || a.right > frame.right + 2).map(([text]) => text);
  return [...pairs, ...out];
})
"""
