"""The codebook: exact search, explicit updates, restarts, and agreement of ranks."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from difftumor.errors import ConfigError, ShapeError, TrainingError
from difftumor.models.codebook import Codebook, split_factor
from tests.reference import load_reference, reference_state, relative_error


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(*shape, seed=0):
    return torch.randn(*(shape or (2, 3, 4, 5, 6)), generator=generator(seed))


def as_vectors(x):
    """(B, D, Z, X, Y) to (N, D)."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 3)


def filled(codes=7, dimensions=3, seed=1, **options):
    """A codebook with random codes that each had one vector."""
    book = Codebook(codes=codes, dimensions=dimensions, **options)
    book.embeddings.data.copy_(torch.randn(codes, dimensions, generator=generator(seed)))
    book.z_avg.copy_(book.embeddings)
    book.N.fill_(1)
    return book


def test_reference_codes_after_one_update():
    stored = load_reference("autoencoder")
    book = reference_state(Codebook(codes=16384, dimensions=8, restart_below=0), prefix="codebook.")
    book.update(torch.from_numpy(stored["features"]), torch.from_numpy(stored["indices"]).long(), generator=generator())
    ids = stored["ema_code_ids"]
    assert relative_error(book.embeddings[ids], stored["ema_embeddings"]) < 1e-5
    assert relative_error(book.N[ids], stored["ema_counts"]) < 1e-5


def test_reference_quantization():
    stored = load_reference("autoencoder")
    book = reference_state(Codebook(codes=16384, dimensions=8), prefix="codebook.")
    quantized = book(torch.from_numpy(stored["features"]))
    assert (quantized.indices.numpy() == stored["indices"]).all()
    assert relative_error(0.25 * quantized.commitment_loss, stored["commitment_loss"]) < 1e-5
    assert relative_error(quantized.perplexity, stored["perplexity"]) < 1e-5


@pytest.mark.parametrize("chunk", [1, 7, 64, 100_000])
def test_nearest_equals_all_distances(chunk):
    book, x = filled(codes=50, search_chunk=chunk), features()
    distances = torch.cdist(as_vectors(x).double(), book.embeddings.double())
    assert torch.equal(book.nearest(x), distances.argmin(1).view(2, 4, 5, 6))


@pytest.mark.parametrize("codes", [1, 127, 128, 300])
def test_the_first_of_equally_near_codes_is_taken(codes):
    book, x = Codebook(codes=codes, dimensions=3), features()
    assert not book.nearest(x).any()
    book.embeddings[codes // 2 :] = x[0, :, 0, 0, 0]
    assert book.nearest(x)[0, 0, 0, 0] == codes // 2


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_features_that_are_no_numbers_get_a_code(value):
    book = filled(codes=16)
    found = book.nearest(torch.full((1, 3, 2, 2, 2), value))
    assert 0 <= found.min() <= found.max() < 16


def test_search_memory_is_bounded_by_the_chunk():
    book, x = filled(codes=64, search_chunk=8), features(1, 3, 8, 8, 8)
    with LargestTensor() as largest:
        book.nearest(x)
    assert largest.elements == x.numel()
    assert 8 * 64 < x.numel() < 512 * 64


def test_search_is_exact_under_autocast():
    book, x = filled(codes=50), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book.nearest(x), filled(codes=50).nearest(x))


def rounded_to_tf32(x):
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_split_factors_bear_rounding_to_tf32():
    """What a GPU may do to them."""
    x, codes = features(512, 8), features(64, 8, seed=1)
    exact = x.double() @ codes.double().T
    plain = rounded_to_tf32(x) @ rounded_to_tf32(codes).T
    split = rounded_to_tf32(split_factor(x, left=True)) @ rounded_to_tf32(split_factor(codes, left=False)).T
    assert (plain - exact).abs().max() > 1e-3
    assert (split - exact).abs().max() < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_search_on_a_gpu_that_rounds_factors_is_that_of_the_cpu():
    book, x = filled(codes=300, dimensions=8), features(2, 8, 6, 6, 6)
    here, precision = book.nearest(x), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32
    try:
        there = book.to("cuda").nearest(x.to("cuda"))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(there.cpu(), here)


def test_lookup_gives_the_codes():
    book = filled()
    indices = torch.randint(7, (2, 3, 4, 5), generator=generator())
    assert torch.equal(as_vectors(book.lookup(indices)), book.embeddings[indices.flatten()])


