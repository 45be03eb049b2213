"""Which models there are, and their state as plain arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from models.tabular import logistic, mlp

ModelState = dict[str, np.ndarray]

MODELS: dict[str, Callable[[StudyProtocol], nn.Module]] = {"logistic": logistic, "mlp": mlp}


def build_model(protocol: StudyProtocol) -> nn.Module:
    """Build the protocol's model; forward maps raw features [..., features] to logits [...].

    Raises:
        ConsiliumError: E101, the protocol names no model of the registry or sizes it wrongly.
    """
    name = protocol.model.name
    if name not in MODELS:
        raise ConsiliumError("E101", f"field 'model.name': {name!r}, expected one of {sorted(MODELS)}")
    try:
        return MODELS[name](protocol)
    except ValueError as error:
        raise ConsiliumError("E101", f"field 'model': {error}") from error


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the trainable tensors, in the model's own order."""
    return [name for name, _ in model.named_parameters()]


def state_of(model: nn.Module) -> ModelState:
    """Copy the model's parameters and persistent buffers out as float32 arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def load_state(model: nn.Module, state: ModelState) -> None:
    """Copy `state` into the model; names and shapes must match exactly."""
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})


def load_model(protocol: StudyProtocol, path: Path) -> nn.Module:
    """Build the model and load a global state from a safetensors file, ready to evaluate."""
    model = build_model(protocol)
    load_state(model, load_file(path))
    return model.eval()


def initial_state(protocol: StudyProtocol) -> ModelState:
    """The first global model: a function of the protocol alone, so that a replay finds the same one.

    Weight matrices are uniform in +-1/sqrt(fan_in) (LeCun et al. 1998, Efficient backprop), everything
    else starts at zero. Drawn from a generator seeded by the protocol's hash: initial weights are public
    and no privacy rests on them.
    """
    model = build_model(protocol)
    state = state_of(model)
    for name, parameter in model.named_parameters():
        seed = hashlib.sha256(f"{protocol.hash}/{name}".encode()).digest()
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
        if parameter.ndim >= 2 and protocol.model.name != "logistic":
            limit = 1.0 / np.sqrt(parameter.shape[1])
            state[name] = draw.uniform(-limit, limit, parameter.shape).astype(np.float32)
        else:
            state[name] = np.zeros(parameter.shape, dtype=np.float32)
    return state
