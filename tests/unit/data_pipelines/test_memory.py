"""Memory that is used again must never be memory that somebody still reads."""

import threading

import torch

from data_pipelines.memory import MAX_FREE_BLOCKS, MAX_SCRATCH_BYTES, RecycledTensors, Scratch


def test_memory_of_a_dropped_tensor_is_used_again() -> None:
    recycled = RecycledTensors()
    first = recycled.empty((4, 8), torch.float32)
    address = first.data_ptr()
    del first
    assert recycled.empty((4, 8), torch.float32).data_ptr() == address


def test_memory_is_not_used_again_while_a_view_or_an_array_of_it_lives() -> None:
    recycled = RecycledTensors()
    views = []
    for number in range(3 * MAX_FREE_BLOCKS):
        tensor = recycled.empty((2, 3), torch.uint8)
        tensor.fill_(number)
        views.append(tensor[1:].numpy() if number % 2 else tensor.detach()[:, 1])
        del tensor
    for number, view in enumerate(views):
        assert set(view.reshape(-1).tolist()) == {number}


def test_a_graph_that_saved_a_tensor_keeps_its_memory() -> None:
    recycled = RecycledTensors()
    weight = torch.ones(3, requires_grad=True)
    inputs = recycled.empty((3,), torch.float32)
    inputs.fill_(2.0)
    loss = (weight * inputs).sum()
    del inputs
    recycled.empty((3,), torch.float32).fill_(9.0)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_another_shape_and_no_elements_are_served() -> None:
    recycled = RecycledTensors()
    recycled.empty((5, 5), torch.float32)
    assert recycled.empty((7,), torch.uint8).shape == (7,)
    assert recycled.empty((0, 3), torch.float32).shape == (0, 3)


def test_every_thread_has_its_own_scratch() -> None:
    scratch = Scratch()
    mine = scratch.take(100)
    mine[:] = 1
    other = threading.Thread(target=lambda: scratch.take(100).fill(2))
    other.start()
    other.join()
    assert mine.tolist() == [1] * 100
    assert scratch.take(100).ctypes.data == mine.ctypes.data
    assert len(scratch.take(MAX_SCRATCH_BYTES + 1)) == MAX_SCRATCH_BYTES + 1
