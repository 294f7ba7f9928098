from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from auralign.errors import UsageError
from auralign.runtime.distributed import World, world

PROGRAM = """
    import json
    import torch
    from auralign.runtime.distributed import world

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1, dtype=torch.float64)
    data = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with world(backend="gloo") as here:
        wrapped = here.wrap(net)
        mine = data[4 * here.rank : 4 * here.rank + 4]
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            wrapped(mine).square().mean().backward()
            optimiser.step()
        here.barrier()
        found = {
            "weight": net.weight.tolist(),
            "mean": here.mean(torch.tensor(float(here.rank))).item(),
            "rows": here.gather(torch.full((here.rank + 1, 2), float(here.rank))).tolist(),
            "json": here.gather_json({"rank": here.rank, "text": "ö" * here.rank}),
            "share": list(here.share(5)),
        }
        print(json.dumps(found), flush=True)
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_accumulation_and_agree_on_collectives():
    import json

    port = str(_free_port())
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    found = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1, dtype=torch.float64)
    data = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        for half in data.split(4):
            (net(half).square().mean() / 2).backward()
        optimiser.step()
    for one in found:
        torch.testing.assert_close(torch.tensor(one["weight"], dtype=torch.float64), net.weight.detach())
        assert one["mean"] == 0.5
        assert one["rows"] == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        assert one["json"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ö"}]
    assert [one["share"] for one in found] == [[0, 2, 4], [1, 3]]


def test_one_process_needs_no_group():
    with world() as here:
        assert here == World(0, 1, 0)
        assert here.is_first
        here.barrier()
        assert here.mean(torch.tensor(3.0)) == 3.0
        assert here.gather_json({"a": 1}) == [{"a": 1}]
        net = torch.nn.Linear(1, 1)
        assert here.wrap(net) is net
        assert list(here.share(3)) == [0, 1, 2]


def test_a_process_without_a_rank_is_told_to_use_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="torchrun"), world():
        pass
