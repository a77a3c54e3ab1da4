"""One of two processes that share a device: a training run over gloo (NCCL wants a card for each), and the memory it took."""

import json
import os
import sys

import torch

from mmtune.run import train


def main(recipe: str, where: str) -> None:
    if where == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.distributed.init_process_group("gloo")
    train(json.loads(recipe), quiet=True)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({"peak": peak}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
