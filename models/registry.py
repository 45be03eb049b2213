"""Which models there are, and their state as plain arrays."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from models.image import cnn, norm_groups
from models.interface import ClinicalModel
from models.multitask import multitask
from models.sequence import lstm
from models.tabular import logistic, mlp

ModelState = dict[str, np.ndarray]

MODELS: dict[str, Callable[[StudyProtocol], ClinicalModel]] = {
    "cnn": cnn,
    "logistic": logistic,
    "lstm": lstm,
    "mlp": mlp,
    "multitask": multitask,
}


def build_model(protocol: StudyProtocol) -> ClinicalModel:
    """Build the protocol's model; forward maps raw features [..., features] to logits [...].

    Raises:
        ConsiliumError: E101, the protocol names no model of the registry, sizes it wrongly, or gives it what
            it does not read.
    """
    name = protocol.model.name
    if name not in MODELS:
        raise ConsiliumError("E101", f"field 'model.name': {name!r}, expected one of {sorted(MODELS)}")
    read_by = {
        "model.time_steps": (protocol.model.time_steps, "lstm"),
        "model.image": (protocol.model.image, "cnn"),
        "auxiliary_labels": (protocol.auxiliary_labels, "multitask"),
    }
    for field, (value, reader) in read_by.items():
        if value and name != reader:
            raise ConsiliumError("E101", f"field '{field}': model {name} does not read it, {reader} does")
    try:
        return MODELS[name](protocol)
    except ValueError as error:
        raise ConsiliumError("E101", f"field 'model': {error}") from error


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the trainable tensors, in the model's own order."""
    return [name for name, _ in model.named_parameters()]


def trained_names(model: nn.Module) -> list[str]:
    """Names of all that training changes: the parameters, and the statistics that BatchNorm keeps."""
    kept = {
        f"{layer}.{statistic}"
        for layer in batchnorm_layers(model)
        for statistic in ("running_mean", "running_var")
    }
    return parameter_names(model) + [name for name in state_of(model) if name in kept]


def batchnorm_layers(model: nn.Module) -> list[str]:
    """Names of the layers that normalise over a batch, and so couple patients."""
    return [
        name for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]


def without_batchnorm(model: ClinicalModel) -> ClinicalModel:
    """A copy of the model with GroupNorm in the place of every BatchNorm, by Opacus' own fixer.

    It is the network that `norm: group` builds; the new layers start from 1 and 0.
    """
    # Not `ModuleValidator.fix` of the whole: it also replaces nn.LSTM, which needs no replacement here.
    from opacus.validators import ModuleValidator

    fixed = copy.deepcopy(model)
    for name in batchnorm_layers(model):
        layer = fixed.get_submodule(name)
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        fixer = ModuleValidator.FIXERS[type(layer)]
        fixed.set_submodule(name, fixer(layer, num_groups=norm_groups(layer.num_features)))
    return fixed


def state_of(model: nn.Module) -> ModelState:
    """Copy the model's parameters and persistent buffers out as float32 arrays.

    The number of batches that BatchNorm has seen is left out: it is no float, and nothing reads it.
    """
    return {
        name: tensor.detach().cpu().to(torch.float32).numpy().copy()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def load_state(model: nn.Module, state: ModelState) -> None:
    """Copy `state` into the model; names and shapes must match exactly."""
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})


def load_model(protocol: StudyProtocol, path: Path) -> ClinicalModel:
    """Build the model and load a global state from a safetensors file, ready to evaluate."""
    model = build_model(protocol)
    load_state(model, load_file(path))
    return model.eval()


def initial_state(protocol: StudyProtocol) -> ModelState:
    """The first global model: a function of the protocol alone, so that a replay finds the same one.

    Weights of linear, recurrent and convolutional layers are uniform in +-1/sqrt(fan_in) (LeCun et al. 1998,
    Efficient backprop), scales of normalisation layers start at 1, everything else at 0. Drawn from a
    generator seeded by the protocol's hash: initial weights are public and no privacy rests on them.
    """
    model = build_model(protocol)
    state = state_of(model)
    scales = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
    }
    for name, parameter in model.named_parameters():
        seed = hashlib.sha256(f"{protocol.hash}/{name}".encode()).digest()
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
        if name in scales:
            state[name] = np.ones(parameter.shape, dtype=np.float32)
        elif parameter.ndim >= 2 and protocol.model.name != "logistic":
            limit = 1.0 / np.sqrt(math.prod(parameter.shape[1:]))
            state[name] = draw.uniform(-limit, limit, parameter.shape).astype(np.float32)
        else:
            state[name] = np.zeros(parameter.shape, dtype=np.float32)
    return state
