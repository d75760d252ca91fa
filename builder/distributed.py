"""One build on several processes, started by `torchrun`: who has which part, and how the parts come together.

    torchrun --nproc-per-node 2 -m fiberwalk build recipe.toml

Every process runs the same code on the same data, which each reads for itself. Weight vectors (the members of MAP
training, the particles of a walk) are split between them and gathered at the end of their stage. Random numbers are
drawn for all of them in every process, so that a build does not depend on how many processes there are but for
rounding. The first process alone writes, publishes and prints, and goes on alone after the last split stage. Without
torchrun everything here does nothing.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_BLOCKS = itertools.count()


class _PartDone(BaseException):
    """Takes a process whose part is done out of the `joined` block."""


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes of this torchrun share the work of a build.

    All but the first leave the block where their part ends, and so must not need what comes after it. Where one fails,
    its error is raised there; the others, which fail for want of it or with the same, end with status 1 and say
    nothing. Each process uses the GPU of its LOCAL_RANK.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    common, rank, count = next(rendezvous("env://"))
    store = PrefixStore(f"fiberwalk/{next(_BLOCKS)}", common)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield
    except _PartDone:
        return
    except BaseException as e:
        if store.compare_set("failed", "", str(rank)) != str(rank).encode():
            raise SystemExit(1) from e
        raise
    _part()


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not _several() or dist.get_rank() == 0


def share(count: int) -> slice:
    """This process's part of `count` items, at least one. All parts are of one size: some items may be in two."""
    return _share(count, dist.get_rank()) if _several() else slice(0, count)


def gathered(part: Tensor, count: int) -> Tensor:
    """All `count` items (count, ...), in every process, of which this one has those of its share (m, ...)."""
    if not _several():
        return part
    # Bits of truth are sent as bytes: not every backend takes them.
    sent = (part.view(torch.uint8) if part.dtype == torch.bool else part).contiguous()
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent)
    whole = sent.new_empty(count, *sent.shape[1:])
    for rank, found in enumerate(parts):
        whole[_share(count, rank)] = found
    return whole.view(part.dtype)


def from_first(value: T) -> T:
    """What the first process has, in every process: choices that must be the same, and what it alone has read.

    Tensors must be on the CPU.
    """
    if not _several():
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0)
    found: T = held[0]
    return found


def go_on_alone(now: bool = True) -> None:
    """From here on the first process works alone, and all others leave their `joined` block, if the first says so."""
    if _several() and from_first(now):
        leads = first()
        _part()
        if not leads:
            raise _PartDone


def leave() -> NoReturn:
    """Ends a process whose part is done, with status 0: all but the first after their `joined` block.

    Without the interpreter's own end: a library's thread that waits for Python's lock then aborts the process (seen
    with torch 2.13), and torchrun takes the whole build for failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _share(count: int, rank: int) -> slice:
    size = -(-count // dist.get_world_size())
    start = min(rank * size, count - size)
    return slice(start, start + size)


def _part() -> None:
    if _several():
        dist.destroy_process_group()