def test_forward_changes_no_state_and_draws_nothing():
    book, x = filled(), features()
    before = {key: value.clone() for key, value in book.state_dict().items()}
    state = torch.get_rng_state()
    book.train()(x)
    assert all(torch.equal(value, before[key]) for key, value in book.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_passes_straight_through():
    book, x = filled(), features().requires_grad_()
    quantized = book(x)
    weight = features(seed=5)
    (quantized.embeddings * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert torch.equal(quantized.embeddings, book.lookup(quantized.indices))


def test_commitment_pulls_features_toward_their_codes():
    book, x = filled(), features().requires_grad_()
    quantized = book(x)
    quantized.commitment_loss.backward()
    offset = x.detach() - book.lookup(quantized.indices)
    assert quantized.commitment_loss.item() == pytest.approx(offset.square().mean().item())
    assert quantized.codebook_loss.item() == pytest.approx(offset.square().mean().item())
    assert not quantized.codebook_loss.requires_grad
    assert torch.allclose(x.grad, 2 * offset / offset.numel())


def test_codebook_loss_pulls_codes_that_learn_by_gradient_and_nothing_else_does():
    book, x = filled(learning="gradient"), features().requires_grad_()
    quantized = book(x)
    (quantized.embeddings.square().sum() + quantized.commitment_loss).backward()
    assert book.embeddings.grad is None
    x.grad = None
    book(x).codebook_loss.backward()
    assert x.grad is None
    vectors, indices = as_vectors(x.detach()), quantized.indices.flatten()
    for code in range(7):
        pull = (book.embeddings.detach()[code] - vectors[indices == code]).sum(0)
        assert torch.allclose(book.embeddings.grad[code], 2 * pull / x.numel(), atol=1e-7)


def test_codes_that_learn_by_gradient_are_counted_and_restarted_but_not_averaged():
    book, x = filled(codes=5, learning="gradient", decay=0.5), features()
    with torch.no_grad():
        book.embeddings[3:] = 100  # too far to be nearest
    old, indices = book.embeddings.detach().clone(), book.nearest(x)
    counts = torch.bincount(indices.flatten(), minlength=5)
    assert book.update(x, indices, generator=generator()).item() == 2
    assert torch.equal(book.embeddings[:3], old[:3])
    assert torch.allclose(book.N, torch.cat([0.5 + 0.5 * counts[:3], torch.ones(2)]))
    distances = torch.cdist(book.embeddings, as_vectors(x), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert (distances[3:] == 0).all()
    # Whoever goes on with moving averages goes on from these codes.
    assert torch.allclose(book.z_avg / book.N[:, None], book.embeddings)


def test_codes_load_whatever_way_they_have_learned():
    book = Codebook(codes=7, dimensions=3, learning="gradient")
    assert list(book.state_dict()) == ["embeddings", "N", "z_avg"]
    assert [name for name, _ in book.named_parameters()] == ["embeddings"]
    book.initialize(features(), generator=generator())
    averaged = Codebook(codes=7, dimensions=3)
    averaged.load_state_dict(book.state_dict())
    assert not list(averaged.parameters())
    assert torch.equal(averaged.nearest(features()), book.nearest(features()))
    book.load_state_dict(filled().state_dict())
    assert torch.equal(book.embeddings, filled().embeddings)


def test_perplexity_counts_codes_used_evenly():
    book = filled(codes=8, dimensions=1)
    book.embeddings.copy_(torch.arange(8.0)[:, None])
    even = torch.tensor([0.0, 1, 2, 3] * 2).view(1, 1, 2, 2, 2)
    assert book(even).perplexity.item() == pytest.approx(4)
    assert book(torch.zeros(1, 1, 2, 2, 2)).perplexity.item() == pytest.approx(1)
    uneven = torch.tensor([0.0] * 6 + [1] * 2).view(1, 1, 2, 2, 2)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert book(uneven).perplexity.item() == pytest.approx(expected)


def test_update_follows_the_moving_average():
    book = filled(codes=2, dimensions=1, decay=0.75, restart_below=0)
    book.embeddings.copy_(torch.tensor([[0.0], [10.0]]))
    book.z_avg.copy_(book.embeddings)
    x = torch.tensor([1.0, 2.0, 3.0, 8.0]).view(1, 1, 1, 2, 2)
    book.update(x, book.nearest(x), generator=generator())
    # Counts: 0.75 · 1 + 0.25 · (3, 1); sums: 0.75 · (0, 10) + 0.25 · (6, 8).
    assert torch.allclose(book.N, torch.tensor([1.5, 1.0]))
    assert torch.allclose(book.z_avg, torch.tensor([[1.5], [9.5]]))
    assert torch.allclose(book.embeddings, torch.tensor([[1.0], [9.5]]))


def test_update_without_memory_gives_the_means():
    book, x = filled(decay=0.0, restart_below=0), features()
    indices = book.nearest(x)
    book.update(x, indices, generator=generator())
    for code in indices.unique():
        mean = as_vectors(x)[indices.flatten() == code].mean(0)
        assert torch.allclose(book.embeddings[code], mean, atol=1e-5)


def test_restart_moves_unused_codes_onto_vectors_of_the_batch():
    book, x = filled(codes=5), features()
    book.embeddings[3:] = 100  # too far to be nearest
    moved = book.embeddings.clone()
    indices = book.nearest(x)
    dead = book.update(x, indices, generator=generator())
    assert dead.dtype == torch.int64
    assert dead.ndim == 0
    assert dead.item() == 2
    assert (book.N >= 1).all()
    distances = torch.cdist(book.embeddings, as_vectors(x), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert (distances[3:] == 0).all()
    assert not torch.equal(book.embeddings[3], book.embeddings[4])
    assert torch.equal(book.z_avg[3:], book.embeddings[3:])
    # Codes in use follow the average and don't jump.
    assert (book.embeddings[:3] - moved[:3]).norm(dim=1).max() < 1
    assert (book.N[3:] == 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_code_used_just_often_enough_stays(seed):
    book = filled(codes=2, dimensions=1, decay=0.0)
    book.embeddings.copy_(torch.tensor([[0.0], [10.0]]))
    x = torch.tensor([1.0, 2.0, 3.0, 8.0]).view(1, 1, 1, 2, 2)
    book.update(x, book.nearest(x), generator=generator(seed))
    assert torch.allclose(book.embeddings, torch.tensor([[2.0], [8.0]]))


def test_no_restart_when_turned_off():
    book, x = filled(codes=5, restart_below=0), features()
    book.embeddings[4] = book.z_avg[4] = 100
    assert book.update(x, book.nearest(x), generator=generator()).item() == 0
    assert torch.allclose(book.embeddings[4], torch.tensor(100.0))
    assert book.N[4].item() == pytest.approx(0.99)


def test_same_generator_same_codes_and_global_state_untouched():
    x = features()
    state = torch.get_rng_state()
    books = [Codebook(codes=200, dimensions=3) for _ in range(3)]
    for book, seed in zip(books, (0, 0, 1), strict=True):
        rng = generator(seed)
        book.initialize(x, generator=rng)
        book.update(x, book.nearest(x), generator=rng)
    assert torch.equal(books[0].embeddings, books[1].embeddings)
    assert not torch.equal(books[0].embeddings, books[2].embeddings)
    assert torch.equal(torch.get_rng_state(), state)


def test_initialize_takes_different_vectors_of_the_batch():
    book, x = Codebook(codes=50, dimensions=3), features()
    book.initialize(x, generator=generator())
    rows = {tuple(row) for row in as_vectors(x).tolist()}
    codes = [tuple(row) for row in book.embeddings.tolist()]
    assert set(codes) <= rows
    assert len(set(codes)) == 50
    assert torch.equal(book.z_avg, book.embeddings)
    assert (book.N == 1).all()


def test_initialize_with_fewer_vectors_than_codes_repeats_them_slightly_moved():
    book, x = Codebook(codes=25, dimensions=3), features(1, 3, 1, 2, 5)
    book.initialize(x, generator=generator())
    assert len({tuple(row) for row in book.embeddings.tolist()}) == 25
    distances = torch.cdist(book.embeddings, as_vectors(x), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert (distances[:10] == 0).all()
    assert 0 < distances[10:].min() <= distances.max() < 0.1 * x.std()


def test_needs_init_is_part_of_the_state_without_a_name_of_its_own():
    book = Codebook(codes=7, dimensions=3)
    assert book.needs_init
    assert list(book.state_dict()) == ["embeddings", "N", "z_avg"]
    with pytest.raises(TrainingError, match="call initialize"):
        book.update(features(), torch.zeros(2, 4, 5, 6, dtype=torch.long), generator=generator())
    book.initialize(features(), generator=generator())
    copy = Codebook(codes=7, dimensions=3)
    copy.load_state_dict(book.state_dict())
    assert not copy.needs_init
    assert torch.equal(copy.nearest(features()), book.nearest(features()))


@pytest.mark.parametrize(
    "options",
    [{"codes": 0}, {"dimensions": 0}, {"decay": 1.0}, {"decay": -0.1}, {"search_chunk": 0}, {"learning": "sgd"}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        Codebook(**{"codes": 4, "dimensions": 2, **options})


@pytest.mark.parametrize("shape", [(1, 4, 2, 2, 2), (1, 3, 2, 2)])
def test_wrong_features_are_refused(shape):
    with pytest.raises(ShapeError, match=r"takes \(B, 3, Z, X, Y\)"):
        filled().nearest(torch.zeros(shape))
