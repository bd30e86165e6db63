"""Ranks that hold a joint batch between them end with the codes of one process that holds all of it."""

import os

import pytest
import torch

from difftumor.models.codebook import Codebook

pytestmark = pytest.mark.slow  # each rank imports PyTorch

WORLD = 2
UPDATES = 10
# Plenty of vectors, and fewer vectors (32) than codes.
CASES = {
    "ema": {"codes": 20},
    "ema, few vectors": {"codes": 50},
    "gradient": {"codes": 20, "learning": "gradient"},
}


def joint_batch(step):
    """Features of two elements per rank; every step's lie elsewhere, so that codes die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2 * WORLD, 3, 2, 2, 2, generator=generator) + 2 * torch.randn(3, 1, 1, 1, generator=generator)


def learn(share, options):
    """Initialize and update on what ``share`` leaves of every joint batch; codes of each step, and how many died."""
    book = Codebook(dimensions=3, decay=0.5, restart_below=0.4, **options)
    optimizer = torch.optim.SGD([book.embeddings], lr=3.0) if options.get("learning") == "gradient" else None
    book.initialize(share(joint_batch(0)), generator=torch.Generator().manual_seed(0))
    codes, dead = [book.embeddings.detach().clone()], []
    for step in range(UPDATES):
        x = share(joint_batch(step))
        quantized = book(x)
        if optimizer is not None:
            optimizer.zero_grad()
            quantized.codebook_loss.backward()
            if torch.distributed.is_initialized():  # what DistributedDataParallel does
                torch.distributed.all_reduce(book.embeddings.grad)
                book.embeddings.grad /= WORLD
            optimizer.step()
        generator = torch.Generator().manual_seed(100 + step)
        dead.append(book.update(x, quantized.indices, generator=generator))
        codes.append(book.embeddings.detach().clone())
    return {"codes": torch.stack(codes), "dead": torch.stack(dead), **book.state_dict()}


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=WORLD)
    try:
        torch.save({name: learn(lambda x: x[rank::WORLD], options) for name, options in CASES.items()},
                   f"{folder}/{rank}.pt")  # fmt: skip
    finally:
        torch.distributed.destroy_process_group()
    # Gloo's threads now and then abort the interpreter on its way out, when all is done.
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_each_other_and_with_one_process(ranks, case):
    whole = learn(lambda x: x, CASES[case])
    # Some codes die, never all of them.
    assert whole["dead"].count_nonzero() > UPDATES // 2
    assert whole["dead"].max() < CASES[case]["codes"]
    for name, value in whole.items():
        assert torch.equal(ranks[0][case][name], ranks[1][case][name]), name
        assert torch.allclose(ranks[0][case][name].double(), value.double(), atol=1e-5), name
