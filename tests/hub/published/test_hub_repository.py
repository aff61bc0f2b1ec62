"""A published repository on the Hub, as far as `huggingface_hub` can see."""

import pytest
from support.hub_client import USERS, Client
from support.loopback_hub import LoopbackHub
from support.published_checkpoints import copy_checkpoint, numbered_tokenizer

UPLOAD = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1])
tell(commit=api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2]).oid)
"""

LOAD = """
from pathlib import Path
from text_diffusers import TextDiffusionPipeline
from text_diffusers.hub import convert, load_denoiser
denoiser = load_denoiser(sys.argv[1])
convert(sys.argv[1], sys.argv[2])
pipe = TextDiffusionPipeline.from_pretrained(sys.argv[1])
card = (Path(sys.argv[2]) / "README.md").read_text()
tell(names=[type(denoiser).__name__, type(pipe.denoiser).__name__], card=card)
"""


@pytest.mark.slow
def test_a_repository_is_loaded_by_its_name_without_its_code(tmp_path):
    folder = copy_checkpoint("llada", tmp_path / "llada")
    numbered_tokenizer(94, {88: "<end>"}, eos_token="<end>").save_pretrained(folder)
    (folder / "modeling_llada.py").write_text("raise SystemExit('code was run')")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")

    with LoopbackHub(USERS).serving() as hub:
        client = Client(hub.endpoint, tmp_path / "home")
        commit = client.run(UPLOAD, "ada/llada", str(folder))["commit"]
        loaded = client.run(LOAD, "ada/llada", str(tmp_path / "out"))
    assert loaded["names"] == ["LanguageModelDenoiser", "LlamaForCausalLM"]
    assert f"`ada/llada` at commit `{commit}`" in loaded["card"]

    names = {file.name for file in (tmp_path / "home").rglob("snapshots/*/*")}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "model.safetensors", *tokenizer}
