"""transformers as a peer: the model it is given, and its server, against transformers' own generation."""

import sys

import pytest
import torch
import transformers

from bench.deployment.hf_export import check_equal, export_hf_folder
from bench.deployment.open import DeploymentOptions, open_deployment, parse_deployment
from bench.deployment.peers import PeerOptions
from bench.load.endpoint import connect
from tandem.errors import ConfigError, ModelFormatError
from tandem.model.source import open_model

PROMPTS = ([5, 9, 23, 42, 7, 7, 100], [11, 3] * 20)
NUM_TOKENS = 6


def test_it_serves_what_transformers_generates(tiny_model_dir, tmp_path):
    folder = tiny_model_dir("llama")
    peer = PeerOptions(str(folder), 1, 4, 256, python=sys.executable)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with open_deployment(parse_deployment("transformers"), DeploymentOptions("default", peer=peer)) as target:
        import asyncio

        answers = asyncio.run(answers_of(target))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        generated = model.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False
        )
        assert answer == generated[0, len(prompt) :].tolist()


async def answers_of(target) -> list[list[int]]:
    import asyncio

    endpoint = connect(target.endpoint)

    async def answer(prompt: list[int]) -> list[int]:
        return [token async for tokens in endpoint.generate(prompt, NUM_TOKENS) for token in tokens.token_ids]

    try:
        return await asyncio.gather(*(answer(prompt) for prompt in PROMPTS))
    finally:
        await endpoint.close()


def test_the_default_model_is_exported_as_it_is(default_model_path, tmp_path):
    export_hf_folder(str(default_model_path), tmp_path, tmp_path / "hf")
    ours = open_model(str(tmp_path / "hf"), tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
    assert type(loaded).__name__ in (tmp_path / "hf" / "config.json").read_text()
    name = "model.layers.3.self_attn.q_proj.weight"
    assert torch.equal(loaded.state_dict()[name], ours.tensor(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("one two 33")["input_ids"]) == "one two 33"


def test_only_a_gguf_model_is_exported(tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match="no GGUF file"):
        export_hf_folder(str(tiny_model_dir("llama")), tmp_path, tmp_path / "hf")


def test_another_weight_is_found(tiny_model_dir, tmp_path):
    source = open_model(str(tiny_model_dir("llama")), tmp_path)

    class Changed:
        name, config = "changed", source.config

        def tensor(self, hf_name):
            values = source.tensor(hf_name)
            return values + 1 if hf_name.endswith("layers.1.mlp.up_proj.weight") else values

    check_equal(source, source)
    with pytest.raises(ModelFormatError, match=r"changed: tensor .*layers\.1\.mlp\.up_proj"):
        check_equal(source, Changed())
