"""Run by test_distributed.py under torchrun: python distributed_script.py FOLDER."""

import sys

import torch

from suite import distributed
from suite.modules.normalizer import RunningMoments

distributed.start("cpu")
rank, world = distributed.rank(), distributed.world_size()
result = {"rank": rank, "world": world}

first, second = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
first.grad = torch.full((3,), float(rank + 1))
if rank == 1:
    second.grad = torch.full((2, 2), 8.0)  # process 0 has no gradient there
distributed.average_gradients([first, second])
result["gradients"] = [first.grad, second.grad]

result["average"] = distributed.average(torch.tensor([1.0 + rank, 10.0]))
data = torch.arange(24.0).reshape(4, 2, 3).square()
result["moments"] = distributed.moments(data[2 * rank : 2 * rank + 2], (0, 1))
moments = RunningMoments((3,))
for part in data.split(1):
    moments.update(part + 100 * rank)
result["running"] = dict(moments.state_dict())

torch.manual_seed(rank)
module = torch.nn.BatchNorm1d(2)
module.weight.data.normal_()
module.running_mean.normal_()
distributed.broadcast([module])
result["module"] = dict(module.state_dict())

result["any"] = [distributed.any_process(flag) for flag in (False, True, rank == 1)]
result["common"] = distributed.largest_common({1, 5, 9} if rank == 0 else {1, 5, 7})
try:
    distributed.largest_common({rank})
except ValueError as error:
    result["no common"] = str(error)
torch.save(result, f"{sys.argv[1]}/{rank}.pt")
distributed.stop()
