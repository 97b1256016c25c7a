"""What a queue and a bank hold after each step, worked by hand."""

import math

import pytest
import torch

from byol.memory import Bank, Queue


def keys_of(*numbers):
    """A key for each number, told by its first coordinate."""
    return torch.tensor([[float(number), -1.0, 0.5] for number in numbers])


def held(queue):
    return queue.keys[0].tolist()


def check_queue_order():
    queue = Queue(3, 6)
    queue.keys.zero_()
    queue.enqueue(keys_of(1, 2))
    assert (held(queue), queue.pointer.item()) == ([1, 2, 0, 0, 0, 0], 2)
    queue.enqueue(keys_of(3, 4))
    assert (held(queue), queue.pointer.item()) == ([1, 2, 3, 4, 0, 0], 4)
    queue.enqueue(keys_of(5, 6))
    assert (held(queue), queue.pointer.item()) == ([1, 2, 3, 4, 5, 6], 0)
    queue.enqueue(keys_of(7, 8))
    assert (held(queue), queue.pointer.item()) == ([7, 8, 3, 4, 5, 6], 2)
    assert torch.equal(queue.keys.T, keys_of(7, 8, 3, 4, 5, 6))


def test_keys_stand_in_order_and_the_oldest_is_overwritten_first():
    check_queue_order()


@pytest.mark.parametrize("count", [4, 5, 12])
def test_a_queue_refuses_what_does_not_divide_its_length(count):
    queue = Queue(3, 6)
    before = queue.keys.clone()
    with pytest.raises(ValueError, match=f"queue=6 is not a multiple of the {count} keys of a step"):
        queue.enqueue(keys_of(*range(count)))
    assert torch.equal(queue.keys, before)
    assert queue.pointer.item() == 0


def test_a_queue_may_be_filled_at_once():
    queue = Queue(3, 6)
    queue.enqueue(keys_of(*range(6)))
    assert (held(queue), queue.pointer.item()) == ([0, 1, 2, 3, 4, 5], 0)


def test_a_queue_starts_with_random_directions():
    torch.manual_seed(0)
    queue = Queue(16, 512)
    assert queue.keys.shape == (16, 512)
    assert torch.allclose(queue.keys.norm(dim=0), torch.ones(512), atol=1e-6)
    # Directions of the whole sphere: each coordinate has mean 0 and mean square 1/16.
    assert queue.keys.mean(dim=1).abs().max() < 5 / math.sqrt(16 * 512)
    assert queue.keys.square().mean(dim=1).sub(1 / 16).abs().max() < 0.02
    assert set(queue.state_dict()) == {"keys", "pointer"}
    assert not list(queue.parameters())


def test_a_queue_restored_goes_on_where_it_was():
    queue, other = Queue(3, 6), Queue(3, 6)
    queue.enqueue(keys_of(1, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(keys_of(3, 4))
    assert torch.equal(queue.keys, other.keys)
    assert held(queue)[:4] == [1, 2, 3, 4]


def bank_with(rows, momentum):
    bank = Bank(len(rows), len(rows[0]), momentum).double()
    bank.rows.copy_(torch.tensor(rows, dtype=torch.float64))
    return bank


def check_bank_update():
    bank = bank_with([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]], momentum=0.8)
    bank.update(torch.tensor([1]), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    # 0.8 (1, 0) + 0.2 (0, 1) = (0.8, 0.2), of length sqrt(0.68).
    expected = [0.8 / math.sqrt(0.68), 0.2 / math.sqrt(0.68)]
    assert bank.rows[1].tolist() == pytest.approx(expected, abs=1e-12)
    assert bank.rows[[0, 2]].tolist() == [[1.0, 0.0], [0.6, 0.8]]


def check_bank_duplicates():
    bank = bank_with([[1.0, 0.0], [5.0, 5.0], [0.0, 0.5]], momentum=0.5)
    features = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    bank.update(torch.tensor([2, 0, 2]), features)
    # Row 0: (1, 0) / 2 + (0, 1) / 2. Row 2: the mean of (0, 1) and (1, 0) with (0, 0.5): (0, 0.25) + (0.25, 0.25).
    assert bank.rows[0].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)], abs=1e-12)
    assert bank.rows[2].tolist() == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)], abs=1e-12)
    assert bank.rows[1].tolist() == [5.0, 5.0]


def test_a_row_moves_toward_its_feature_and_the_others_stay():
    check_bank_update()


def test_an_image_that_comes_twice_counts_with_its_mean():
    check_bank_duplicates()


def test_the_order_of_the_images_does_not_matter_to_the_bank():
    generator = torch.Generator().manual_seed(0)
    rows, features = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    ids, order = torch.tensor([6, 1, 3]), torch.tensor([2, 0, 1])
    banks = [bank_with(rows.tolist(), 0.5) for _ in range(2)]
    banks[0].update(ids, features[:3])
    banks[1].update(ids[order], features[:3][order])
    assert torch.equal(banks[0].rows, banks[1].rows)
    assert (banks[0].rows != rows).any(dim=1).nonzero().flatten().tolist() == [1, 3, 6]


def test_a_bank_starts_uniform_and_not_of_length_one():
    torch.manual_seed(0)
    bank = Bank(1000, 12, 0.5)
    bound = 1 / math.sqrt(12 / 3)
    assert bank.rows.shape == (1000, 12)
    assert 0.99 * bound < bank.rows.max() <= bound
    assert -bound <= bank.rows.min() < -0.99 * bound
    # Of a uniform number in +-b the mean square is b^2 / 3 and the mean fourth power b^4 / 5.
    assert bank.rows.square().mean().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert (bank.rows**4).mean().item() == pytest.approx(bound**4 / 5, rel=0.04)
    assert bank.rows.norm(dim=1).std() > 0.05
    assert set(bank.state_dict()) == {"rows"}
    assert not list(bank.parameters())
