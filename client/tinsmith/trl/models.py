"""Which base model of the service is meant by a name, a folder or a loaded transformers model."""

import importlib.util
from pathlib import Path
from typing import Any

from tinsmith.service_client import ServiceClient
from tinsmith.types import ModelInput

_PROBE = (3, 1, 4, 1, 5, 9, 2, 6)
_NEAR = 0.05
"""Nats a token: weights in another precision differ by less, other weights by far more."""


class Models:
    """Names are compared first. A loaded model's weights are compared by what they score."""

    def __init__(self, service: ServiceClient) -> None:
        self._service = service
        served = service.get_server_capabilities().supported_models
        self.names = [one.model_name for one in served if one.model_name]

    def name_of(self, argument: str, given: Any) -> str:
        """Raises ValueError that names the argument."""
        if isinstance(given, str):
            return self._by_name(argument, given)
        source = _source(argument, given)
        named = [name for name in self.names if _names(source, name)]
        for name in [*named, *(one for one in self.names if one not in named)]:
            if self._is(given, name):
                return name
        raise ValueError(
            f"{argument}: no base model of the service has the weights of {source or 'this model'}. It "
            f"serves: {', '.join(self.names)}. Register the folder with `tinsmith models add NAME FOLDER`."
        )

    def _by_name(self, argument: str, given: str) -> str:
        if given.startswith("tinker://") or given in self.names:
            return given
        named = [name for name in self.names if _names(given, name)]
        if len(named) == 1:
            return named[0]
        if Path(given).is_dir() and importlib.util.find_spec("transformers"):
            from transformers import AutoModelForCausalLM

            return self.name_of(argument, AutoModelForCausalLM.from_pretrained(given))
        raise ValueError(
            f"{argument}: {given!r} is not served here. It serves: {', '.join(self.names)}. Add it with "
            "`tinsmith models add NAME FOLDER`."
        )

    def _is(self, model: Any, name: str) -> bool:
        """Whether both score a few tokens alike."""
        import torch

        probe = torch.tensor([[token % model.config.vocab_size for token in _PROBE]])
        with torch.no_grad():
            logits = model(input_ids=probe.to(model.device)).logits[0].float().cpu()
        ours = logits.log_softmax(-1)[:-1].gather(1, probe[0, 1:, None])[:, 0]
        sampler = self._service.create_sampling_client(base_model=name).result()
        scored = sampler.compute_logprobs(ModelInput.from_ints(probe[0].tolist())).result()
        theirs = torch.tensor([one or 0.0 for one in scored[1:]])
        return bool((ours - theirs).abs().max() < _NEAR)


def source_of(given: Any) -> str:
    """Where a transformers model came from, or the text that names it."""
    return given if isinstance(given, str) else str(getattr(given, "name_or_path", "") or "")


def _source(argument: str, given: Any) -> str:
    if hasattr(given, "peft_config"):
        raise ValueError(
            f"{argument}: an adapter in this process cannot be sent; train it on the service and give its "
            "tinker:// path, or give the base model."
        )
    if not hasattr(given, "config"):
        raise ValueError(
            f"{argument}: {type(given).__name__} is no name and no transformers model."
        )
    return source_of(given)


def _names(path: str, name: str) -> bool:
    """Whether a folder is called like a model: by its last parts."""
    parts, wanted = Path(path).parts, Path(name).parts
    return parts[-len(wanted) :] == wanted
