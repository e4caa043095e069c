"""What a terminal of 80 columns and a log file show of a run."""
import functools
import io
import re
import sys

import pytest

from ssd4rec_jax.show.terminal import METRICS, OneOfMany, Terminal


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    encoding = 'utf-8'

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch):
    """(clock, terminal, what it has written) of a terminal of 80 columns or of a file."""

    def make(tty: bool, of=Terminal):
        stream = Tty() if tty else io.StringIO()
        monkeypatch.setattr(sys, 'stdout', stream)
        monkeypatch.setenv('COLUMNS', '80')
        monkeypatch.setenv('TERM', 'xterm')
        clock = Clock()
        return clock, of(clock=clock), stream

    return make


def epochs(clock, terminal, count, seconds_of_step=1.0, steps=4):
    for epoch in range(1, count + 1):
        terminal.epoch(epoch, 0, steps, 300, 9)
        for _ in range(steps):
            clock.now += seconds_of_step
            terminal.step(1.5, 1000.0)
        clock.now += 2.0


def test_time_left_is_that_of_the_epoch_and_from_the_third_one_of_the_run(shown):
    clock, terminal, _ = shown(tty=False)
    epochs(clock, terminal, 2)
    terminal.epoch(3, 0, 4, 300, 7)
    assert terminal._pace.run_left() == ', the run at most 0:29:42'  # 297 more epochs of 6 s
    clock.now += 10
    terminal.step(1.0, 1.0)
    assert terminal._pace.epoch_left() == ', 0:00:30 left'


def test_before_the_third_epoch_of_a_session_nothing_is_said_of_the_run(shown):
    clock, terminal, _ = shown(tty=False)
    epochs(clock, terminal, 1)
    terminal.epoch(2, 0, 4, 300, 7)
    assert terminal._pace.run_left() == ''


def test_compilation_is_no_time_of_a_step(shown):
    clock, terminal, stream = shown(tty=False)
    terminal.epoch(1, 0, 3, 10, 10)
    with terminal.compiling('the train step'):
        clock.now += 100
    clock.now += 2
    terminal.step(1.0, 1.0)
    assert terminal._pace.epoch_left() == ', 0:00:04 left'
    assert 'XLA compiled the train step in 100.0 s' in stream.getvalue()


def test_a_log_file_gets_a_line_each_minute(shown):
    clock, terminal, stream = shown(tty=False)
    terminal.epoch(1, 0, 100, 300, 10)
    for _ in range(13):
        clock.now += 10
        terminal.step(1.5, 1234.0)
    lines = stream.getvalue().splitlines()
    assert lines == [
        f'epoch 1 of at most 300, patience 10: step {step} of 100, loss 1.5000, 1,234 targets/s, {left} left'
        for step, left in ((6, '0:15:40'), (12, '0:14:40'))
    ]


def test_one_training_of_many_has_a_line_each_minute_with_what_it_reached(shown):
    clock, terminal, stream = shown(tty=False, of=functools.partial(OneOfMany, '[2/9] gru4rec-2024'))
    terminal.note('a note')
    with terminal.compiling('the train step'):
        clock.now += 50
    for epoch, (kind, found) in enumerate([('valid', 0.05), ('valid', 0.0412), ('test', 0.7)], start=1):
        terminal.epoch(epoch, 0, 1, 40, 6)
        clock.now += 30
        terminal.step(1.5, 100.0)
        terminal.evaluation({'kind': kind, 'epoch': epoch, 'best': found == 0.05, **dict.fromkeys(METRICS, found)})
    terminal.epoch(4, 0, 1, 40, 6)
    clock.now += 30
    terminal.step(1.5, 100.0)
    head, step = '[2/9] gru4rec-2024: epoch ', 'step 1 of 1, loss 1.5000, 100 targets/s, 0:00:00 left'
    assert stream.getvalue().splitlines() == [
        f'{head}1 of at most 40, patience 6: {step}',
        f'{head}3 of at most 40, patience 6, validation NDCG@10 0.0412, best 0.0500: {step}, the run at most 0:18:30',
    ]


def test_the_bar_says_which_epoch_and_what_is_compiled(shown):
    clock, terminal, stream = shown(tty=True)
    terminal.epoch(3, 0, 100, 300, 8)
    with terminal.compiling('the train step'):
        clock.now += 12
        terminal.progress.refresh()
    terminal.step(1.5, 1234.0)
    terminal.progress.refresh()
    terminal.close()
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', stream.getvalue())
    assert 'epoch 3 of at most 300, patience 8' in text and 'XLA compiles the train step, 12 s' in text
    assert '1/100 loss 1.5000, 1,234 targets/s, 0:00:00 left' in text
    assert max(map(len, re.split(r'[\r\n]+', text))) <= 80


def test_lines_break_between_words_on_a_terminal_and_not_at_all_in_a_file(shown):
    words = ' '.join(['word'] * 40)
    _, terminal, stream = shown(tty=True)
    terminal.note(words)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80 and set(' '.join(lines).split()) == {'word'}
    _, terminal, stream = shown(tty=False)
    terminal.note(words)
    assert stream.getvalue() == words + '\n'


@pytest.mark.parametrize('tty', [True, False])
def test_the_final_table_names_the_network_and_fits(shown, tty):
    _, terminal, stream = shown(tty=tty)
    metrics = dict.fromkeys(METRICS, 0.12345)
    terminal.result({
        'dataset': 'shop', 'best_epoch': 3, 'epochs': 14, 'test': metrics, 'popularity': {'test': metrics},
        'transition': {'test': metrics}, 'parameters': 1000, 'train_seconds': 1.0, 'targets/s': 1.0, 'tokens/s': 1.0,
        'packing_fill': 0.99, 'backend': 'cpu',
    }, 'ssd4rec')
    text = re.sub(r'\x1b\[[0-9;]*m', '', stream.getvalue())
    for label in ('SSD4Rec', 'popularity', 'transition'):
        (row,) = [line for line in text.splitlines() if label in line]
        assert row.count('0.1234') + row.count('0.1235') == 6
    assert max(map(len, text.splitlines())) <= (80 if tty else 120)
