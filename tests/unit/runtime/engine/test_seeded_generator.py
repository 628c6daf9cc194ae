import pytest
import torch

from runtime.engine.seeded_generator import SeededGenerator

CPU = torch.device("cpu")


def draw(generator: torch.Generator, count: int = 5) -> list[float]:
    return torch.rand(count, generator=generator).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_it_draws_what_torch_draws_from_the_same_seed(seed: int):
    stock = torch.Generator(CPU)
    stock.manual_seed(seed)
    assert draw(SeededGenerator(CPU, seed, None)) == draw(stock)


def test_i3_a_request_that_moves_draws_on_where_it_stopped():
    stays, moves = SeededGenerator(CPU, 7, None), SeededGenerator(CPU, 7, None)
    assert draw(stays) == draw(moves)
    arrived = SeededGenerator(CPU, 7, moves.state_bytes())
    assert [draw(stays) for _ in range(3)] == [draw(arrived) for _ in range(3)]


def test_a_draw_for_an_unfinished_prompt_is_taken_back_as_vllm_does_it():
    generator = SeededGenerator(CPU, 7, None)
    generator.remember()
    first = draw(generator)
    generator.set_offset(generator.get_offset() - 4)
    assert draw(generator) == first


def test_only_the_last_draw_can_be_taken_back():
    with pytest.raises(ValueError, match="only the last draw can be taken back, not offset 8"):
        SeededGenerator(CPU, 7, None).set_offset(8)
