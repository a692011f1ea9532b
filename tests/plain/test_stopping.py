"""Signals stop a process where it can stop."""

import signal
import subprocess
import sys
import textwrap

import pytest

from atss_d2.plain.stopping import STOP

# Without Detectron2, as a command starts.
HEAD = """
import os, signal, sys, time
import atss_d2_cli
STOP = atss_d2_cli._import("plain.stopping").STOP
Stopped = atss_d2_cli._import("plain.stopping").Stopped
def kill(name):
    os.kill(os.getpid(), getattr(signal, name))
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    code = HEAD + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_raises_at_once_or_when_it_may(name):
    process = run(
        f"""
        with STOP.installed():
            try:
                with STOP.immediate():
                    kill({name!r})
                    time.sleep(30)
            except Stopped as stop:
                print(stop, stop.exit_code)
        """
    )
    assert process.stdout == f"{name} {128 + getattr(signal, name)}\n", process.stderr
    process = run(
        f"""
        with STOP.installed():
            STOP.is_deferred = True
            kill({name!r})
            time.sleep(0.5)
            print("step finished")
            try:
                with STOP.immediate():
                    print("never")
            except Stopped as stop:
                sys.exit(stop.exit_code)
        """
    )
    assert process.stdout == "step finished\n", process.stderr
    assert process.returncode == 128 + getattr(signal, name)


def test_a_second_interrupt_ends_at_once():
    process = run(
        """
        with STOP.installed():
            STOP.is_deferred = True
            kill("SIGINT")
            kill("SIGTERM")
            time.sleep(0.5)
            print("goes on", flush=True)
            kill("SIGINT")
            time.sleep(30)
        """
    )
    assert (process.returncode, process.stdout) == (130, "goes on\n"), process.stderr


def test_a_single_interrupt_that_comes_twice_is_one():
    """The terminal signals the process and the launcher, which passes the signal on."""
    process = run(
        """
        with STOP.installed():
            STOP.is_deferred = True
            kill("SIGINT")
            STOP.request(signal.SIGINT, "launcher")
            time.sleep(0.5)
            print("goes on")
        """
    )
    assert (process.returncode, process.stdout) == (0, "goes on\n"), process.stderr


def test_a_log_message_and_a_fork_are_finished_first():
    """Python would swallow the exception at a fork."""
    process = run(
        """
        import logging
        os.register_at_fork(after_in_parent=lambda: logging.warning("forked"))
        class Handler(logging.Handler):
            def emit(self, record):
                kill("SIGTERM")
                time.sleep(0.1)
                print(record.getMessage(), flush=True)
        logging.getLogger().addHandler(Handler())
        with STOP.installed():
            try:
                if os.fork() == 0:
                    os._exit(0)
                time.sleep(30)
            except Stopped as stop:
                print(stop)
        """
    )
    assert (process.stdout, process.stderr) == ("forked\nSIGTERM\n", "")


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with STOP.installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
