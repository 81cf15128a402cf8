"""From a hub id or a folder to a model that is ready to run.

Whatever keeps a model from being served is found out here, before the server says it is ready, and
raised as a ModelLoadError of one sentence: what is wrong and what to do.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inference.config import EngineConfig
from inference.errors import ModelLoadError
from inference.model import attention, parity
from inference.model.layers import can_pack, kernel_for
from inference.model.memory import available_memory, readable, trim
from inference.model.optimize import leave_file, optimize
from inference.model.paged import LayerSpec
from inference.model.stack import fuse

logger = logging.getLogger(__name__)

Report = Callable[[str], None]

DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
NOT_DOWNLOADED = ["*/*", "consolidated*"]  # other formats of the same weights
SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
UNSTATED_MODEL_LEN = 2048
FP8_CAPABILITY = (8, 9)  # of products with a scale for each row
NUM_ACTIVATION_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, and what its checkpoint says about using it.

    `layers` is empty and `paged` False for a model that keeps its own state per sequence.
    `generation_defaults` has those of `SAMPLING_DEFAULTS` that the checkpoint recommends.
    `vocab_size` is the number of logits, which may exceed the tokenizer's vocabulary.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: list[LayerSpec]
    eos_token_ids: frozenset[int]
    generation_defaults: dict[str, float]
    max_model_len: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    paged: bool


def load_model(config: EngineConfig, report: Report) -> LoadedModel:
    """Find, check and load the model; `report` is told of each long step.

    Raises ModelLoadError for everything that keeps it from being served.
    """
    device = pick_device(config.device)
    check_quantization(config, device)
    folder = find_checkpoint(config, report)
    hf_config = read_config(config, folder)
    dtype = pick_dtype(config.dtype, hf_config, device)
    max_model_len = pick_max_model_len(config, hf_config)
    check_memory(folder, hf_config, dtype, device)
    tokenizer = load_tokenizer(config, folder)
    report(f"Loading {config.model} as {str(dtype).removeprefix('torch.')} on {device}")
    model = load_weights(config, folder, hf_config, dtype, device)
    report("Checking the model")
    with translating(f"The architecture of {config.model} is not supported"):
        sample = parity.plain_logits(model, min(parity.NUM_TOKENS, max_model_len))
    layers, reason = parity.enter_paged(model, max_model_len, sample)
    if reason is not None:
        if config.quantization:
            raise not_quantized(config, reason)
        logger.warning("%s answers one request at a time: %s.", config.model, reason)
    elif not has_fast_layers(config, model, layers, sample):
        del model  # its own layers are gone, and two models may not fit
        model = load_weights(config, folder, hf_config, dtype, device)
        model.set_attn_implementation(attention.NAME)
    return LoadedModel(
        name=config.model,
        model=model,
        tokenizer=tokenizer,
        layers=[] if reason else layers,
        eos_token_ids=find_eos(model, tokenizer),
        generation_defaults=read_generation_defaults(folder),
        max_model_len=max_model_len,
        vocab_size=sample.logits.shape[-1],
        device=device,
        dtype=dtype,
        paged=reason is None,
    )


@contextmanager
def translating(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever transformers and torch raise inside into a ModelLoadError of one sentence."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in text:
            advice = "Memory ran out: choose a smaller model or dtype."
        cause = re.split(r"(?<=[.!?])\s|\n", text)[0][:300].rstrip(" .:")
        raise ModelLoadError(f"{problem}: {cause}. {advice}".rstrip()) from error


def pick_device(wanted: str) -> torch.device:
    """The device asked for, if it is there; "auto" takes the GPU if there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(f"There is no device {wanted} on this machine: use --device cpu.")
    return device


def check_quantization(config: EngineConfig, device: torch.device) -> None:
    """Raises ModelLoadError if no model can be quantized so on the device."""
    wanted, reason = config.quantization, None
    if wanted == "fp8" and device.type == "cpu":
        reason = "a CPU multiplies float8 slowly, and has int8 and int4"
    elif wanted == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        reason = "this takes a GPU of compute capability 8.9 or more"
    elif wanted in ("int8", "int4") and device.type != "cpu":
        reason = "this is for CPUs, and a GPU has fp8"
    elif wanted in ("int8", "int4") and kernel_for(torch.float32, wanted) is None:
        reason = "this takes a CPU with AVX512-VNNI, and a C++ compiler"
    if reason is not None:
        raise not_quantized(config, reason)


def find_checkpoint(config: EngineConfig, report: Report) -> Path:
    """The folder with the model's files; a hub id is downloaded first. Only safetensors will do."""
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        folder = download(config, report)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{config.model} has no config.json: it is not a transformers model.")
    if not weight_files(folder):
        raise ModelLoadError(
            f"{config.model} has no *.safetensors files. Other formats can run code when they are "
            "opened: convert the weights with save_pretrained()."
        )
    return folder


def download(config: EngineConfig, report: Report) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the hub's cache."""
    if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise ModelLoadError(f"There is no folder {config.model}.")
    report(f"Fetching {config.model}")
    advice = "Check the id, the network and HF_TOKEN, or name a local folder."
    if config.local_files_only:
        advice = "Start once without --local-files-only, or name a local folder."
    with translating(f"{config.model} is no folder and cannot be had from the hub", advice):
        path = snapshot_download(
            config.model,
            revision=config.revision,
            local_files_only=config.local_files_only,
            allow_patterns=DOWNLOADED,
            ignore_patterns=NOT_DOWNLOADED,
        )
    return Path(path)


def weight_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.safetensors") if "consolidated" not in path.name]


