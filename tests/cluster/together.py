"""Runs a function in several processes that train together, and collects what they return."""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.multiprocessing as mp

SECONDS = 120


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _child(
    function: Callable[..., Any], rank: int, world: int, port: int, arguments: tuple, answer: Connection
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    import torch

    from seqrec.training.processes import launched

    torch.set_num_threads(1)  # several threads of each of several processes would wait for each other
    try:
        with launched() as processes:
            answer.send_bytes(pickle.dumps((True, function(processes, *arguments))))
    except BaseException:
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise


def run_together(function: Callable[..., Any], world: int, *arguments: Any, killed: bool = False) -> list[Any]:
    """The results of ``function(processes, *arguments)``, by rank. The function must be one of a module.

    If one of them is ``killed``, all must end without a result: they don't wait for it for ever.
    """
    context, port = mp.get_context("spawn"), free_port()
    started = []
    for rank in range(world):
        here, there = context.Pipe()
        child = context.Process(target=_child, args=(function, rank, world, port, arguments, there), daemon=True)
        child.start()
        there.close()
        started.append((child, here))
    results = []
    try:
        for child, here in started:
            if killed:
                child.join(SECONDS)
                assert child.exitcode not in (None, 0)
                continue
            assert here.poll(SECONDS), f"a process with status {child.exitcode} did not answer"
            good, result = pickle.loads(here.recv_bytes())
            assert good, result
            results.append(result)
    finally:
        for child, _ in started:
            child.join(5)
            if child.is_alive():
                child.kill()
    return results