def read_config(config: EngineConfig, folder: Path) -> PreTrainedConfig:
    """The checkpoint's configuration, if it is that of a causal language model we may run."""
    with translating(f"The config.json of {config.model} cannot be read"):
        content = json.loads((folder / "config.json").read_text())
    remote = "AutoModelForCausalLM" in content.get("auto_map", {})
    if remote and content.get("model_type") not in CONFIG_MAPPING and not config.trust_remote_code:
        raise ModelLoadError(
            f"{config.model} brings its own Python code. Read it, and start with "
            "--trust-remote-code if you want to run it."
        )
    with translating(f"{config.model} is not supported by this version of transformers"):
        hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    names = hf_config.architectures or []
    generative = ("CausalLM", "LMHead", "ConditionalGeneration")
    known = remote or type(hf_config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if type(hf_config) in MODEL_FOR_MASKED_LM_MAPPING:  # BERT and its kin can be either
        known = getattr(hf_config, "is_decoder", False)
    if not known or (names and not any(part in name for name in names for part in generative)):
        kind = ", ".join(names) or content.get("model_type", "unknown")
        raise ModelLoadError(f"{config.model} ({kind}) is not a causal language model.")
    return hf_config


def pick_dtype(wanted: str, hf_config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype asked for; "auto" takes the checkpoint's, unless the CPU would emulate it."""
    if wanted != "auto":
        return getattr(torch, wanted)
    dtype = checkpoint_dtype(hf_config)
    if device.type == "cuda" or dtype == torch.float32:
        return dtype
    bf16_is_fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if bf16_is_fast else torch.float32


def checkpoint_dtype(hf_config: PreTrainedConfig) -> torch.dtype:
    text_config = hf_config.get_text_config(decoder=True)
    return hf_config.dtype or text_config.dtype or torch.float32


def pick_max_model_len(config: EngineConfig, hf_config: PreTrainedConfig) -> int:
    """The context length asked for, within the model's own.

    Raises ModelLoadError for more than the model was made for: it would answer nonsense.
    """
    text_config = hf_config.get_text_config(decoder=True)
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:  # recurrent and ALiBi models have none
        return config.max_model_len or UNSTATED_MODEL_LEN
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ModelLoadError(
            f"max_model_len {config.max_model_len} is more than the {limit} tokens that "
            f"{config.model} was made for: lower it."
        )
    return config.max_model_len or limit


def check_memory(
    folder: Path, hf_config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises ModelLoadError if the weights cannot fit, before minutes are spent on loading them."""
    scale = dtype.itemsize / checkpoint_dtype(hf_config).itemsize
    if getattr(hf_config, "quantization_config", None) is not None:
        scale = 1.0
    needed = scale * sum(path.stat().st_size for path in weight_files(folder))
    needed += NUM_ACTIVATION_BYTES
    for place in {torch.device("cpu"), device}:  # a GPU's weights come through the host's memory
        if needed > (free := available_memory(place)):
            raise ModelLoadError(
                f"The model needs {readable(needed)} of memory to be loaded, but only "
                f"{readable(free)} are free on {place}: free some, or choose a smaller model."
            )


def load_tokenizer(config: EngineConfig, folder: Path) -> PreTrainedTokenizerBase:
    advice = "The folder needs the tokenizer's files, such as tokenizer.json."
    with translating(f"{config.model} has no usable tokenizer", advice):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
        if len(tokenizer) == 0:
            raise ValueError("its vocabulary is empty")
    return tokenizer


def load_weights(
    config: EngineConfig,
    folder: Path,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The unmodified Hugging Face module with its weights, for inference only.

    Raises ModelLoadError where a weight is missing, because transformers would make one up.
    """
    with translating(f"{config.model} cannot be loaded"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # refused below, with the names
            output_loading_info=True,
        )
        model = model.to(device).eval().requires_grad_(False)
    wrong = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if wrong:
        raise ModelLoadError(
            f"{config.model} does not fit its config.json: weights are missing or of another "
            f"shape, {len(wrong)} in all, such as {wrong[0]}."
        )
    return model


def has_fast_layers(
    config: EngineConfig, model: PreTrainedModel, layers: list[LayerSpec], sample: parity.Sample
) -> bool:
    """Give a paged model faster layers; False, with a warning, if that broke it.

    Raises ModelLoadError if it cannot be quantized as configured.
    """
    quantization = config.quantization
    if quantization and not any(can_pack(module, quantization) for module in model.modules()):
        raise not_quantized(config, "none of its layers has the shape and dtype for it")
    leave_file(model)
    optimize(model, quantization)
    tolerance = parity.QUANTIZED_TOLERANCE[quantization] if quantization else None
    if difference := parity.difference(model, layers, sample, tolerance):
        if quantization:
            raise not_quantized(config, difference)
        logger.warning("%s runs with its own, slower layers: %s.", config.model, difference)
        return False
    apart = sample._replace(logits=parity.paged_logits(model, layers, sample.token_ids))
    fused = fuse(model, layers)
    if fused is not None and (difference := parity.difference(model, layers, apart)):
        logger.info("the layers of %s stay apart: %s.", config.model, difference)
        fused.undo()
    trim()
    return True


def not_quantized(config: EngineConfig, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"{config.model} cannot be served with quantization {config.quantization}: {reason}. "
        "Leave --quantization out."
    )


def find_eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer; chat models have more than the tokenizer's one."""
    stated: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = stated if isinstance(stated, list) else [stated]
    return frozenset(id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None)


def read_generation_defaults(folder: Path) -> dict[str, float]:
    """The sampling settings of generation_config.json, as written there.

    `do_sample` is not among them (vLLM's reading too): transformers writes it only when it is true,
    so its absence does not recommend greedy decoding.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    with translating(f"{path} cannot be read"):
        content = json.loads(path.read_text())
    return {key: content[key] for key in SAMPLING_DEFAULTS if content.get(key) is not None}
